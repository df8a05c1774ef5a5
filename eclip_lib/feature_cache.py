"""The pooled-feature cache: one pass over image-caption pairs writes every pooling at once (§3.3, Eq. 7).

CLIP is locked and pooling comes before the projection, so a training pair is two vectors, the pooled image
feature and F_t. Shards are safetensors files written atomically, each with a `.json` beside it (counts, what
was left out, checksum, the state of what it was made from); the folder's name is the hash of the
configuration, so another configuration never meets old shards."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save

from . import files
from .datasets.pair_views import LeftOut, PairViews, augmentation, usable
from .method import METHODS, pool
from .networks.attention import mask_identity
from .networks.clip import loaded, to_batch
from .progress import tqdm

GROUND_TRUTH = "ground truth"
FORMAT = 3  # of the shards and their notes
DECIDES = ("method.py", "feature_cache.py", "networks", "datasets")  # the code that decides features


@dataclass(frozen=True)
class Pooling:
    """One way to make one vector of an image's tokens, a column of the cache. method: of `method.METHODS`.
    mask: the name of the mask of "masked_max". reads: "tokens" on a ResNet, where the tokens after the
    attention pool are pooled, not the last stage's feature map; else None."""

    method: str
    mask: str | None = None
    reads: str | None = None

    def __post_init__(self):
        if self.method not in METHODS or (self.method == "masked_max") != (self.mask is not None):
            raise ValueError(
                f"no pooling {str(self)!r}; there are {', '.join(METHODS)}, the last as masked_max:NAME "
                "of a mask"
            )

    def __str__(self):
        return (f"{self.reads}/" if self.reads else "") + self.method + (f":{self.mask}" if self.mask else "")

    @classmethod
    def of(cls, text: "str | Pooling") -> "Pooling":
        """The pooling that `str` wrote: "average", "masked_max:DINO", "tokens/max"."""
        if isinstance(text, Pooling):
            return text
        reads, _, rest = text.partition("/") if text.startswith("tokens/") else (None, "", text)
        method, _, mask = rest.partition(":")
        return cls(method, mask or None, reads)

    @property
    def label(self):
        """As Table 3 calls it: "max, mask: DINO"."""
        return f"max, mask: {self.mask}" if self.mask else self.method


@dataclass(frozen=True)
class Cache:
    """A finished cache: `folder`, `about` (its configuration), `shards` and their `notes`."""

    folder: Path
    about: dict
    shards: list[Path]
    notes: list[dict]

    @property
    def columns(self) -> list[Pooling]:
        return [Pooling.of(column) for column in self.about["columns"]]

    @property
    def identity(self):
        """Digest of all that it holds."""
        return files.digest([self.about["model"], [note["sha256"] for note in self.notes]])

    def __len__(self):
        return sum(note["pairs"] for note in self.notes)

    def read(self, shard, column, view=None):
        """(pooled [n, C], text [n, Ct]) float32 of one shard, of all views or of one. Raises ValueError for a
        column that was not cached."""
        if str(column) not in self.about["columns"]:
            raise ValueError(f"{self.folder} holds the poolings {self.about['columns']}, not {str(column)!r}")
        rows = slice(None)
        if view is not None:  # a shard holds view after view
            counts = self.notes[self.shards.index(shard)]["views"]
            rows = slice(sum(counts[:view]), sum(counts[: view + 1]))
        with safe_open(str(shard), "pt") as file:
            return file.get_slice(str(column))[rows], file.get_slice("text")[rows]


# ---------------------------------------------------------------------- one part, one shard


def pooled_columns(features, attentions):
    """Every pooling of a batch: `ImageFeatures` and {mask name: A [B, N]} -> {column: [B, C]}."""
    rows = {"attention": features.class_token}
    readings = [(None, features)]
    if features.feature_map is not None:
        readings.append(("tokens", replace(features, feature_map=None)))
    for reads, part in readings:
        for method in ("average", "max"):
            rows[str(Pooling(method, reads=reads))] = pool(part, method)
        for name, attention in attentions.items():
            rows[str(Pooling("masked_max", name, reads))] = pool(part, "masked_max", attention)
    return rows


@torch.no_grad()
def encode_pairs(clip, masks, source, part, about, workers=0):
    """One part of a source -> ({column: [n, C]}, how many pairs of each view, `LeftOut`)."""
    left_out = LeftOut(partial(source.place, part))
    items = usable(source.read(part), left_out)
    counts, columns = [0] * about["views"], {}
    transform = augmentation(clip, about["augment"])
    views = PairViews(source, items, transform, about["seed"], about["views"], GROUND_TRUTH in masks)
    for number, batch in enumerate(loaded(views, about["batch_size"], workers)):
        for place, pair in enumerate(batch, number * about["batch_size"]):
            view, item = divmod(place, len(items))
            counts[view] += pair is not None
            if pair is None and view == 0:
                left_out.add("with a picture that cannot be read", items[item][0])
        good = [pair for pair in batch if pair is not None]
        if not good:
            continue
        pictures, captions, truths = zip(*good, strict=True)
        images = to_batch(pictures, clip.device)
        features = clip.encode_image(images)
        attentions = {name: _attention(mask, clip, images, features, truths) for name, mask in masks.items()}
        rows = pooled_columns(features, attentions) | {"text": clip.encode_text(list(captions))}
        for name, tensor in rows.items():
            columns.setdefault(name, []).append(tensor.float().cpu())
    return {name: torch.cat(parts).contiguous() for name, parts in columns.items()}, counts, left_out


def _attention(mask, clip, images, features, truths):
    if mask is True:  # the source's own masks: each cell's share of the foreground
        share = F.adaptive_avg_pool2d(torch.stack(truths).float(), features.grid)
        return share.flatten(1).to(clip.device)
    return mask(clip.to_rgb(images), features.grid)


class CacheJob:
    """What fills a cache, part by part: the unit that is resumed and handed to a worker. Raises ValueError
    for masks that do not fit."""

    def __init__(self, clip, source, folder, masks=None, views=1, augment="deit", seed=0, batch_size=64):
        masks = masks or {}
        if GROUND_TRUTH in masks and (augment is not None or not hasattr(source, "mask")):
            raise ValueError("ground-truth masks need a source that has them (scenes) and augment=None")
        self.clip, self.source, self.masks = clip, source, masks
        poolings = [Pooling("average"), Pooling("max"), *(Pooling("masked_max", name) for name in masks)]
        if clip.pools == "feature_map":
            poolings += [replace(pooling, reads="tokens") for pooling in poolings]
        self.about = {
            "format": FORMAT,
            "code": files.code_digest(*DECIDES),
            **clip.identity,
            "pairs": source.about,
            "masks": {name: [name] if mask is True else mask_identity(mask) for name, mask in masks.items()},
            "columns": [str(pooling) for pooling in (Pooling("attention"), *poolings)],
            "reads": clip.pools,
            "views": views,
            "augment": augment,
            "seed": seed,
            "batch_size": batch_size,
        }
        self.folder = Path(folder, files.digest(self.about)[:12])
        self.folder.mkdir(parents=True, exist_ok=True)

    def shard(self, number):
        return self.folder / f"{self.source.names[number]}.safetensors"

    def note(self, number):
        """The note of a shard that was made from what its part holds now, else None."""
        note = files.read_json(self.shard(number).with_suffix(".json"))
        if not _whole(note, self.about["views"]) or not self.shard(number).exists():
            return None
        part = self.source.parts[number]
        if note["stamp"] == self.source.stamp(part):
            return note
        try:
            return note if note["state"] == self.source.state(part) else None
        except OSError:  # `make` says so
            return None

    def done(self, number):
        """Whether a shard is there and as its note says; a damaged one is named, and its note is no longer
        true."""
        shard, note = self.shard(number), self.note(number)
        if note is None:
            return False
        if files.digest(shard) == note["sha256"]:
            return True
        warnings.warn(f"{shard} is damaged; it is made again", stacklevel=2)
        shard.with_suffix(".json").unlink(missing_ok=True)
        return False

    def make(self, number, workers=0):
        """Encode a part into its shard. Raises ValueError where the part cannot be read."""
        part, shard = self.source.parts[number], self.shard(number)
        try:
            stamp, state = self.source.stamp(part), self.source.state(part)
        except OSError as error:
            raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
        columns, counts, left_out = encode_pairs(
            self.clip, self.masks, self.source, part, self.about, workers
        )
        data = save(columns)
        note = {
            "pairs": sum(counts),
            "views": counts,
            "skipped": left_out.reasons,
            "stamp": stamp,
            "state": state,
        }
        files.write(shard, data)
        files.write(shard.with_suffix(".json"), files.as_json(note | {"sha256": files.digest(data)}))

    def finish(self, failed=()):
        """Write the manifest of the shards that are there -> `Cache`, those without a usable pair left out.
        Warns of what was left out; raises ValueError where nothing is left."""
        notes = {number: self.note(number) for number in range(len(self.source.parts))}
        notes = {number: note for number, note in notes.items() if note}
        left_out = LeftOut()
        for note in notes.values():
            left_out.merge(note["skipped"])
        good = {number: note for number, note in notes.items() if note["pairs"]}
        place = self.about["pairs"].get("path") or self.about["pairs"].get("folder") or "the pairs"
        if not good:
            reasons = "; ".join([*failed, *([str(left_out)] if left_out.count else [])])
            raise ValueError(f"no image of {place} could be read: {reasons or 'it is empty'}"[:280])
        if left_out.count:
            total = left_out.count + sum(note["views"][0] for note in good.values())
            warnings.warn(f"{left_out.count} of {total} pairs were skipped: {left_out}", stacklevel=3)
        shards = [self.shard(number) for number in good]
        manifest = {**self.about, "skipped": left_out.count, "shards": [shard.name for shard in shards]}
        files.write(self.folder / "manifest.json", files.as_json(manifest))
        return Cache(self.folder, manifest, shards, list(good.values()))


def _whole(note, views):
    """Whether a shard's note is as `make` writes it."""
    counts = note.get("views") if isinstance(note, dict) else None
    return (
        isinstance(counts, list)
        and len(counts) == views
        and all(isinstance(count, int) for count in counts)
        and note.get("pairs") == sum(counts)
        and isinstance(note.get("skipped"), dict)
        and {"sha256", "state", "stamp"} <= set(note)
    )


def cache_features(
    clip,
    pairs,
    folder,
    masks=None,
    views=1,
    augment="deit",
    seed=0,
    batch_size=64,
    workers=0,
    description=None,
) -> Cache:
    """Encode every image-caption pair of a source once -> `Cache` with the columns "attention", "average",
    "max", "masked_max:<mask>"; on a ResNet these pool the last stage's feature map, and "tokens/average" and
    so on the tokens after the attention pool.

    pairs: a source, see `load_pairs`. masks: {name: SelfAttention, or another callable of (images in [0, 1],
    grid) -> [B, N]}, applied to the same view; True under the name "ground truth" takes the source's own
    masks, without augmentation only. views: augmented copies of each image, one an epoch in turn. Under
    torchrun every rank takes its share of the parts. Resumes: whole shards are kept, missing, damaged or
    outdated ones are made; a part that cannot be read is named and left out. Raises OSError where the disk is
    full, ValueError."""
    job = CacheJob(clip, pairs, folder, masks, views, augment, seed, batch_size)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine, failed = range(rank, len(pairs.parts), world), []
    with ThreadPoolExecutor() as threads:
        done = dict(zip(mine, threads.map(job.done, mine), strict=True))
    for number in tqdm(mine, desc=description or "caching features", unit="shard", disable=rank > 0 or None):
        if not done[number]:
            try:
                job.make(number, workers)
            except ValueError as error:
                failed.append(str(error))
                warnings.warn(f"{error}; the others go on", stacklevel=2)
    if world > 1:
        dist.barrier()
    return job.finish(failed)
