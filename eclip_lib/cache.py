"""The pooled-feature cache: one pass over image-caption pairs writes every pooling at once (design: §3.3, Eq. 7).

CLIP is locked and pooling comes before the projection, so a training pair is two vectors, the pooled image feature and F_t.
Shards are safetensors files written atomically, each with a `.json` beside it (count, skipped images, checksum); the folder's name
is the hash of the configuration, so another configuration never meets old shards."""

import errno
import hashlib
import json
import os
import random
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import timm.data
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from .clip import stacked
from .pooling import pool

GROUND_TRUTH = "ground truth"
FORMAT = 2  # of the shards and their notes
TOKENS = "tokens/"  # columns of a ResNet that pool the tokens after the attention pool, not the last stage's feature map


@dataclass(frozen=True)
class Cache:
    """A finished cache: `folder`, `about` (its configuration) and `shards`. `columns` names the poolings."""

    folder: Path
    about: dict
    shards: list[Path]

    @property
    def columns(self):
        return self.about["columns"]

    def __len__(self):
        return sum(json.loads(path.with_suffix(".json").read_text())["pairs"] for path in self.shards)

    def read(self, shard, column, view=None):
        """(pooled [n, C], text [n, Ct]) float32 of one shard, of all views or of one. Raises ValueError for a column that was not cached."""
        if column not in self.columns:
            raise ValueError(f"{self.folder} holds {self.columns}, not {column!r}")
        rows = slice(None)
        if view is not None:  # a shard holds view after view
            counts = json.loads(shard.with_suffix(".json").read_text())["views"]
            rows = slice(sum(counts[:view]), sum(counts[: view + 1]))
        with safe_open(str(shard), "pt") as file:
            return file.get_slice(column)[rows], file.get_slice("text")[rows]


def augmentation(clip, kind="deit"):
    """PIL -> float32 [3, S, S], CLIP's normalisation. "deit": timm's DeiT recipe (random resized crop, flip, RandAugment, random
    erasing), which reference [35] of the paper stands for; None: CLIP's plain preprocessing."""
    if kind is None:
        return clip.preprocess
    mean, std = clip.statistics
    transform = timm.data.create_transform(
        clip.image_size, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic", re_prob=0.25,
        re_mode="pixel", mean=mean, std=std,
    )  # fmt: skip
    for op in next(step for step in transform.transforms if hasattr(step, "ops")).ops:
        if op.name.startswith("Posterize"):
            op.level_fn = partial(_some_bits, op.level_fn)
    return transform


def _some_bits(level_fn, level, hparams):
    """Bits that RandAugment keeps of a channel: at its strongest none, which Pillow refuses; then one."""
    return (max(1, *level_fn(level, hparams)),)


class PairViews(TorchDataset):
    """One view of a part after another as (image, caption, mask or False), or None where an image is broken; each is seeded by its own key, so that
    workers and restarts make no difference. masks: whether the source's own masks come along."""

    def __init__(self, source, items, transform, seed, views, masks=False):
        self.source, self.items, self.transform, self.seed, self.views = source, items, transform, seed, views
        self.masks = masks

    def __len__(self):
        return len(self.items) * self.views

    def __getitem__(self, index):
        view, item = divmod(index, len(self.items))
        key, payload, caption = self.items[item]
        number = int.from_bytes(hashlib.sha256(f"{self.seed} {key} {view}".encode()).digest()[:4], "big")
        random.seed(number), np.random.seed(number), torch.manual_seed(number)
        try:
            image = self.source.open(payload)
        except Exception:  # a web dataset has broken images: skipped and counted
            return None
        return self.transform(image), caption, self.masks and self.source.mask(payload)


def _poolings(features, attentions):
    masked = {f"masked_max:{name}": pool(features, "masked_max", attention) for name, attention in attentions.items()}
    return pool(features, ["average", "max"]) | masked


@torch.no_grad()
def _encode(clip, backbones, source, part, transform, about, workers):
    """-> ({column: [n, C]}, how many pairs of each view, how many were skipped)."""
    items, columns, counts = list(source.read(part)), {}, [0] * about["views"]
    views = PairViews(source, items, transform, about["seed"], about["views"], GROUND_TRUTH in backbones)
    mean, std = (torch.tensor(s, device=clip.device).view(3, 1, 1) for s in clip.statistics)
    for number, batch in enumerate(DataLoader(views, about["batch_size"], num_workers=workers, collate_fn=list)):
        for place, pair in enumerate(batch, number * about["batch_size"]):
            counts[place // len(items)] += pair is not None
        good = [pair for pair in batch if pair is not None]
        if not good:
            continue
        images, captions, truths = zip(*good, strict=True)
        images = stacked(images, clip.device)
        features = clip.encode_image(images)
        attentions = {}
        for name, backbone in backbones.items():
            if name == GROUND_TRUTH:
                share = F.adaptive_avg_pool2d(torch.stack(truths).float(), features.grid)
                attentions[name] = share.flatten(1).to(clip.device)
            else:
                attentions[name] = backbone(images * std + mean, features.grid)
        rows = {"attention": features.class_token, **_poolings(features, attentions)}
        if features.feature_map is not None:
            tokens = _poolings(replace(features, feature_map=None), attentions)
            rows |= {TOKENS + name: pooled for name, pooled in tokens.items()}
        rows["text"] = clip.encode_text(list(captions))
        for name, tensor in rows.items():
            columns.setdefault(name, []).append(tensor.float().cpu())
    columns = {name: torch.cat(parts).contiguous() for name, parts in columns.items()}
    return columns, counts, len(views) - sum(counts)


def write(path, data):
    """Write bytes atomically. Raises OSError that says so where the disk is full."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise OSError(
                error.errno, f"no room for {path.name} in {path.parent}: free some space and run again, it resumes"
            ) from error
        raise


def intact(shard):
    """Whether a shard and its note are there and agree; a damaged one is named."""
    note = shard.with_suffix(".json")
    if not (shard.exists() and note.exists()):
        return False
    if hashlib.sha256(shard.read_bytes()).hexdigest() == json.loads(note.read_text())["sha256"]:
        return True
    warnings.warn(f"{shard} is damaged; it is made again", stacklevel=3)
    return False


def plan(clip, source, folder, masks=None, views=1, augment="deit", seed=0, batch_size=64):
    """The configuration of a cache and its folder under `folder`, which is made -> (folder, about). Raises ValueError."""
    masks = masks or {}
    if GROUND_TRUTH in masks and (augment is not None or not hasattr(source, "mask")):
        raise ValueError("ground-truth masks need a source that has them (scenes) and augment=None")
    pooled = ["average", "max", *(f"masked_max:{name}" for name in masks)]
    about = {
        "format": FORMAT, **identity(clip), "pairs": source.about,
        "masks": {name: [getattr(backbone, "name", name), digest(backbone)] for name, backbone in masks.items()},
        "columns": ["attention", *pooled, *(TOKENS + name for name in pooled if clip.pools == "feature_map")],
        "reads": clip.pools, "views": views, "augment": augment, "seed": seed, "batch_size": batch_size,
    }  # fmt: skip
    text = json.dumps(about, sort_keys=True, default=list)
    folder = Path(folder, hashlib.sha256(text.encode()).hexdigest()[:12])
    folder.mkdir(parents=True, exist_ok=True)
    return folder, json.loads(text)


def make_shard(clip, source, masks, folder, about, number, workers=0):
    """Encode part `number` of a source into its shard, unless that is there and intact: the unit that is resumed and handed to a worker."""
    shard = Path(folder, f"{number:05d}.safetensors")
    if not intact(shard):
        transform = augmentation(clip, about["augment"])
        columns, counts, skipped = _encode(clip, masks, source, source.parts[number], transform, about, workers)
        data = save(columns)
        note = {"pairs": sum(counts), "views": counts, "skipped": skipped, "sha256": hashlib.sha256(data).hexdigest()}
        write(shard, data)
        write(shard.with_suffix(".json"), json.dumps(note).encode())
    return shard


def finish(folder, about, shards):
    """Write the manifest of finished shards -> `Cache`; shards without a readable image are left out of it. Raises ValueError where none has one."""
    notes = [json.loads(shard.with_suffix(".json").read_text()) for shard in shards]
    if not any(note["pairs"] for note in notes):
        raise ValueError(f"no image of {about['pairs']} could be read: {sum(note['skipped'] for note in notes)} were skipped")
    manifest = {**about, "skipped": sum(note["skipped"] for note in notes), "shards": [shard.name for shard in shards]}
    write(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    return Cache(folder, manifest, [shard for shard, note in zip(shards, notes, strict=True) if note["pairs"]])


def cache_features(
    clip, source, folder, masks=None, views=1, augment="deit", seed=0, batch_size=64, workers=0, description=None
):
    """Encode every pair of a source once -> `Cache` with the columns "attention", "average", "max", "masked_max:<mask>"; on a ResNet these
    pool the last stage's feature map, and "tokens/average" and so on the tokens after the attention pool.

    source: see `datasets.pairs`. masks: {name: SelfAttention, or another module of (images in [0, 1], grid) -> [B, N]}, applied to the
    same view; under the name "ground truth" (any value) the source's own masks, without augmentation only. views: augmented copies of
    each image, one an epoch in turn.
    Resumes: whole shards are kept, missing or damaged ones are made. Raises OSError where the disk is full, ValueError."""
    masks = masks or {}
    folder, about = plan(clip, source, folder, masks, views, augment, seed, batch_size)
    numbers = tqdm(range(len(source.parts)), desc=description or "caching features", unit="shard")
    return finish(folder, about, [make_shard(clip, source, masks, folder, about, number, workers) for number in numbers])


def identity(clip):
    """What decides a CLIP's features: network, weights, their digest, input size and precision, as JSON's types."""
    return {"network": clip.network, "weights": clip.pretrained, "model": digest(clip.model), "input": list(clip.size),
            "precision": clip.precision}  # fmt: skip


def digest(module):
    """Sixteen hexadecimal digits that stand for a module's weights; of anything else, the digits of nothing."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()) if isinstance(module, torch.nn.Module) else ():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
