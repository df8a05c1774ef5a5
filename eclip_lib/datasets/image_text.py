"""Sources of image-caption pairs for training a projection: rendered scenes, webdataset shards, COCO
captions, a table.

A source is cut into `parts` (a tar file, or so many pairs), the unit that is cached, resumed and handed to a
worker. `read(part)` lists (key, payload, caption): the payload None without a picture, False with several;
the caption "" where there is none, None where it is not UTF-8. `open(payload)` decodes one image. A key seeds
what is drawn for a pair; `place(part, key)` is what a reader calls it. `about` says what kind of source it
is, `names` what its parts are called, `inputs` are the files that it reads, and `state(part)` changes when
the content of a part does. `first(count)` is the same source cut to its first pairs."""

import copy
import os
import warnings
from pathlib import Path

import torch

from .. import files
from . import scenes
from .base import once, read_image
from .coco import CAPTIONS, read_annotations
from .tables import rows
from .tars import WebPairs, nonempty


def load_pairs(where):
    """A source from one word: "scenes:3000" (none of which the mini CLIPs were trained on),
    "scenes-validation:1000", "coco:ROOT" (its val2017 captions; "coco-train:ROOT" the training ones),
    "web:GLOB of tar files" or "csv:PATH". Raises ValueError, FileNotFoundError."""
    kind, _, place = str(where).partition(":")
    sources = {
        "scenes": lambda p: ScenePairs(_count(p, where), start=scenes.PRETRAINING),
        "scenes-validation": lambda p: ScenePairs(_count(p, where), seed=scenes.SEEDS["validation"]),
        "coco": CocoPairs,
        "coco-train": lambda p: CocoPairs(p, "train2017"),
        "web": WebPairs,
        "csv": CsvPairs,
    }
    if kind not in sources or not place:
        known = ", ".join(f"{kind}:…" for kind in sources)
        raise ValueError(f"{files.few([where])!r} names no image-caption pairs; write one of {known}")
    if "://" in place:
        raise ValueError(f"{where}: pairs are read from files of this machine; copy or mount them first")
    return sources[kind](place if kind == "web" or kind.startswith("scenes") else str(files.place(place)))


def _count(place, where):
    if not place.isdecimal() or len(place) > 8 or not int(place):
        said = "how many scenes must be a whole number below 10^8, e.g. scenes:3000"
        raise ValueError(f"{files.few([where])!r}: {said}")
    return int(place)


class _Numbered:
    """Pairs by number, cut into parts of `size`."""

    def _cut(self, start, count, size):
        stop = start + count
        self.parts = [range(first, min(first + size, stop)) for first in range(start, stop, size)]
        self.names = [f"{number:05d}" for number in range(len(self.parts))]

    def first(self, count):
        cut = copy.copy(self)
        cut.about = self.about | {"first": count}
        cut._cut(self.parts[0].start, min(count, len(self)), len(self.parts[0]))
        return cut

    def __len__(self):
        return sum(map(len, self.parts))


class ScenePairs(_Numbered):
    """`count` rendered training scenes from `start` on, levels in turn."""

    inputs = ()

    def __init__(
        self,
        count,
        start=0,
        levels=("plain", "cluttered"),
        colours="typical",
        seed=scenes.SEEDS["train"],
        size=1000,
    ):
        self.levels, self.colours, self.seed = tuple(levels), colours, seed
        self.about = {"source": "scenes", "levels": self.levels, "colours": colours, "seed": seed}
        self.about |= {"start": start, "count": count, "size": size}
        self._cut(start, count, size)

    def state(self, part):
        return [part.start, part.stop]

    stamp = state

    def read(self, part):
        """Rendered here: a caption names only what is visible."""
        for index in part:
            scene = scenes.sample(self.seed, index, self.levels[index % len(self.levels)], self.colours)
            yield f"{index:09d}", scene, scenes.caption(scene, self.seed, index)

    def place(self, part, key):
        return f"scene {key}"

    def open(self, payload):
        return payload.image

    def mask(self, payload):
        """Foreground of all objects, bool [1, 224, 224]."""
        return torch.from_numpy(payload.labels > 0)[None]


class _Listed(_Numbered):
    """Pairs of files and captions that a list names: `pairs`; `numbers` says where each stands in it."""

    def _take(self, pairs, numbers, about, size):
        self.pairs, self.numbers, self.about = nonempty(pairs, about["path"]), numbers, about
        self._cut(0, len(pairs), size)

    @property
    def inputs(self):
        return [self.about["path"], *(path for path, _ in self.pairs)]

    def stamp(self, part):
        return files.digest([[*self.pairs[index], files.stamp(self.pairs[index][0])] for index in part])

    def state(self, part):
        pairs = (self.pairs[index] for index in part)
        contents = (os.path.isfile(path) and files.digest(Path(path)) for path, _ in pairs)
        return files.digest([[*self.pairs[index], sha] for index, sha in zip(part, contents, strict=True)])

    def read(self, part):
        for index in part:
            path, caption = self.pairs[index]
            yield f"{index:09d}", path, caption

    def open(self, payload):
        return read_image(payload)


class CocoPairs(_Listed):
    """COCO's captions: root/annotations/captions_<split>.json and root/<split>/*.jpg; every caption is a
    pair."""

    def __init__(self, root, split="val2017", size=1000):
        path = Path(root, "annotations", f"captions_{split}.json")
        if not path.is_file():
            said = f"no captions at {path}; of coco: and coco-train: give the folder that holds annotations/"
            raise FileNotFoundError(f"{said} and the pictures' {split}/")
        document = read_annotations(path, CAPTIONS)
        names = {image["id"]: image["file_name"] for image in document["images"]}
        found = [a for a in document["annotations"] if a["image_id"] in names]
        found.sort(key=lambda a: str(a["id"]).zfill(20))
        paths = (str(Path(root, split, names[a["image_id"]])) for a in found)
        pairs = [(path, (a["caption"] or "").strip()) for path, a in zip(paths, found, strict=True)]
        once((image["id"] for image in document["images"]), f"{path}: image id")
        if lost := len(document["annotations"]) - len(found):
            warnings.warn(f"{path}: {lost} captions are of images that it does not list", stacklevel=2)
        self._take(pairs, [a["id"] for a in found], {"source": "coco", "path": str(path)}, size)

    def place(self, part, key):
        return f"caption {self.numbers[int(key)]} of {Path(self.pairs[int(key)][0]).name}"


class CsvPairs(_Listed):
    """A table with the columns `filepath` and `title` (open_clip's names), by tabs or commas; relative paths
    start at its folder."""

    def __init__(self, path, size=1000):
        table = rows(Path(path))
        pairs = [(str(Path(path).parent / row["filepath"]), row["title"].strip()) for _, row in table]
        if table and not any(os.path.isfile(picture) for picture, _ in pairs):
            said = f"no image of {path} could be read: line {table[0][0]} names"
            said += f" {files.few([table[0][1]['filepath']])!r}, where no file is"
            raise FileNotFoundError(f"{said}; write paths of this machine, from the table's folder on")
        self._take(pairs, [line for line, _ in table], {"source": "csv", "path": str(path)}, size)

    def place(self, part, key):
        return f"line {self.numbers[int(key)]} of {Path(self.about['path']).name}"
