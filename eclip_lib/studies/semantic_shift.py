"""Notebook 04: how many channels shift; is it why maps are opposite? (Appendix A, Figs. 4, 9, Table 5)"""

from functools import partial

import numpy as np
import pandas as pd
import torch

from ..evaluation import batches, counts, grouped, mean_interval, prompts, score_contrast, spread
from ..method import itsm
from ..shift import POOLINGS, channels, foreground_tokens, shift_statistics, without_channels

CASE = ("dataset", "network")
# Table 5's bins
SIZES = {f"({low}, {high}]": (low, high) for low, high in ((0, 0.25), (0.25, 0.75), (0.75, 1), (0, 1))}

# ---------------------------------------------------------------------- one row an image


@torch.no_grad()
def shift_rows(dataset, clip, projection=None, workers=0, batch_size=32, ablate=True, seed=0):
    """One row an image: image_id, `shift_statistics`, foreground (share of its pixels), mSC (its contrast,
    the mean over its classes; Table 1's mSC is a mean over classes) and, with `ablate`, mSC_kept and
    mSC_random: the contrast with the shifted channels left out, and with as many random ones."""
    projection, generator = projection or clip.projection, torch.Generator().manual_seed(seed)
    text, tables = projection.text(prompts(dataset, clip)), []
    for batch in batches(dataset, clip, batch_size, workers, "measuring shift", least=1):
        features = clip.encode_image(batch.images)
        values, pooled = channels(features, projection)
        objects = [*zip(batch.objects, batch.void, strict=True)]
        inside = torch.stack([foreground_tokens(*both, features.grid) for both in objects]).to(clip.device)
        statistics, shifted = shift_statistics(values, pooled, inside, features.grid)
        left_out = {"mSC": torch.zeros_like(shifted)}
        if ablate:
            rank = torch.rand(shifted.shape, generator=generator).argsort(1).argsort(1).to(clip.device)
            left_out |= {"mSC_kept": shifted, "mSC_random": rank < shifted.sum(1, keepdim=True)}
        table = pd.DataFrame({name: column.cpu().numpy() for name, column in statistics.items()})
        table.insert(0, "image_id", batch.ids)
        table["foreground"] = [float((mask & ~void).sum() / (~void).sum()) for mask, void in objects]
        for name, channels_out in left_out.items():
            cells = without_channels(values, text, channels_out).unflatten(-1, features.grid)
            table[name] = _contrasts(cells, batch, dataset.classes)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def measured(run, clip, name):
    """`shift_rows` of a network on one of a run's datasets, measured once; `shifted`: in % of channels."""
    dataset, options = run.load_dataset(name), {"workers": run.workers, "batch_size": run.batch_size}
    measure = partial(shift_rows, dataset, clip, seed=run.seed, **options)
    rows = run.once("shift", [clip, dataset, run.seed], measure)
    return rows.assign(dataset=name, network=clip.title, shifted=shifted_share)


def _contrasts(cells, batch, classes):
    """Mean contrast over the classes of each image. cells: [B, T, h, w]."""
    found = []
    for k, names in enumerate(batch.names):
        masks, void = batch.masks[k].to(cells.device), batch.void[k].to(cells.device)
        maps = itsm(cells[k : k + 1, [classes.index(name) for name in names]], masks.shape[1:])[0]
        void = void.expand_as(masks) if void.any() else None
        found.append(score_contrast(maps, masks, void).nanmean().item())
    return found


def shifted_share(rows):
    """Share of the channels that shift, in %."""
    return 100 * (rows["B2F"] + rows["F2B"]) / (rows["B2F"] + rows["F2B"] + rows["same"])


# ---------------------------------------------------------------------- tables


def by_size(rows, ratio="foreground"):
    """(bin, those of the rows that are in it) of Table 5. ratio: "background" inverts the axis."""
    share = rows["foreground"] if ratio == "foreground" else 1 - rows["foreground"]
    return [(name, rows[(share > low) & (share <= high)]) for name, (low, high) in SIZES.items()]


def table_5(rows, ratio="foreground"):
    """Table 5, mean channel numbers by size, for every dataset and network. One line a bin: size, images
    (share in %), B2F, F2B, same, and shifted (share of the channels in %)."""

    def sizes(part):
        for size, inside in by_size(part, ratio):
            means = inside[["B2F", "F2B", "same"]].mean().to_dict()
            share = {"size": size, "images": 100 * len(inside) / len(part)}
            yield share | means | {"shifted": shifted_share(means)}

    return grouped(rows, CASE, sizes)


def dispersion_table(rows):
    """Fig. 4 in numbers: share of distinct positions (%) and mean distance from the max position (tokens),
    for every pooling."""
    columns = {f"distinct {p} (%)": (f"distinct_{p}", 100) for p in POOLINGS}
    columns |= {f"distance {p}": (f"distance_{p}", 1) for p in POOLINGS[1:]}
    return grouped(rows, CASE, lambda part: {n: k * part[c].mean() for n, (c, k) in columns.items()})


def rank_correlation(x, y, resamples=1000):
    """Spearman's rank correlation with its 95 % bootstrap interval over images -> (rho, low, high)."""
    table = pd.DataFrame({"x": np.asarray(x), "y": np.asarray(y)}).dropna()
    ranks, rng = table.rank().to_numpy(), np.random.default_rng(0)
    draws = rng.integers(0, len(ranks), (resamples, len(ranks)))
    sample = np.array([np.corrcoef(pd.DataFrame(ranks[d]).rank().to_numpy().T)[0, 1] for d in draws])
    return (np.corrcoef(ranks.T)[0, 1], *np.nanpercentile(sample, [2.5, 97.5]))


def link_table(rows):
    """Does shift explain the opposite map? Rank correlation of the share of shifted channels with mSC over
    images; the mean contrast of an image (%) with all channels, without the shifted, without as many random
    ones; the gain of the second over the last, paired."""

    def line(part):
        found = spread("rho", rank_correlation(part["shifted"], part["mSC"]))
        found |= {column: 100 * part[column].mean() for column in ("mSC", "mSC_kept", "mSC_random")}
        _, found["kept_low"], found["kept_high"] = (100 * v for v in mean_interval(part["mSC_kept"]))
        return found | spread("gain", mean_interval(100 * (part["mSC_kept"] - part["mSC_random"])))

    return grouped(rows, CASE, line)


def dispersion_gains(rows):
    """Distinct positions (%) of average and attention pooling less those of max pooling, paired over images
    with their interval; one line a dataset, network and pooling."""

    def lines(part):
        for pooling in POOLINGS[1:]:
            gain = mean_interval(100 * (part[f"distinct_{pooling}"] - part["distinct_max"]))
            yield {"than": pooling} | spread("distinct", gain)

    return grouped(rows, CASE, lines)


def chance_table(rows):
    """Table 5 beside chance, means over the images of a bin in % of the channels: `shifted`; `independent`:
    were a channel's two positions independent, each with its share on the foreground as it is, p(1-q) +
    q(1-p); `random`: were both drawn from all tokens, 2f(1-f) of the foreground's share f. `excess`: shifted
    less independent, paired, with its interval."""
    channel = rows["B2F"] + rows["F2B"] + rows["same"]
    p, q, f = rows["on_max"] / channel, rows["on_attention"] / channel, rows["tokens"]
    rows = rows.assign(independent=100 * (p * (1 - q) + q * (1 - p)), random=200 * f * (1 - f))

    def sizes(part):
        for size, inside in by_size(part):
            if len(inside):
                means = inside[["shifted", "independent", "random"]].mean().to_dict()
                excess = spread("excess", mean_interval(inside["shifted"] - inside["independent"]))
                yield {"size": size, "images": len(inside)} | means | excess

    return grouped(rows, CASE, sizes)


def random_foreground(quoted):
    """The paper's Table 5, quoted, against positions drawn at random: the share of the channels that shifts
    (%), and the foreground f within the bin at which 2f(1-f) is as much (nan where there is none)."""
    shifted = (quoted["B2F"] + quoted["F2B"]) / quoted[["B2F", "F2B", "B2B_or_F2F"]].sum(axis=1)
    root = np.sqrt(1 - 2 * shifted.clip(upper=0.5)) / 2
    found = [
        next((f for f in (0.5 - r, 0.5 + r) if SIZES[size][0] < f <= SIZES[size][1]), np.nan)
        for size, r in zip(quoted["size"], root, strict=True)
    ]
    return pd.DataFrame({"size": quoted["size"], "shifted": 100 * shifted, "f of random positions": found})


def verdict(chance, link):
    """Does shift explain the opposite map? Sentences computed from the tables."""
    whole = chance[chance["size"] == "(0, 1]"]
    up, open_, down = counts(whole, "excess")
    less, unclear, more = counts(link, "rho")
    turned, _, kept = counts(link.rename(columns={"kept_low": "k_low", "kept_high": "k_high"}), "k")
    better, _, worse = counts(link, "gain")
    says = (
        "explains" if more == turned == len(link) else "does not explain" if less or kept else "may explain"
    )
    return (
        f"{len(link)} cases (datasets and networks), intervals over images. Channels change sides more often "
        f"than two independent positions would in {up}, less often in {down}; {open_} open.\n"
        f"Images with more shift are more opposite in {more}, less opposite in {less}; {unclear} open.\n"
        f"Without its shifted channels the map turns (mean contrast of an image above 0) in {turned} and "
        f"stays opposite in {kept}; leaving them out raises the contrast more than as many random channels "
        f"in {better}, less in {worse}.\n"
        f"So semantic shift {says} the opposite map here."
    )
