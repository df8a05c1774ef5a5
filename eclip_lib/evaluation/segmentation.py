"""Argmax segmentation, the measure of papers on training-free segmentation: a pixel takes the class whose map
is largest, and mIoU is the mean over classes of intersection over union, over the whole dataset.

Maps are compared before Eq. 5: its min-max would make those of different classes incomparable. Without
background (VOC 20) pixels of no class do not count; with it (VOC 21, COCO-Object) it is one class more, which
has several names. As SCLIP (Wang, Mei and Yuille, 2024) and its followers do, maps may be averaged over
sliding windows, and a class's text over a prompt ensemble."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES
from PIL import Image

from ..explainers.base import every_map
from ..networks.clip import PROMPT

BACKGROUND = "background"
LARGEST = 1 << 24  # floats of one piece of resized maps: 64 MB


class Segmentation:
    """Segments the images of a `Batch` with any explainer. background: whether it is one class more, by
    `dataset.background`'s names. slide: over `windows`. ensemble: OpenAI's 80 prompts for ImageNet."""

    @torch.no_grad()
    def __init__(self, clip, dataset, background=False, slide=False, ensemble=False):
        if background and BACKGROUND in dataset.classes:
            raise ValueError(
                f"{dataset.name} has a class of its own called background; measure argmax instead"
            )
        self.classes, self.clip, self.slide = [*dataset.classes, *[BACKGROUND] * background], clip, slide
        self.number = {name: k for k, name in enumerate(self.classes)}
        behind = [name for name in dataset.background if name not in self.number] if background else []
        names = [*dataset.classes, *behind]
        self.class_of = torch.arange(len(names)).clamp_max(len(dataset.classes))
        one = [PROMPT.format(name) for name in names]
        self.text = mean_prompt(clip, names) if ensemble else clip.encode_text(one)

    def rows(self, batch, explain, views):
        """(image, class, pixels of the intersection, of the union) of every image of a `Batch` and every
        class that is present or predicted. views: the batch's `Shared`, or one of each image's windows."""
        if self.slide:
            every = (every_map(explain, view, self.text) for view in views)
        else:
            every = every_map(explain, views, self.text)[:, None]
        for k, cells in enumerate(every):
            size = tuple(batch.void[k].shape)
            tiling = layout(size, self.clip.size) if self.slide else None
            predicted = self.class_of[segment(cells, size, tiling).cpu()]
            truth, counts = self._truth(batch.names[k], batch.masks[k])
            intersection, union = overlap(predicted, truth, counts & ~batch.void[k], len(self.classes))
            for c in union.nonzero()[:, 0].tolist():
                yield batch.ids[k], self.classes[c], int(intersection[c]), int(union[c])

    def _truth(self, names, masks):
        """Masks [n, H, W] -> (class of each pixel, whether it counts); where they overlap the smallest."""
        truth = torch.full(masks.shape[1:], self.number.get(BACKGROUND, -1))
        for k in masks.sum((1, 2)).argsort(descending=True, stable=True).tolist():
            truth[masks[k]] = self.number[names[k]]
        return truth, truth >= 0


def segment(cells: torch.Tensor, size: tuple[int, int], tiling=None) -> torch.Tensor:
    """Maps before Eq. 5 -> the number of the largest at every pixel, int64 [H, W]; of tied ones the first.

    cells: [1, T, h, w] of a whole image, or [n, T, h, w] of its n windows, which lie as tiling says (see
    `layout`). size: (H, W). Maps are resized (bilinear) some at a time: memory does not grow with T."""
    cells, largest = cells.float(), max(math.prod(size), math.prod(tiling[0]) if tiling else 0)
    possible = torch.arange(cells.shape[1], device=cells.device) if tiling else may_win(cells[0])
    best = torch.full(size, -torch.inf, device=cells.device)
    label = torch.zeros(size, dtype=torch.int64, device=cells.device)
    for part in possible.split(max(1, LARGEST // largest)):
        maps = _merge(cells[:, part], *tiling) if tiling else cells[:, part]
        value, which = _resize(maps, size)[0].max(0)
        label = torch.where(value > best, part[which], label)
        best = torch.maximum(best, value)
    return label


def may_win(cells):
    """Those of T maps [T, h, w] that can be largest somewhere after a bilinear resize -> their numbers. A
    resized value lies between the smallest and the largest of 2x2 cells, so a map whose largest is below some
    other's smallest, in all of them, cannot."""
    high, low = F.max_pool2d(cells, 2, 1, 1), -F.max_pool2d(-cells, 2, 1, 1)
    rounding = 1e-5 * cells.abs().max()
    return (high >= low.amax(0) - rounding).flatten(1).any(1).nonzero()[:, 0]


def overlap(predicted, truth, counts, classes):
    """Labels [H, W] and which pixels count -> pixels of (intersection, union), int64 [classes]."""
    predicted, truth = predicted[counts], truth[counts]
    right = truth[predicted == truth]
    right, predicted, truth = (torch.bincount(x, minlength=classes) for x in (right, predicted, truth))
    return right, predicted + truth - right


# ---------------------------------------------------------------------- sliding windows


def layout(size, window):
    """An image of (H, W) -> (size that its windows lie on, their upper left corners, their size): its short
    side is one and a half windows, and they overlap by half, the last ones by more."""
    scale = 1.5 * min(window) / min(size)
    whole = [min(max(round(n * scale), w), 9 * w) for n, w in zip(size, window, strict=True)]
    steps = [
        [min(k * (w // 2), n - w) for k in range(math.ceil((n - w) / (w // 2)) + 1)]
        for n, w in zip(whole, window, strict=True)
    ]
    return tuple(whole), [(y, x) for y in steps[0] for x in steps[1]], tuple(window)


def windows(image, preprocess, window):
    """A picture (PIL) -> its windows, prepared, [n, 3, *window]."""
    (height, width), corners, (h, w) = layout(image.size[::-1], window)
    large = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return torch.stack([preprocess(large.crop((x, y, x + w, y + h))) for y, x in corners])


def _merge(cells, whole, corners, window):
    """Maps of windows [n, T, h, w] -> [1, T, *whole], the mean where they overlap."""
    total = torch.zeros(1, cells.shape[1], *whole, device=cells.device)
    count = torch.zeros(whole, device=cells.device)
    for part, (y, x) in zip(cells.split(1), corners, strict=True):
        place = np.s_[..., y : y + window[0], x : x + window[1]]
        total[place] += _resize(part, window)
        count[place] += 1
    return total / count


def _resize(maps, size):
    """[1, T, h, w] -> [1, T, *size]. As T images of one channel: as T channels of one image their last bits,
    which decide ties, would depend on T."""
    maps = F.interpolate(maps.transpose(0, 1), tuple(size), mode="bilinear", align_corners=False)
    return maps.transpose(0, 1)


@torch.no_grad()
def mean_prompt(clip, names):
    """F_t [T, Ct] of each name in 80 prompts, such that φ_t of it points where the mean of the 80 normalised
    embeddings does: each weighs as one over its embedding's length, which φ_t, linear, carries through."""
    every = []
    for name in names:
        text = clip.encode_text([template(name) for template in OPENAI_IMAGENET_TEMPLATES])
        weight = 1 / clip.projection.text(text).norm(dim=-1, keepdim=True)
        every.append((weight * text).sum(0) / weight.sum())
    return torch.stack(every)
