"""Notebook 08, the arms: CLIPs of the demo that differ in what they pool from their first training step on.
Their rows are committed with their cards."""

import matplotlib.pyplot as plt
import pandas as pd

from .. import plots
from ..datasets.scenes import PRETRAINING
from ..evaluation import counts, grouped, in_words, spread, t_difference, t_interval
from ..networks import demo
from .causes import KEYS
from .itsm_discovery import direction

ROWS = demo.FOLDER / "arms" / "rows.csv"  # by data/demo/training/arms.py, with the card of each arm beside it
USUAL, LONGER = "token", f"token ({PRETRAINING:,} scenes)"  # of the arms; the shipped seeds
NETWORK = {pool: f"scenes-ViT-32-{pool}" for pool in demo.POOLS} | {LONGER: "scenes-ViT-32"}
ALONE = "one training, which decides nothing"


def arms():
    """The committed rows: pool, training, dataset, mAP and its chance, `lines`, and mIoU and mSC of new
    pairs, `pair_own_mSC` (pooled as the arm itself) and so on; in the order of `NETWORK`."""
    rows = pd.read_csv(ROWS)
    return rows.sort_values("pool", key=lambda pools: pools.map([*NETWORK].index), kind="stable")


def arms_of(run):
    """`arms`, or none of them where they are not trainings of a network of the run."""
    return arms() if NETWORK[LONGER] in run.networks else arms()[:0]


def pooling_table(rows):
    """Means over trainings with their interval by Student's t, one line a dataset, pool and measure."""

    def means(part):
        for measure in _measures(part):
            yield {"measure": measure, "trainings": len(part)} | spread("value", t_interval(part[measure]))

    return grouped(rows.assign(network=NETWORK[LONGER]), ["dataset", "network", "pool"], means)


def pooling_gains(rows):
    """Every pool less the class token (`USUAL`), by Welch's t over trainings, one line a dataset, pool and
    measure."""

    def lines_of(part):
        usual = rows[(rows["pool"] == USUAL) & (rows["dataset"] == part["dataset"].iloc[0])]
        for measure in _measures(part) if len(usual) else ():
            three = t_difference(part[measure], usual[measure])
            yield {"measure": measure, "trainings": len(part)} | spread("value", three)

    others = rows[rows["pool"] != USUAL].assign(network=NETWORK[LONGER])
    return grouped(others, ["dataset", "network", "pool"], lines_of)


def _measures(rows):
    """What was measured: of the shipped seeds no pairs."""
    known = rows.dropna(axis="columns", how="all")
    return [
        name for name in known if name not in ("dataset", "network", "pool", "training", "images", "chance")
    ]


def wide(means, measures):
    """A long table as one reads it: a row a dataset and pool, the measures side by side, how many
    trainings."""
    part = means[means["measure"].isin(measures)]
    index = ["dataset", "pool", "trainings"]
    return part.pivot_table(index=index, columns="measure", values="value", sort=False)[measures]


def agreement(run, ours, rows):
    """Whether the committed rows of the shipped seeds are what this run measured, in words."""
    if run.name != "demo" or run.compared_by:
        return "not compared with the committed rows, which are of the demo as it is"
    theirs = rows[rows["pool"] == LONGER].assign(network=NETWORK[LONGER]).set_index(KEYS)
    both = ours.set_index(KEYS)
    both = both[both.index.isin(theirs.index)]
    if both.empty:
        return "no rows of shipped seeds to compare"
    apart = (both - theirs.loc[both.index, both.columns]).abs().max().max()
    said = "agree within 0.01" if apart <= 0.01 else "differ"
    return f"{len(both)} rows of shipped seeds, measured here again, {said} (largest difference {apart:.4f})"


def about_arms(run, rows):
    """Whose numbers the rows are, in words."""
    if rows.empty:
        return f"Not testable here: nothing trains {', '.join(run.networks)} with another pool."
    number = rows.groupby("pool", sort=False)["training"].nunique()
    said = ", ".join(f"{pool} {count}" for pool, count in number.items())
    return f"Trainings of {NETWORK[LONGER]} by what they pool: {said}."


# ---------------------------------------------------------------------- in words


def _three(line):
    return f"{line['value']:.1f} [{line['value_low']:.1f}, {line['value_high']:.1f}]"


GAINED = {
    "mSC": ("less opposite", "more opposite", "undecided whether more or less opposite"),
    "mAP": ("better recognition", "worse recognition", "undecided whether recognition suffers"),
}


def pooling_in_words(means, gains):
    """Every pool's map against the class token's, and its recognition; then what follows from all. Of
    `pooling_table` and `pooling_gains`."""
    found = []
    for _, line in means[means["measure"] == "mSC"].iterrows():
        dataset, pool, n = line["dataset"], line["pool"], line["trainings"]
        here = gains[(gains["dataset"] == dataset) & (gains["pool"] == pool)].set_index("measure")
        if n < 2:
            apart = f" ({here.loc['mSC', 'value']:+.1f} against the class token)" if len(here) else ""
            found.append(f"{dataset}, {pool}: mSC {line['value']:.1f}{apart}; {ALONE}.")
            continue
        said = [f"mSC {_three(line)} over {n} trainings, {direction(line['value_low'], line['value_high'])}"]
        for measure, words in GAINED.items() if len(here) else ():
            gain = here.loc[measure]
            so = in_words(gain["value_low"], gain["value_high"], *words)
            said.append(f"{measure} {_three(gain)} against the class token: {so}")
        found.append(f"{dataset}, {pool}: {'; '.join(said)}.")
    return "\n".join([*found, *_conclusions(means, gains)])


def _conclusions(means, gains):
    """Which pools are opposite everywhere, and whether a maximum from scratch costs recognition."""
    signs = dict(list(means[means["measure"] == "mSC"].groupby("pool", sort=False)))
    which = {
        "opposite": [pool for pool, part in signs.items() if (part["value_high"] < 0).all()],
        "as one expects": [pool for pool, part in signs.items() if (part["value_low"] > 0).all()],
    }
    decided = [pool for pools in which.values() for pool in pools]
    which["mixed or undecided"] = [pool for pool in signs if pool not in decided]
    said = "; ".join(f"{word} with {', '.join(pools)}" for word, pools in which.items() if pools)
    yield f"Over trainings, on every dataset, the map is {said}."
    which = {word: [pool for pool in pools if pool != LONGER] for word, pools in which.items()}
    both = which["opposite"] and which["as one expects"]
    if both:
        yield "So what is pooled in training decides the sign of the map here."
    others = {*signs} - {USUAL, LONGER}
    if will := [pool for pool in which["opposite"] if pool in others]:
        said = "So an opposite map does not need the class token as the image feature"
        yield f"{said}: {', '.join(will)} will do."
    elif USUAL in which["opposite"] and others and others <= {*which["as one expects"]}:
        yield "So the class token as the image feature in training is what makes the map opposite here."
    elif not both:
        yield "So whether the pool in training makes the map opposite is open here."
    most = gains[(gains["pool"] == "max") & (gains["measure"] == "mAP")]
    if len(most):
        up, open_, down = counts(most, "value")
        said = f"lower on {down} of {len(most)} datasets, higher on {up}, undecided on {open_}"
        said = ALONE if most["value_low"].isna().all() else said
        yield f"Recognition of a CLIP trained with max pooling against the class token: {said}."


def pairs_in_words(rows):
    """In how many trainings the map of a new pair is as one expects (mSC above 0 on every dataset), by pool
    and pooling."""
    columns = [name for name in rows if name.startswith("pair_") and name.endswith("_mSC")]
    words = {name: name.removeprefix("pair_").removesuffix("_mSC") for name in columns}
    return _counted(
        "the map of a new pair is as one expects with", -rows.set_index(["pool", "training"])[columns], words
    )


def traits_in_words(rows):
    """In how many trainings of each pool the map is opposite at the patch embedding and at its end, and those
    of absent classes too; and in how many the named object is lower than in theirs."""
    words = {"mSC_0": "at the patch embedding", "mSC": "at the end", "absent": "for absent classes"}
    words |= {"text": "by the text (the named object lower than in an absent class's map)"}
    return _counted("mSC below 0", rows.set_index(["pool", "training"])[[*words]], words)


def _counted(what, numbers, words):
    """How many trainings of each pool have a column below 0 on every dataset; a sentence a pool."""
    found = []
    for pool, part in numbers.dropna().groupby("pool", sort=False):
        most = part.groupby("training").max()
        said = "; ".join(f"{word} {(most[name] < 0).sum()}" for name, word in words.items())
        found.append(f"{pool}, of {len(most)} trainings {what}: {said}.")
    return "\n".join(found)


# ---------------------------------------------------------------------- figures


def by_depth(rows):
    """The arms' rows with a line a depth, as `depth_figure` draws them."""
    columns = [name for name in rows if name.startswith("mSC_")]
    keys = ["dataset", "pool", "training"]
    found = rows[[*keys, *columns]].melt(keys, var_name="blocks", value_name="mSC")
    return found.assign(blocks=found["blocks"].str.removeprefix("mSC_").astype(int)).sort_values("blocks")


def pooling_figure(rows, means):
    """mSC and recognition by pool: a point a training, the mean over trainings with its interval. Returns the
    figure."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 2.8))
    rows, means = (t.assign(pool=t["pool"].str.replace(" (", "\n(")) for t in (rows, means))
    pools, datasets = (list(dict.fromkeys(rows[name])) for name in ("pool", "dataset"))
    for ax, (measure, label) in zip(
        axes, {"mSC": "mSC (%)", "mAP": "zero-shot mAP (%)"}.items(), strict=True
    ):
        part = means[means["measure"] == measure]
        plots.intervals(part, "value", label, name="pool", reference=0 if measure == "mSC" else None, ax=ax)
        for k, dataset in enumerate(datasets):
            own = rows[rows["dataset"] == dataset]
            x = [pools.index(pool) + (k - (len(datasets) - 1) / 2) * 0.2 + 0.07 for pool in own["pool"]]
            ax.plot(x, own[measure], ".", color=f"C{k}", alpha=0.5)
    return figure
