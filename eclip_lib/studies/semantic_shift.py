"""Notebook 04: how many channels shift, and does shift explain the opposite map? (Appendix A, Figs. 4 and 9,
Table 5)"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from .. import plots
from ..datasets import examples
from ..evaluation import batches, in_words, mean_interval, prompts, score_contrast
from ..explainers import explainer, map_of
from ..method import itsm
from ..networks.clip import PROMPT
from ..shift import (
    POOLINGS,
    channels,
    foreground_tokens,
    positions,
    semantic_shift,
    shift_statistics,
    without_channels,
)

SIZES = {
    "(0, 0.25]": (0, 0.25),
    "(0.25, 0.75]": (0.25, 0.75),
    "(0.75, 1]": (0.75, 1),
    "(0, 1]": (0, 1),
}  # Table 5's bins

# ---------------------------------------------------------------------- one row an image


@torch.no_grad()
def shift_rows(dataset, clip, projection=None, workers=0, batch_size=32, ablate=True, seed=0):
    """One row an image: image_id, `shift_statistics`, foreground (share of its pixels), mSC (mean contrast
    over its classes) and, with `ablate`, mSC_kept and mSC_random: the contrast with the shifted channels left
    out, and with as many random ones."""
    projection, generator = projection or clip.projection, torch.Generator().manual_seed(seed)
    text, tables = projection.text(prompts(dataset, clip)), []
    for batch in batches(dataset, clip, batch_size, workers, "measuring shift"):
        batch = batch.with_at_least(1)
        if not len(batch):
            continue
        features = clip.encode_image(batch.images)
        values, pooled = channels(features, projection)
        inside = [
            foreground_tokens(*both, features.grid) for both in zip(batch.objects, batch.void, strict=True)
        ]
        statistics, shifted = shift_statistics(
            values, pooled, torch.stack(inside).to(clip.device), features.grid
        )
        left_out = {"mSC": torch.zeros_like(shifted)}
        if ablate:
            rank = torch.rand(shifted.shape, generator=generator).argsort(1).argsort(1).to(clip.device)
            left_out |= {"mSC_kept": shifted, "mSC_random": rank < shifted.sum(1, keepdim=True)}
        table = pd.DataFrame({name: column.cpu().numpy() for name, column in statistics.items()})
        table.insert(0, "image_id", batch.ids)
        table["foreground"] = [_share(*both) for both in zip(batch.objects, batch.void, strict=True)]
        for name, channels_out in left_out.items():
            cells = without_channels(values, text, channels_out).unflatten(-1, features.grid)
            table[name] = _contrasts(cells, batch, dataset.classes)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _share(objects, void):
    return float((objects & ~void).sum() / (~void).sum())


def _contrasts(cells, batch, classes):
    """Mean contrast over the classes of each image. cells: [B, T, h, w]."""
    found = []
    for k, names in enumerate(batch.names):
        masks, void = batch.masks[k].to(cells.device), batch.void[k].to(cells.device)
        maps = itsm(cells[k : k + 1, [classes.index(name) for name in names]], masks.shape[1:])[0]
        void = void.expand_as(masks) if void.any() else None
        found.append(score_contrast(maps, masks, void).nanmean().item())
    return found


def all_rows(run):
    """`shift_rows` of every network and dataset of a run -> DataFrame with the columns dataset and network in
    front."""
    parts = []
    for network in run.networks:
        clip = run.load_clip(network)
        for name in run.datasets:
            rows = shift_rows(
                run.load_dataset(name), clip, workers=run.workers, batch_size=run.batch_size, seed=run.seed
            )
            rows.insert(0, "network", clip.title)
            rows.insert(0, "dataset", name)
            parts.append(rows)
    return pd.concat(parts, ignore_index=True).assign(shifted=shifted_share)


def shifted_share(rows):
    """Share of the channels that shift, in %."""
    return 100 * (rows["B2F"] + rows["F2B"]) / (rows["B2F"] + rows["F2B"] + rows["same"])


# ---------------------------------------------------------------------- tables


def _groups(rows):
    return rows.groupby(["dataset", "network"], sort=False)


def by_size(rows, ratio="foreground"):
    """Table 5 for one dataset and network: mean channel numbers by size. ratio: "foreground", or "background"
    for the inverted axis. One line a bin: size, images (share in %), B2F, F2B, same, and shifted (share of
    the channels in %)."""
    share = rows["foreground"] if ratio == "foreground" else 1 - rows["foreground"]
    lines = []
    for name, (low, high) in SIZES.items():
        part = rows[(share > low) & (share <= high)]
        means = {column: part[column].mean() if len(part) else np.nan for column in ("B2F", "F2B", "same")}
        lines.append(
            {"size": name, "images": 100 * len(part) / len(rows), **means, "shifted": shifted_share(means)}
        )
    return pd.DataFrame(lines)


def table_5(rows, ratio="foreground"):
    """`by_size` for every dataset and network."""
    parts = []
    for (name, network), part in _groups(rows):
        sizes = by_size(part, ratio)
        sizes.insert(0, "network", network)
        sizes.insert(0, "dataset", name)
        parts.append(sizes)
    return pd.concat(parts, ignore_index=True)


def dispersion_table(rows):
    """Fig. 4 in numbers: share of distinct positions (%) and mean distance from the max position (tokens),
    for every pooling."""
    lines = []
    for (name, network), part in _groups(rows):
        line = {"dataset": name, "network": network}
        line |= {f"distinct {p} (%)": 100 * part[f"distinct_{p}"].mean() for p in POOLINGS}
        lines.append(line | {f"distance {p}": part[f"distance_{p}"].mean() for p in POOLINGS[1:]})
    return pd.DataFrame(lines)


def rank_correlation(x, y, resamples=1000, seed=0):
    """Spearman's rank correlation with its 95 % bootstrap interval over images -> (rho, low, high)."""
    table = pd.DataFrame({"x": np.asarray(x), "y": np.asarray(y)}).dropna()
    ranks, rng = table.rank().to_numpy(), np.random.default_rng(seed)
    draws = rng.integers(0, len(ranks), (resamples, len(ranks)))
    sample = np.array([np.corrcoef(pd.DataFrame(ranks[d]).rank().to_numpy().T)[0, 1] for d in draws])
    return (np.corrcoef(ranks.T)[0, 1], *np.nanpercentile(sample, [2.5, 97.5]))


def link_table(rows):
    """Does shift explain the opposite map? Rank correlation of the share of shifted channels with mSC over
    images; mSC (%) with all channels, without the shifted, without as many random ones; the gain of the
    second over the last, paired."""
    lines = []
    for (name, network), part in _groups(rows):
        line = {"dataset": name, "network": network}
        line["rho"], line["rho_low"], line["rho_high"] = rank_correlation(part["shifted"], part["mSC"])
        line |= {column: 100 * part[column].mean() for column in ("mSC", "mSC_kept", "mSC_random")}
        _, line["kept_low"], line["kept_high"] = (100 * v for v in mean_interval(part["mSC_kept"]))
        gain = mean_interval(100 * (part["mSC_kept"] - part["mSC_random"]))
        lines.append(line | dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True)))
    return pd.DataFrame(lines)


def verdict(sizes, link):
    """Sentences computed from the tables: how many channels shift, whether that predicts the map, whether it
    explains it."""
    lines = []
    for _, r in link.iterrows():
        here = (sizes["dataset"] == r["dataset"]) & (sizes["network"] == r["network"])
        every = sizes[here & (sizes["size"] == "(0, 1]")].iloc[0]
        more = "B2F outnumbers F2B" if every["B2F"] > every["F2B"] else "F2B outnumbers B2F"
        words = (
            "images with more shift are less opposite",
            "images with more shift are more opposite",
            "shift does not predict mSC",
        )
        relation = in_words(round(r["rho_low"], 2), round(r["rho_high"], 2), *words)
        turned = in_words(r["kept_low"], r["kept_high"], "positive", "negative")
        against = in_words(r["gain_low"], r["gain_high"], undecided="not different from")
        lines.append(
            f"{r['dataset']}, {r['network']}: {more}; {relation}; without the shifted channels mSC is "
            f"{turned}, {against} "
            "that without as many random channels"
        )
    return "\n".join(lines)


# ---------------------------------------------------------------------- figures


@torch.no_grad()
def _places(clip, example):
    """(positions, pooled values, B2F and F2B kinds of every pooling against max, grid) of one image; kinds
    index `plots.SHIFT_COLOURS`."""
    features = clip.encode_image(clip.preprocess(example.image)[None])
    values, pooled = channels(features, clip.projection)
    place = {name: positions(values, value)[0].cpu() for name, value in pooled.items()}
    union = torch.from_numpy(np.any(list(example.masks.values()), axis=0))
    void = None if example.void is None else torch.from_numpy(example.void)
    foreground, kinds = foreground_tokens(union, void, features.grid)[None], {}
    for name in POOLINGS:
        b2f, f2b = semantic_shift(place["max"][None], place[name][None], foreground)
        kinds[name] = torch.where(b2f, 0, torch.where(f2b, 1, 2))[0]
    return place, {name: value[0].cpu() for name, value in pooled.items()}, kinds, features.grid


def figure_4(run, network, name, count=3):
    """Fig. 4 for the first images of a dataset: the points of max, average and attention pooling, then
    average against max."""
    clip, shown = run.load_clip(network), examples(run.load_dataset(name), count)
    figure, axes = plt.subplots(len(shown), 4, figsize=(9, 2.4 * len(shown)), squeeze=False)
    for row, example in zip(axes, shown, strict=True):
        place, pooled, kinds, grid = _places(clip, example)
        for ax, pooling in zip(row, POOLINGS, strict=False):
            title = f"{pooling}: {len(place[pooling].unique())} of {grid[0] * grid[1]} tokens"
            plots.point_map(example.image, place[pooling], pooled[pooling], grid, ax=ax, title=title)
        average = place["average"], pooled["average"], grid, kinds["average"]
        plots.point_map(example.image, *average, row[3], "average against max")
    figure.suptitle(f"{clip.title} on {name}: one point a channel", fontsize=10)
    figure.tight_layout()
    plots.shift_legend(figure)
    return figure


def figure_9(run, name, count=3):
    """Fig. 9: attention pooling's points coloured by their shift against max, beside CLIP's map, for every
    network."""
    shown, networks = examples(run.load_dataset(name), count), len(run.networks)
    figure, axes = plt.subplots(
        len(shown), 2 * networks, figsize=(4.2 * networks, 2.2 * len(shown)), squeeze=False
    )
    for k, network in enumerate(run.networks):
        clip = run.load_clip(network)
        explain = explainer("clip", clip)
        for row, example in zip(axes, shown, strict=True):
            place, pooled, kinds, grid = _places(clip, example)
            attention = place["attention"], pooled["attention"], grid, kinds["attention"]
            plots.point_map(example.image, *attention, row[2 * k], clip.title)
            class_name = next(iter(example.masks))
            heat = map_of(clip, explain, example.image, PROMPT.format(class_name))
            plots.overlay(example.image, heat, row[2 * k + 1], f"ITSM: {class_name}")
    figure.tight_layout()
    plots.shift_legend(figure)
    return figure


def link_figure(rows):
    """Scatter of the share of shifted channels and mSC, one panel a network, one colour a dataset."""
    networks = list(dict.fromkeys(rows["network"]))
    figure, axes = plt.subplots(
        1, len(networks), figsize=(3.2 * len(networks), 2.8), sharey=True, squeeze=False
    )
    for ax, network in zip(axes[0], networks, strict=True):
        for name, part in rows[rows["network"] == network].groupby("dataset", sort=False):
            ax.scatter(part["shifted"], 100 * part["mSC"], s=5, alpha=0.5, label=name)
        ax.axhline(0, color="gray", linestyle="--", linewidth=1)
        ax.set(title=network, xlabel="shifted channels (%)")
    axes[0, 0].set_ylabel("mSC of the image (%)")
    axes[0, -1].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure
