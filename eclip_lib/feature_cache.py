"""The pooled-feature cache: one pass over image-caption pairs writes every pooling at once (§3.3, Eq. 7).

CLIP is locked and pooling comes before the projection, so a training pair is two vectors, the pooled image
feature and F_t. A view of all pairs is a folder of `shards`. What does not depend on CLIP, the attention of a
self-supervised model, has shards of its own, which all networks with the same preprocessing share."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file

from . import files
from .datasets.pair_views import LeftOut
from .networks.attention import SelfAttention, mask_identity
from .poolings import GROUND_TRUTH, Pooling, columns_of, encode_pairs
from .progress import tqdm
from .shards import Shards

DECIDES = ("method.py", "poolings.py", "networks", "datasets")  # the code that decides features


@dataclass(frozen=True)
class View:
    """One view of all pairs: `folder`, its `shards` and their `notes`."""

    folder: Path
    shards: list[Path]
    notes: list[dict]

    def read(self, shard, column):
        """(pooled [n, C], text [n, Ct]) float32 of one shard."""
        with safe_open(str(shard), "pt") as file:
            return file.get_tensor(str(column)), file.get_tensor("text")


class Cache:
    """Pooled features of a source's pairs; training reads one of `views` views an epoch, in turn.

    `about`: the configuration; `keep`: whether all views stay on disk. Where not, a view is made when its
    epoch comes and dropped when another's does: the disk holds one."""

    def __init__(self, job, fill, keep=True):
        """job: `CacheJob`; fill: (number of a view) -> `View`, which makes what is missing of it."""
        self.job, self.keep, self._fill, self._there = job, keep, fill, {}
        self.about, self.views = job.about, len(job.views)
        for number in range(self.views if keep else 0 if job.was_whole() else 1):
            self.view(number)

    def view(self, epoch=0) -> View:
        """The view of an epoch, from 0."""
        number = epoch % self.views
        if number not in self._there:
            if not self.keep:
                self.drop(but=number)
            self._there[number] = self._fill(number)
        return self._there[number]

    def drop(self, but=None):
        """Free the disk of all views but one; what they held stays known."""
        for number, shards in enumerate(self.job.views):
            if number != but:
                self._there.pop(number, None)
                shards.drop()

    @cached_property
    def _notes(self):
        return self.job.notes(0).values()

    @property
    def folder(self):
        """Of the first view."""
        return self.job.views[0].folder

    @property
    def columns(self) -> list[Pooling]:
        return [Pooling.of(column) for column in self.about["columns"]]

    @property
    def identity(self):
        """Digest of all that it is made from: the views differ by their seeds alone, and a view that is made
        again is the same one."""
        made = {key: value for key, value in self.about.items() if key != "pairs"}
        return files.digest([made, [[note["state"], note["pairs"]] for note in self._notes]])

    def __len__(self):
        """Pairs of one view."""
        return sum(note["pairs"] for note in self._notes)


class CacheJob:
    """What fills a cache, part by part of each view: the unit that is resumed and handed to a worker.
    `views`: their `Shards`. Raises ValueError for masks that do not fit."""

    def __init__(self, clip, source, folder, masks=None, views=1, augment="deit", seed=0, batch_size=None):
        masks = masks or {}
        if GROUND_TRUTH in masks and (augment is not None or not hasattr(source, "mask")):
            raise ValueError("ground-truth masks need a source that has them (scenes) and augment=None")
        self.clip, self.source, self.masks = clip, source, masks
        # what a view of the pairs is, whoever looks at it; a tar is known by its name and content, not by
        # where the others lie
        where = {key: value for key, value in source.about.items() if key != "folder"}
        seen = {
            "code": files.code_digest(*DECIDES),
            "augment": augment,
            "seed": seed,
            "batch_size": batch_size or (64 if clip.device.type == "cuda" else 32),
        }
        names = {name: [name] if mask is True else mask_identity(mask) for name, mask in masks.items()}
        kind = clip.identity | {"masks": names, "columns": columns_of(clip.pools, masks), "reads": clip.pools}
        self.about = {**kind, **seen, "views": views, "pairs": source.about}
        shown = [{**seen, "pairs": where, "view": view} for view in range(views)]
        self.views = [Shards(folder, kind | view, source) for view in shown]
        inputs = {"input": list(clip.size), "statistics": list(map(list, clip.statistics))}
        self.attention = [
            {
                name: Shards(folder, {"attention": names[name][1:], **inputs, **view}, source)
                for name, mask in masks.items()
                if isinstance(mask, SelfAttention)
            }
            for view in shown
        ]

    def make(self, number, view=0, workers=0, seen=None):
        """Encode a part into its shard; seen: called with the number of pairs after each batch. Raises
        ValueError where the part cannot be read."""
        shards, stores = self.views[view], self.attention[view]
        state, part = shards.state(number), self.source.parts[number]
        attention = {n: load_file(s.path(number))["attention"] for n, s in stores.items() if s.done(number)}
        known = set(attention)
        columns, left_out = encode_pairs(
            self.clip, self.masks, self.source, part, self.about, view, workers, attention, seen
        )
        note = state | {"pairs": len(columns.get("text", ())), "skipped": left_out.reasons}
        for name in attention.keys() - known:
            stores[name].write(number, {"attention": attention[name]}, note)
        shards.write(number, columns, note)

    def notes(self, view):
        """{number: note} of the parts that were made."""
        notes = ((number, self.views[view].note(number)) for number in range(len(self.source.parts)))
        return {number: note for number, note in notes if note and note["pairs"]}

    def was_whole(self):
        """Whether the first view was finished once with the parts that there are now."""
        return files.read_json(self.views[0].folder / "manifest.json").get("stamps") == self._stamps()

    def _stamps(self):
        parts = zip(self.source.names, self.source.parts, strict=True)
        return files.digest([[name, self.source.stamp(part)] for name, part in parts])

    def finish(self, view=0, failed=()):
        """Write the manifest of the shards that are there -> `View`, those without a usable pair left out.
        Warns of what was left out; raises ValueError where nothing is left."""
        shards, left_out = self.views[view], LeftOut()
        notes = {number: shards.note(number) for number in range(len(self.source.parts))}
        for note in filter(None, notes.values()):
            left_out.merge(note["skipped"])
        good = {n: note for n, note in notes.items() if note and note["pairs"] and shards.path(n).exists()}
        if not good and failed:
            raise ValueError(failed[0] + (f" ({len(failed) - 1} more like it)" if failed[1:] else ""))
        if not good:
            about = self.source.about
            names = [Path(p).name for p in ([about["path"]] if "path" in about else self.source.inputs)]
            why = f"{left_out.worst}; mend or replace it" if left_out.count else "it holds none"
            raise ValueError(f"no image of {files.few(names) or 'the pairs'} could be read: {why}")
        if left_out.count and view == 0:
            total = left_out.count + sum(note["pairs"] for note in good.values())
            warnings.warn(f"{left_out.count} of {total} pairs were skipped: {left_out}", stacklevel=3)
        paths = [shards.path(number) for number in good]
        manifest = {"view": view, "skipped": left_out.count, "shards": [path.name for path in paths]}
        manifest |= self.about | {"stamps": self._stamps()}
        files.write(shards.folder / "manifest.json", files.as_json(manifest))
        return View(shards.folder, paths, list(good.values()))


def ranks():
    """(number of this process, how many there are) under torchrun; (0, 1) without."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def fill(job, view, workers=0, description=None) -> View:
    """Make what is missing of a view; under torchrun every rank its share of the parts. A part that cannot be
    read is named and left out."""
    rank, world = ranks()
    mine, failed = range(rank, len(job.source.parts), world), []
    with ThreadPoolExecutor() as threads:
        done = dict(zip(mine, threads.map(job.views[view].done, mine), strict=True))
    todo = [number for number in mine if not done[number]]
    total = sum(len(job.source.parts[n]) for n in todo) if hasattr(job.source, "__len__") else None
    what = (description or "caching features") + (f", view {view + 1}" if len(job.views) > 1 else "")
    with tqdm(total=total, desc=what, unit="pair", disable=rank > 0 or not todo or None) as bar:
        for count, number in enumerate(todo, 1):
            bar.set_postfix_str(f"part {count} of {len(todo)}")
            try:
                job.make(number, view, workers, bar.update)
            except ValueError as error:
                failed.append(str(error))
                warnings.warn(f"{error}; the others go on", stacklevel=2)
        bar.update((total or bar.n) - bar.n)  # what was left out was looked at as well
    if world > 1:
        dist.barrier()
    return job.finish(view, failed)


def cache_features(
    clip,
    pairs,
    folder,
    masks=None,
    views=1,
    augment="deit",
    seed=0,
    batch_size=None,
    workers=0,
    description=None,
    keep=True,
) -> Cache:
    """Encode every image-caption pair of a source once -> `Cache` with the columns "attention", "average",
    "max", "masked_max:<mask>"; on a ResNet these pool the last stage's feature map, and "tokens/average" and
    so on the tokens after the attention pool.

    pairs: a source, see `load_pairs`. masks: {name: SelfAttention, or another callable of (images in [0, 1],
    grid) -> [B, N]}, applied to the same view; True under the name "ground truth" takes the source's own
    masks, without augmentation only. batch_size: by itself 64 on a GPU, and 32 on a CPU, whose caches hold
    no more. views: augmented copies of each image, one an epoch in turn; with keep=False a view is made when
    its epoch comes and dropped after it. Under torchrun every rank takes its share of the parts. Resumes:
    whole shards are kept, missing, damaged or outdated ones are made; a part that cannot be read is named and
    left out. Raises OSError where the disk is full, ValueError."""
    job = CacheJob(clip, pairs, folder, masks, views, augment, seed, batch_size)
    return Cache(job, partial(fill, job, workers=workers, description=description), keep)
