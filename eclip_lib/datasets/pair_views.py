"""Views of image-caption pairs as training sees them: augmented, seeded by their own keys, and what had to be
left out."""

import hashlib
import random
from functools import partial

import numpy as np
import torch
from torch.utils.data import Dataset

from .. import files

EMPTY = "with an empty caption"
CAPTIONS = "of a shard the .txt, or the field caption of .json, beside a picture of its name is read"


def augmentation(clip, kind="deit"):
    """PIL -> float32 [3, S, S], CLIP's normalisation. "deit": timm's DeiT recipe (random resized crop, flip,
    RandAugment, random erasing), which reference [35] of the paper stands for; None: CLIP's plain
    preprocessing."""
    if kind is None:
        return clip.preprocess
    if kind != "deit":
        raise ValueError(f"augment is 'deit' or None, not {kind!r}")
    import timm.data

    mean, std = clip.statistics
    transform = timm.data.create_transform(
        clip.image_size,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        mean=mean,
        std=std,
    )
    for op in next(step for step in transform.transforms if hasattr(step, "ops")).ops:
        if op.name.startswith("Posterize"):
            op.level_fn = partial(_some_bits, op.level_fn)
    return transform


def _some_bits(level_fn, level, hparams):
    """Bits that RandAugment keeps of a channel: at its strongest none, which Pillow refuses; then one."""
    return (max(1, *level_fn(level, hparams)),)


class PairViews(Dataset):
    """View `view` of a part as (image, caption, mask or False), or None where an image is broken; each is
    seeded by its own key, so that workers and restarts make no difference. masks: whether the source's own
    masks come along."""

    def __init__(self, source, items, transform, seed, view=0, masks=False):
        self.source, self.items, self.transform, self.seed, self.view = source, items, transform, seed, view
        self.masks = masks

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        key, payload, caption = self.items[index]
        word = f"{self.seed} {key} {self.view}".encode("utf-8", "surrogateescape")  # a tar's names are bytes
        number = int.from_bytes(hashlib.sha256(word).digest()[:4], "big")
        random.seed(number), np.random.seed(number)
        torch.default_generator.manual_seed(number)  # `torch.manual_seed` formats a traceback for each device
        try:
            image = self.source.open(payload)
        except (OSError, ValueError):  # a web dataset has broken images: left out and counted
            return None
        return self.transform(image), caption, self.masks and self.source.mask(payload)


class LeftOut:
    """What pairs could not be used, by reason: how many, and the first few places. `place`: the place that a
    key stands for, in words for a reader."""

    def __init__(self, place=str):
        self.reasons, self.place = {}, place

    def add(self, reason, key):
        self.merge({reason: {"count": 1, "first": [self.place(key)]}})

    def merge(self, reasons):
        for reason, about in reasons.items():
            found = self.reasons.setdefault(reason, {"count": 0, "first": []})
            found["count"] += about["count"]
            found["first"] = [*found["first"], *about["first"]][:3]

    @property
    def count(self):
        return sum(about["count"] for about in self.reasons.values())

    @property
    def worst(self):
        """The most frequent reason, in words."""
        reason = max(self.reasons, key=lambda reason: self.reasons[reason]["count"])
        return self._told(reason) + (f"; {CAPTIONS}" if reason == EMPTY else "")

    def _told(self, reason):
        found = self.reasons[reason]
        return f"{found['count']} {reason} ({files.few(found['first'], found['count'])})"

    def __str__(self):
        return "; ".join(map(self._told, self.reasons))


def usable(items, left_out):
    """The (key, payload, caption) that have both a picture and a caption; the others go to `left_out`."""
    good = []
    for key, payload, caption in items:
        if payload is None:
            left_out.add("without a picture", key)
        elif payload is False:
            left_out.add("with several pictures", key)
        elif caption is None:
            left_out.add("with a caption that is not UTF-8", key)
        elif not caption:
            left_out.add(EMPTY, key)
        else:
            good.append((key, payload, caption))
    return good
