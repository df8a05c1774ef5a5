"""Notebook 04's pictures: Figs. 4 and 9, and shift against contrast."""

import math
import textwrap

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
    """({pooling: what `plots.point_map` takes of one image: its channels' positions, pooled values, grid, and
    kinds of shift against max}, mask of all objects)."""
    features = clip.encode_image(clip.preprocess(example.image)[None])
    values, pooled = channels(features, clip.projection)
    place = {name: positions(values, value)[0].cpu() for name, value in pooled.items()}
    union = np.any(list(example.masks.values()), axis=0)
    void = None if example.void is None else torch.from_numpy(example.void)
    foreground, points = foreground_tokens(torch.from_numpy(union), void, features.grid)[None], {}
    for name in POOLINGS:
        b2f, f2b = semantic_shift(place["max"][None], place[name][None], foreground)
        kinds = torch.where(b2f, 0, torch.where(f2b, 1, 2))[0]
        points[name] = place[name], pooled[name][0].cpu(), features.grid, kinds
    return points, union


def figure_4(run, network, name):
    """Fig. 4 for the first images of a dataset: the points of max, average and attention pooling, then
    average against max."""
    clip, shown = run.load_clip(network), examples(run.load_dataset(name), 3)
    figure, axes = plots.grid(len(shown), 4, (9, 2.4 * len(shown)))
    titles = [*(f"{pooling}: " for pooling in POOLINGS), "average against max"]
    for row, example in zip(axes, shown, strict=True):
        points, union = _places(clip, example)
        for ax, pooling, title in zip(row, POOLINGS, titles, strict=False):
            place, values, grid, _ = points[pooling]
            title += f"{len(place.unique())} of {math.prod(grid)} tokens"
            plots.point_map(example.image, place, values, grid, mask=union, ax=ax, title=title)
        plots.point_map(example.image, *points["average"], union, row[3], titles[3])
        titles = [""] * 4  # above the first row alone
    figure.suptitle(f"{clip.title} on {name}: one point a channel", fontsize=10)
    plots.shift_legend(figure)
    return figure


def figure_9(run, name, count=3):
    """Fig. 9: attention pooling's points by their shift against max, beside CLIP's map of a text, a network
    each."""
    shown, networks = examples(run.load_dataset(name), count), len(run.networks)
    figure, axes = plots.grid(len(shown), 2 * networks, (3.2 * networks + 0.6, 1.7 * len(shown) + 0.6))
    for k, network in enumerate(run.networks):
        clip = run.load_clip(network)
        explain = explainer("clip", clip)
        titles = clip.title, "CLIP's map"
        for row, example in zip(axes, shown, strict=True):
            (points, union), class_name = _places(clip, example), next(iter(example.masks))
            text = PROMPT.format(class_name)
            plots.point_map(example.image, *points["attention"], union, row[2 * k], titles[0])
            heat, mask, words = plots.judged(example, class_name, map_of(clip, explain, example.image, text))
            plots.overlay(example.image, heat, row[2 * k + 1], titles[1], mask=mask, words=words)
            row[0].set_ylabel(textwrap.fill(text, 14), fontsize=8)
            titles = "", ""  # above the first row alone
    figure.suptitle(f"attention pooling against max on {name}; {run.weights}", fontsize=10)
    plots.colour_bar(figure, axes)
    plots.shift_legend(figure)
    return figure


def link_figure(rows):
    """Scatter of the share of shifted channels and an image's contrast, one panel a network, one colour a
    dataset."""
    networks = rows["network"].unique()
    size = (3.2 * len(networks), 2.8)
    figure, axes = plt.subplots(1, len(networks), figsize=size, sharey=True, squeeze=False)
    for ax, network in zip(axes[0], networks, strict=True):
        for name, part in rows[rows["network"] == network].groupby("dataset", sort=False):
            ax.scatter(part["shifted"], 100 * part["mSC"], s=5, alpha=0.5, label=name)
        ax.axhline(0, color="gray", linestyle="--", linewidth=1)
        ax.set(title=network, xlabel="shifted channels (%)")
    axes[0, 0].set_ylabel("contrast of an image (%)")
    axes[0, -1].legend(fontsize=7, markerscale=2, loc="lower left", bbox_to_anchor=(1, 0), frameon=False)
    figure.tight_layout()
    return figure
