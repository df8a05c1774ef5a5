"""Notebook 03: is the pooling the reason? A pair for every pooling and mask (§3.2, §3.3, Fig. 3, Table 3)."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .. import plots
from ..datasets import examples
from ..evaluation import counts, gains_in_words, over_trainings, table, training_gains, trainings_apart
from ..explainers import explainer
from ..networks.attention import ClipAttention, noise, pixel_saliency
from ..networks.loading import is_vit
from ..poolings import GROUND_TRUTH, Pooling


def masks_for(run, clip, models):
    """The masks of one network's cache: the run's own, and on the run's first ViT those beyond the paper:
    ground truth where the pairs have it, CLIP's own attention, saliency, noise. Notebooks 02, 03 and 05 ask
    for the same ones, so they share one cache."""
    if clip.network != next(filter(is_vit, run.whole), None):
        return models
    extra = {"CLIP's own": ClipAttention(clip), "pixel saliency": pixel_saliency, "noise": noise}
    if run.pairs.startswith("scenes") and run.training.augment is None:
        extra = {GROUND_TRUTH: True} | extra
    return extra | models


def paper_poolings(run):
    """The rows of Table 3."""
    plain = map(Pooling, ("attention", "average", "max"))
    return [*plain, *(Pooling("masked_max", name) for name in run.masks)]


def trained_pairs(run, clip, features, poolings, init="random"):
    """A pair for every pooling and seed of the run -> {(pooling, seed): `Projection`}."""
    wanted = [(pooling, seed, init) for pooling in poolings for seed in range(run.trainings)]
    trained = run.train_all(clip, features, wanted)
    return {(pooling, seed): one.pair for (pooling, seed, _), one in zip(wanted, trained, strict=True)}


def score_pairs(run, clip, pairs):
    """Tidy rows of pairs {(pooling, or a name for it, seed): `Projection`} on every dataset, one pass each;
    CLIP's own as "CLIP"."""
    methods = {"CLIP": explainer("clip", clip)}
    for (pooling, seed), pair in pairs.items():
        label = pooling.label if isinstance(pooling, Pooling) else pooling
        methods[label, seed] = explainer("eclip", clip, projection=pair)
    return pd.concat([run.evaluate(clip, name, methods) for name in run.datasets], ignore_index=True)


def seed_table(run, rows):
    """One line a dataset, network, pooling and seed: `summarize`'s measures in %."""
    trained = rows[rows["method"] != "CLIP"]
    found = table(trained, ("dataset", "network", "method", "seed"), seed=run.seed)
    return found.rename(columns={"method": "pooling"}).astype({"seed": int})


def ordering(run, seeds):
    """The paper's comparisons of Table 3 -> `training_gains` of the better over the other pooling. seeds: a
    line a training, as of `seed_table`."""
    masked = [Pooling("masked_max", name).label for name in run.masks]
    steps = [("average", "attention"), ("max", "attention"), ("max", "average")]
    steps += [(mask, "max") for mask in masked]
    steps += [(masked[-1], masked[0])] if len(masked) > 1 else []
    return training_gains(seeds, steps)


def first_vit(run):
    """The network whose cache holds the masks beyond the paper, or None where the run has no ViT, or another
    run measures it."""
    network = next(filter(is_vit, run.whole), None)
    return network if network in run.networks else None


def beside(run, rows, others):
    """Table 3's max rows of a network and those of other masks -> DataFrame over seeds."""
    both = [rows[rows["method"].str.startswith("max")], others]
    measured = over_trainings(seed_table(run, pd.concat(both, ignore_index=True)))
    return measured.sort_values("dataset", kind="stable", ignore_index=True)


def reads(measured, clips):
    """What each line of Table 3 reads of its network: "class token", "tokens", of a ResNet "feature map"."""
    pools = {clip.title: clip.pools.replace("_", " ") for clip in clips.values()}
    read = measured["network"].map(pools)
    return read.where(measured["pooling"] != "attention", "class token")


def resnet_rows(run, clips, caches):
    """The pooled rows of Table 3 once more for every ResNet, from the tokens after its attention pool, where
    `score_pairs` reads the feature map before it -> tidy rows (None without a ResNet)."""
    found, poolings = [], [replace(p, reads="tokens") for p in paper_poolings(run)[1:]]
    for network, clip in clips.items():
        if clip.pools == "feature_map":
            found.append(score_pairs(run, clip, trained_pairs(run, clip, caches[network], poolings)))
    return pd.concat(found, ignore_index=True) if found else None


def resnet_seeds(run, rows):
    """`resnet_rows` -> `seed_table`, the reading in the network's name."""
    found = seed_table(run, rows)
    return found.assign(network=found["network"] + ", tokens after the pool")


def resnet_grid(run, before, after):
    """{feature map, tokens after the attention pool} x {average, max, masked max} -> DataFrame over seeds.
    before: Table 3's rows; after: `resnet_rows`."""
    labels, parts = [pooling.label for pooling in paper_poolings(run)[1:]], []
    before = before[before["network"].isin(after["network"])]
    for network in after["network"].unique():
        for reads, rows in (("feature map", before), ("tokens after the pool", after)):
            part = rows[(rows["network"] == network) & rows["method"].isin(labels)]
            part = over_trainings(seed_table(run, part))
            part.insert(2, "reads", reads)
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def turned(seeds):
    """Which pooling gives a map as one expects: of how many datasets and networks mSC is above 0 in
    every training."""
    least = seeds.groupby(["pooling", "dataset", "network"], sort=False)["mSC"].min()
    every = least.groupby("pooling", sort=False)
    cases = ", ".join(f"{name} {(part > 0).sum()} of {len(part)}" for name, part in every)
    return f"The map is as one expects, mSC above 0 in every training: {cases}."


def is_it_the_pooling(steps):
    """Whether max pooling raises the contrast over attention and average pooling, from `ordering`: the
    answer, a sentence."""
    part = steps[(steps["better"] == "max") & steps["than"].isin(["attention", "average"])]
    up, open_, down = counts(part, "mSC")
    said = f"max pooling raises mSC over attention and average pooling in {up} of {len(part)} comparisons"
    said += f", lowers it in {down}, {open_} undecided"
    answer = "yes" if up else "open"
    if down or 3 * up < 2 * len(part):
        answer = "it is not" if down and not up else "not everywhere" if down else "open"
    elif up < len(part):
        answer = "mostly"
    return f"So is it the pooling? By these trainings {answer}: {said}."


def verdict(seeds, steps, masks):
    """Which pooling turns the map, and which mask helps most? Sentences computed from `seed_table`,
    `ordering` and `beside`."""
    lines = [turned(seeds), gains_in_words(steps), is_it_the_pooling(steps)]
    if masks.empty:
        return "\n".join(lines)
    truth, own, dino = (Pooling("masked_max", name).label for name in (GROUND_TRUTH, "CLIP's own", "DINO"))
    fair = (
        masks[masks["pooling"] != truth]
        .groupby("pooling", sort=False)["mIoU"]
        .mean()
        .sort_values(ascending=False)
    )
    order = ", ".join(f"{name.removeprefix('max, ')} {value:.1f}" for name, value in fair.items())
    said = f"{masks['network'].iloc[0]}, mIoU, mean over datasets, by what masks the maximum: {order}."
    lines.append(f"{said} The best of those that need no ground truth is {fair.index[0]}.")
    for name, part in masks.set_index("pooling").groupby("dataset", sort=False):
        if {own, dino} <= set(part.index):
            gap = trainings_apart(part.loc[own], part.loc[dino])
            lines.append(f"{name}: CLIP's own attention as the mask against DINO's: {gap}.")
    return "\n".join(lines)


# ---------------------------------------------------------------------- figures


def loss_figure(losses, chance):
    """Training loss by epoch, one panel a network, one line a pooling (mean over seeds). losses: a
    DataFrame a training; chance: ln of the batch size."""
    import seaborn as sns  # of the extra `notebooks`

    losses = pd.concat(losses, ignore_index=True)
    shape = {"col": "network", "kind": "line", "height": 2.6, "aspect": 1.2}
    grid = sns.relplot(losses, x="epoch", y="loss", hue="pooling", errorbar=None, **shape)
    grid.set(ylim=(0, None)).set_titles("{col_name}")
    for ax in grid.axes.flat:
        ax.axhline(chance, color="gray", linestyle=":")
    return grid.figure


def wide(result):
    """A table over trainings for the eye: a row a dataset, network, reading and measure, poolings beside."""
    if result.empty:
        return result
    index = [c for c in ("dataset", "network", "reads") if c in result]
    beside = result.pivot_table(index=index, columns="pooling", values=["mIoU", "mSC"], sort=False)
    return beside.stack(0, future_stack=True).rename_axis([*index, "measure"])


def table_3_figure(measured, title):
    """mIoU and mSC of every pooling, one group of bars a network; the line on a bar spans the trainings.
    Returns the figure."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 2.8))
    names, networks = list(dict.fromkeys(measured["pooling"])), list(dict.fromkeys(measured["network"]))
    marked = set(measured.loc[measured["reads"] == "feature map", "network"])
    for ax, value in zip(axes, ("mIoU", "mSC"), strict=True):
        for k, name in enumerate(names):
            part = measured[measured["pooling"] == name].set_index("network").loc[networks]
            x = np.arange(len(networks)) + (k - (len(names) - 1) / 2) * 0.8 / len(names)
            ax.bar(x, part[value], 0.75 / len(names), color=f"C{k}", label=name)
            ax.vlines(x, part[f"{value}_min"], part[f"{value}_max"], color="black")
        ax.axhline(0, color="gray", linewidth=0.8)
        ax.set_xticks(range(len(networks)), [f"{n}*" if n in marked else n for n in networks], fontsize=8)
        ax.set(ylabel=f"{value} (%)")
    axes[1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    note = "\n* attention reads its attention pool's output, the others the feature map" if marked else ""
    figure.suptitle(f"{title}{note}", fontsize=9)
    figure.tight_layout()
    return figure


def map_sheet(run, clip, pairs, name, count=4):
    """Fig. 3: image, ground truth, CLIP's own map, then every pooling's (first training). Returns the
    figure."""
    shown = {"CLIP": (clip, explainer("clip", clip))}
    for (pooling, seed), pair in pairs.items():
        if seed == 0:
            title = pooling.label.replace("max, mask: ", "masked max:\n")
            shown[title] = (clip, explainer("eclip", clip, projection=pair))
    return plots.map_sheet(examples(run.load_dataset(name), count), shown, size=1.35)
