"""What notebooks 02, 03 and 05 train and measure: masks against ground truth (Fig. 2), poolings and masks (Table 3), ECLIP itself."""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from .attention import clip_attention, pixel_saliency, resize_attention
from .cache import cache_features
from .datasets.pairs import load_pairs
from .discovery import MEASURES
from .evaluation import batches, evaluate, summarize
from .explainers import explainer
from .itsm import itsm
from .metrics import best_iou, score_contrast
from .training import train_pair, validation_loss

POOLINGS = {"attention": "attention", "average": "average", "max": "max"}  # Table 3's rows without a mask

# ---------------------------------------------------------------------------------------------------- masks


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
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in clip.statistics)
    lines = []
    for batch in batches(dataset, clip, batch_size, workers, "masks against objects"):
        batch = [item for item in batch if item[2]]
        images = (torch.stack([prepared for _, prepared, *_ in batch]) * std + mean).clamp(0, 1).to(clip.device)
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


# ---------------------------------------------------------------------------------------------------- training


def cached(run, clip, masks, where=None, reads=None):
    """The pooled features of the run's image-caption pairs (or `where`), under `out`/cache: other notebooks find them there."""
    settings = run.training
    return cache_features(
        clip, load_pairs(where or run.pairs), run.out / "cache", masks, settings["views"] if where is None else 1,
        settings["augment"] if where is None else None, seed=run.seed, workers=run.workers, reads=reads,
        description=f"{clip.network}: {where or run.pairs}",
    )  # fmt: skip


def train_rows(run, clip, cache, columns, seeds=None, init="random", on_epoch=None):
    """Train a pair for every column and seed with the run's settings -> ({(column, seed): `Projection`}, losses as a DataFrame)."""
    settings = {k: v for k, v in run.training.items() if k not in ("views", "augment")}
    pairs, losses = {}, []
    for column in columns:
        for seed in range(run.trainings) if seeds is None else seeds:
            pair, history = train_pair(clip, cache, column, seed=run.seed + seed, init=init, on_epoch=on_epoch, **settings)
            pairs[column, seed] = pair
            losses.append(history.assign(network=run.title(clip.network), pooling=column, seed=seed))
    return pairs, pd.concat(losses, ignore_index=True)


def held_out_losses(run, clip, cache, pairs):
    """Loss of trained pairs on held-out captions -> DataFrame of pooling, seed, loss."""
    lines = [
        {"pooling": column, "seed": seed, "loss": validation_loss(clip, cache, pair, column)}
        for (column, seed), pair in pairs.items()
    ]
    return pd.DataFrame(lines)


def score_pairs(run, clip, pairs):
    """Evaluate pairs of projections in one pass a dataset -> {(key of `pairs`, dataset): rows of `evaluate`}; CLIP's own under "CLIP"."""
    methods = {"CLIP": explainer("clip", clip), **{key: explainer("eclip", clip, projection=p) for key, p in pairs.items()}}
    rows = {}
    for name in run.datasets:
        found = evaluate(
            methods, run.load_dataset(name), clip, run.workers, run.batch_size, description=f"{clip.network} on {name}"
        )
        rows |= {(key, name): part for key, part in found.items()}
    return rows


def row_name(column):
    """A column of the cache as Table 3 calls it: "max, DINO's mask"."""
    kind, _, mask = column.partition(":")
    return f"max, mask: {mask}" if kind == "masked_max" else kind


def seed_table(run, clip, rows):
    """One line a dataset, pooling and seed: `summarize`'s measures in %. rows: of `score_pairs`, keys (column, seed)."""
    lines = []
    for (key, name), part in rows.items():
        if key != "CLIP":
            line = {"dataset": name, "network": run.title(clip.network), "pooling": row_name(key[0]), "seed": key[1]}
            lines.append(line | summarize(part, seed=run.seed)[MEASURES].to_dict())
    return pd.DataFrame(lines)


def over_seeds(table, by=("dataset", "network", "pooling")):
    """Mean over seeds with the smallest and the largest, for mIoU and mSC; `seeds` says how many."""
    groups = table.groupby(list(by), sort=False)
    columns = {"seeds": ("mIoU", "size")}
    for value in ("mIoU", "mSC"):
        columns |= {value: (value, "mean"), f"{value}_low": (value, "min"), f"{value}_high": (value, "max")}
    return groups.agg(**columns).reset_index()
