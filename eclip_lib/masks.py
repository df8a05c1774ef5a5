"""What can stand in for the attention of a self-supervised model, and how well any of them finds objects (Fig. 2, notebook 02)."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from . import demo
from .attention import clip_attention, pixel_saliency, resize_attention
from .clip import stacked
from .discovery import examples
from .evaluation import batches
from .itsm import itsm
from .metrics import best_iou, score_contrast


class Own:
    """CLIP's own last-layer attention as a mask; a callable like `SelfAttention`."""

    def __init__(self, clip):
        self.clip, self.name = clip, f"{clip.network}, {clip.pretrained}"

    def __call__(self, images, grid=None):
        mean, std = (torch.tensor(s, device=images.device).view(3, 1, 1) for s in self.clip.statistics)
        own = tuple(self.clip.model.visual.grid_size)
        return resize_attention(clip_attention(self.clip, (images - mean) / std), own, grid or own)


def saliency(images, grid=(14, 14)):
    """Pixel saliency, see `attention.pixel_saliency`."""
    return pixel_saliency(images, grid)


def noise(images, grid=(14, 14)):
    """A random mask, the same one for the same image."""
    masks = []
    for image in images:
        seed = int((image[:, ::16, ::16] * 255).round().sum())
        masks.append(torch.rand(grid[0] * grid[1], generator=torch.Generator().manual_seed(seed)))
    return torch.stack(masks).to(images.device)


def centre(images, grid=(14, 14)):
    """A centre prior: one minus the distance from the middle."""
    y, x = (torch.linspace(-1, 1, n) for n in grid)
    return (1 - (y[:, None] ** 2 + x[None] ** 2).sqrt() / 2**0.5).flatten().expand(len(images), -1).to(images.device)


def attention_quality(masks, clip, dataset, workers=0, batch_size=50, resamples=1000, seed=0):
    """How well masks find the objects of any class, without labels (Fig. 2).

    masks: {name: callable of (images [B, 3, S, S] in [0, 1], grid) -> [B, N]}, on a 14x14 grid unless their own is known. Returns a
    DataFrame, one row an image and mask: IoU at the best threshold, contrast, and the share of the mask that lies on the foreground."""
    mean, std = (torch.tensor(s, device=clip.device).view(3, 1, 1) for s in clip.statistics)
    lines = []
    for batch in batches(dataset, clip, batch_size, workers, "masks against objects"):
        batch = [item for item in batch if item[2]]
        images = (stacked([prepared for _, prepared, *_ in batch], clip.device) * std + mean).clamp(0, 1)
        for name, mask in masks.items():
            with torch.no_grad():
                attention = mask(images)
            side = int(attention.shape[1] ** 0.5)
            for cells, (image_id, _, _, present, void) in zip(attention.unflatten(1, (side, side)), batch, strict=True):
                truth = present.any(0)
                scored = itsm(cells[None, None], truth.shape)[0].cpu()
                blank = None if void is None else void[None]
                mass = F.interpolate(cells[None, None], truth.shape, mode="nearest")[0, 0].cpu()
                mass = mass if void is None else mass * ~void
                lines.append((image_id, name, float(best_iou(scored, truth[None], blank)[0]),
                              float(score_contrast(scored, truth[None], blank)), float((mass * truth).sum() / mass.sum())))  # fmt: skip
    return pd.DataFrame(lines, columns=["image_id", "mask", "IoU", "contrast", "mass"])


def mask_table(quality, resamples=1000, seed=0):
    """Rows of `attention_quality` -> means in % with 95 % bootstrap intervals over images, one line a mask."""
    lines = []
    for name, part in quality.groupby("mask", sort=False):
        line = {"mask": name}
        for value in ("IoU", "contrast", "mass"):
            line[value], line[f"{value}_low"], line[f"{value}_high"] = _interval(part[value].to_numpy(), resamples, seed)
        lines.append(line)
    return pd.DataFrame(lines)


def mask_gain(quality, name, other, value="IoU", resamples=1000, seed=0):
    """Paired difference of two masks over the same images, in points, with its 95 % interval: (mean, low, high)."""
    wide = quality.pivot(index="image_id", columns="mask", values=value)
    return _interval((wide[name] - wide[other]).to_numpy(), resamples, seed)


def _interval(values, resamples, seed):
    values = values[~np.isnan(values)]
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    return 100 * values.mean(), *np.percentile(100 * values[draws].mean(1), [2.5, 97.5])


def mask_tables(quality, seed=0):
    """{dataset: rows of `attention_quality`} -> `mask_table` of each, one below the other."""
    return pd.concat([mask_table(part, seed=seed).assign(dataset=name) for name, part in quality.items()], ignore_index=True)


def mask_sheet(masks, clip, dataset, count=4):
    """Arguments of `plots.sheet`: image, all objects, every mask."""
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in clip.statistics)
    rows = []
    for example in examples(dataset, count):
        image = (clip.preprocess(example.image)[None] * std + mean).clamp(0, 1).to(clip.device)
        panels = [None, np.any(list(example.masks.values()), 0)]
        for mask in masks.values():
            cells = mask(image)
            side = int(cells.shape[1] ** 0.5)
            panels.append(itsm(cells.reshape(1, 1, side, side), example.image.size[::-1])[0, 0].cpu())
        rows.append((example.image, panels))
    return rows, ["image", "objects", *masks]


def gains(quality, learned, seed=0):
    """Learned masks against every other, paired over images: DataFrame of dataset, mask, than, network (where it is CLIP's own), IoU
    gained in points and its 95 % interval."""
    lines = []
    for name, part in quality.items():
        for mask in learned:
            for rival in (other for other in part["mask"].unique() if other != mask):
                than, _, network = rival.partition(" ") if rival.startswith("CLIP ") else (rival, "", "")
                value, low, high = mask_gain(part, mask, rival, seed=seed)
                lines.append(
                    {
                        "dataset": name,
                        "mask": mask,
                        "than": than,
                        "network": network,
                        "IoU": value,
                        "IoU_low": low,
                        "IoU_high": high,
                    }
                )
    return pd.DataFrame(lines)


def verdict(table):
    """`gains` in words: one sentence a learned mask and dataset."""
    lines = []
    for (name, mask), part in table.groupby(["dataset", "mask"], sort=False):
        words = {"above": [], "below": [], "undecided against": []}
        for _, row in part.iterrows():
            word = "above" if row["IoU_low"] > 0 else "below" if row["IoU_high"] < 0 else "undecided against"
            words[word].append(f"{row['than']} {row['network']}".strip())
        lines.append(f"{name}, IoU of {mask}: " + "; ".join(f"{word} {', '.join(who)}" for word, who in words.items() if who))
    return "\n".join(lines)


def training_figure(run):
    """How the demo's own self-supervised models came to attend: loss, and IoU of the attention with objects of validation scenes, by step.
    Returns the figure, or None where the run's masks were not trained by this repository."""
    cards = {}
    for name, network in run.masks.items():
        path = demo.FOLDER / f"{network}-seed0.json"
        if path.exists():
            cards[name] = json.loads(path.read_text())
    if not cards or run.pretrained is None:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.8))
    for k, (name, card) in enumerate(cards.items()):
        loss, watched = card["loss_every_50_steps"], card["attention_IoU_on_validation"]
        axes[0].plot(np.arange(1, len(loss) + 1) * 50, loss, color=f"C{k}", label=name)
        for column, (level, style) in enumerate(zip(watched["levels"], ("o-", "s--"), strict=True)):
            points = sorted((int(step), values[column]) for step, values in watched["by_step"].items())
            axes[1].plot(*zip(*points, strict=True), style, color=f"C{k}", markersize=4, label=f"{name}, {level}")
    axes[0].set(xlabel="step", ylabel="loss")
    axes[1].set(xlabel="step", ylabel="IoU of the attention (%)", ylim=(0, 100))
    for ax in axes:
        ax.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure
