"""What notebook 04 measures and draws: Figs. 4 and 9, Table 5, and the step from shift to the opposite map."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from . import demo, plots
from .clip import load_clip
from .controlled import conditions
from .discovery import examples, maps_of
from .shift import POOLINGS, by_size, channels, foreground_tokens, positions, rank_correlation, semantic_shift, shift_rows


@torch.no_grad()
def _places(clip, example):
    """(positions, pooled values, B2F and F2B kinds of every pooling against max) of one image; kinds index `plots.SHIFT_COLOURS`."""
    features = clip.encode_image(clip.preprocess(example.image)[None])
    values, pooled = channels(features, clip.projection)
    place = {name: positions(values, value) for name, value in pooled.items()}
    union = torch.from_numpy(np.any(list(example.masks.values()), axis=0))
    void = None if example.void is None else torch.from_numpy(example.void)
    foreground, kinds = foreground_tokens(union, void, features.grid)[None], {}
    for name in POOLINGS:
        b2f, f2b = semantic_shift(place["max"].cpu(), place[name].cpu(), foreground)
        kinds[name] = torch.where(b2f, 0, torch.where(f2b, 1, 2))[0]
    return {n: p[0].cpu() for n, p in place.items()}, {n: p[0].cpu() for n, p in pooled.items()}, kinds, features.grid


def figure_4(run, network, name, count=3):
    """Fig. 4 for the first images of a dataset: the points of max, average and attention pooling, then average against max."""
    clip, shown = run.load_clip(network), examples(run.load_dataset(name), count)
    figure, axes = plt.subplots(len(shown), 4, figsize=(9, 2.4 * len(shown)), squeeze=False)
    for row, example in zip(axes, shown, strict=True):
        place, pooled, kinds, grid = _places(clip, example)
        for ax, pooling in zip(row, POOLINGS, strict=False):
            title = f"{pooling}: {len(place[pooling].unique())} of {grid[0] * grid[1]} tokens"
            plots.point_map(example.image, place[pooling], pooled[pooling], grid, ax=ax, title=title)
        plots.point_map(
            example.image, place["average"], pooled["average"], grid, kinds["average"], row[3], "average against max"
        )
    figure.suptitle(f"{run.title(network)} on {name}: one point a channel", fontsize=10)
    figure.tight_layout()
    plots.shift_legend(figure)
    return figure


def figure_9(run, name, count=3):
    """Fig. 9: attention pooling's points coloured by their shift against max, beside CLIP's map, for every network."""
    shown = examples(run.load_dataset(name), count)
    figure, axes = plt.subplots(
        len(shown), 2 * len(run.networks), figsize=(4.2 * len(run.networks), 2.2 * len(shown)), squeeze=False
    )
    for k, network in enumerate(run.networks):
        clip = run.load_clip(network)
        for row, example in zip(axes, shown, strict=True):
            place, pooled, kinds, grid = _places(clip, example)
            plots.point_map(
                example.image, place["attention"], pooled["attention"], grid, kinds["attention"], row[2 * k], run.title(network)
            )
            class_name, heat = next(iter(maps_of(clip, example).items()))
            plots.overlay(example.image, heat, row[2 * k + 1], f"ITSM: {class_name}")
    figure.tight_layout()
    plots.shift_legend(figure)
    return figure


def all_rows(run):
    """`shift_rows` of every network and dataset of a run -> DataFrame with the columns dataset and network in front."""
    parts = []
    for network in run.networks:
        clip = run.load_clip(network)
        for name in run.datasets:
            rows = shift_rows(run.load_dataset(name), clip, workers=run.workers, batch_size=run.batch_size, seed=run.seed)
            rows.insert(0, "network", run.title(network))
            rows.insert(0, "dataset", name)
            parts.append(rows)
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(shifted=(rows["B2F"] + rows["F2B"]) / (rows["B2F"] + rows["F2B"] + rows["same"]) * 100)


def _groups(rows):
    return rows.groupby(["dataset", "network"], sort=False)


def table_5(rows, ratio="foreground"):
    """`by_size` for every dataset and network."""
    parts = [by_size(part, ratio).assign(dataset=name, network=network) for (name, network), part in _groups(rows)]
    table = pd.concat(parts, ignore_index=True)
    return table[["dataset", "network", *[c for c in table if c not in ("dataset", "network")]]]


def dispersion_table(rows):
    """Fig. 4 in numbers: share of distinct positions (%) and mean distance from the max position (tokens), for every pooling."""
    lines = []
    for (name, network), part in _groups(rows):
        line = {"dataset": name, "network": network}
        line |= {f"distinct {p} (%)": 100 * part[f"distinct_{p}"].mean() for p in POOLINGS}
        lines.append(line | {f"distance {p}": part[f"distance_{p}"].mean() for p in POOLINGS[1:]})
    return pd.DataFrame(lines)


def _interval(values, resamples=1000, seed=0):
    values = np.asarray(values.dropna())
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    return values.mean(), *np.percentile(values[draws].mean(1), [2.5, 97.5])


def link_table(rows):
    """Does shift explain the opposite map? Rank correlation of the share of shifted channels with mSC over images; mSC (%) with all
    channels, without the shifted, without as many random ones; the gain of the first over the last, paired."""
    lines = []
    for (name, network), part in _groups(rows):
        line = {"dataset": name, "network": network}
        line["rho"], line["rho_low"], line["rho_high"] = rank_correlation(part["shifted"], part["mSC"])
        line |= {column: 100 * part[column].mean() for column in ("mSC", "mSC_kept", "mSC_random")}
        line["kept_low"], line["kept_high"] = (100 * v for v in _interval(part["mSC_kept"])[1:])
        gain = 100 * (part["mSC_kept"] - part["mSC_random"])
        line["gain"], line["gain_low"], line["gain_high"] = _interval(gain)
        lines.append(line)
    return pd.DataFrame(lines)


def controlled_table(run, count=100):
    """Shifted channels (%) and mSC (%) in every condition of `controlled.conditions`, with 95 % intervals over scenes.

    Rendered scenes say nothing about a network of photographs, so where the run has no demo network the bundled ones answer."""
    made, lines = conditions(count), []
    own = [network for network in run.networks if network in demo.NETWORKS]
    for network in own or demo.NETWORKS:
        clip = run.load_clip(network) if own else load_clip(network, device=run.device)
        for experiment, datasets in made.items():
            for condition, dataset in datasets.items():
                rows = shift_rows(dataset, clip, batch_size=run.batch_size, ablate=False)
                line = {"experiment": experiment, "condition": condition, "network": run.title(network) if own else network}
                shares = 100 * (rows["B2F"] + rows["F2B"]) / (rows["B2F"] + rows["F2B"] + rows["same"])
                for value, column in (("shifted", shares), ("mSC", 100 * rows["mSC"])):
                    line[value], line[f"{value}_low"], line[f"{value}_high"] = _interval(column)
                lines.append(line)
    return pd.DataFrame(lines)


def link_figure(rows):
    """Scatter of the share of shifted channels and mSC, one panel a network, one colour a dataset."""
    networks = list(dict.fromkeys(rows["network"]))
    figure, axes = plt.subplots(1, len(networks), figsize=(3.2 * len(networks), 2.8), sharey=True, squeeze=False)
    for ax, network in zip(axes[0], networks, strict=True):
        for name, part in rows[rows["network"] == network].groupby("dataset", sort=False):
            ax.scatter(part["shifted"], 100 * part["mSC"], s=5, alpha=0.5, label=name)
        ax.axhline(0, color="gray", linestyle="--", linewidth=1)
        ax.set(title=network, xlabel="shifted channels (%)")
    axes[0, 0].set_ylabel("mSC of the image (%)")
    axes[0, -1].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure


def verdict(table, link):
    """Sentences computed from the tables: how many channels shift, whether that predicts the map, whether it explains it."""
    lines = []
    for _, r in link.iterrows():
        all_sizes = table[
            (table["dataset"] == r["dataset"]) & (table["network"] == r["network"]) & (table["size"] == "(0, 1]")
        ].iloc[0]
        direction = "B2F outnumbers F2B" if all_sizes["B2F"] > all_sizes["F2B"] else "F2B outnumbers B2F"
        relation = (
            "images with more shift are more opposite" if round(r["rho_high"], 2) < 0
            else "images with more shift are less opposite" if round(r["rho_low"], 2) > 0
            else "shift does not predict mSC"
        )  # fmt: skip
        turned = "positive" if r["kept_low"] > 0 else "negative" if r["kept_high"] < 0 else "undecided"
        against = "above" if r["gain_low"] > 0 else "below" if r["gain_high"] < 0 else "not different from"
        lines.append(
            f"{r['dataset']}, {r['network']}: {direction}; {relation}; without the shifted channels mSC is {turned}, {against} "
            "that without as many random channels"
        )
    return "\n".join(lines)
