"""Notebook 04's pictures: Figs. 4 and 9, and shift against mSC."""

import matplotlib.pyplot as plt
import numpy as np
import torch

from .. import plots
from ..datasets import examples
from ..explainers import explainer, map_of
from ..networks.clip import PROMPT
from ..shift import POOLINGS, channels, foreground_tokens, positions, semantic_shift


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
            heat, mask, words = plots.judged(example, class_name, heat)
            plots.overlay(example.image, heat, row[2 * k + 1], class_name, mask=mask, words=words)
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
