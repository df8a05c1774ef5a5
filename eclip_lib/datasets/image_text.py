"""Sources of image-caption pairs for training a projection: rendered scenes, webdataset shards, COCO
captions, a table.

A source is cut into `parts` (a tar file, or so many pairs), the unit that is cached, resumed and handed to a
worker. `read(part)` lists (key, payload, caption), the payload None and the caption empty where there is
none, and `open(payload)` decodes one image. `about` says what kind of source it is, `names` what its parts
are called, and `state(part)` changes when the content of a part does. `first(count)` is the same source cut
to its first pairs."""

import copy
import csv
import glob
import io
import os
import re
import warnings
from itertools import islice
from pathlib import Path

import torch
from braceexpand import braceexpand

from .. import files
from . import scenes
from .base import read_image
from .coco import read_annotations
from .tars import PICTURES, caption, samples


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
        raise ValueError(
            f"{where!r} names no image-caption pairs; write one of {', '.join(f'{k}:…' for k in sources)}"
        )
    try:
        return sources[kind](place if kind.startswith("scenes") else str(Path(place).expanduser()))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place} is not UTF-8 ({error.reason} at byte {error.start}); convert it first, e.g. with iconv"
        ) from error


def _count(place, where):
    if not place.isdecimal() or not int(place):
        raise ValueError(f"{where!r}: how many scenes must be a whole number, e.g. scenes:3000")
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
        about = {
            "levels": self.levels,
            "colours": colours,
            "seed": seed,
            "start": start,
            "count": count,
            "size": size,
        }
        self.about = {"source": "scenes", **about}
        self._cut(start, count, size)

    def state(self, part):
        return [part.start, part.stop]

    stamp = state

    def read(self, part):
        """Rendered here: a caption names only what is visible."""
        for index in part:
            scene = scenes.sample(self.seed, index, self.levels[index % len(self.levels)], self.colours)
            yield f"{index:09d}", scene, scenes.caption(scene, self.seed, index)

    def open(self, payload):
        return payload.image

    def mask(self, payload):
        """Foreground of all objects, bool [1, 224, 224]."""
        return torch.from_numpy(payload.labels > 0)[None]


class WebPairs:
    """webdataset shards in img2dataset's layout (a picture and .txt or .json of one key), e.g. GCC3M:
    `pattern` is a glob of tars."""

    def __init__(self, pattern):
        pattern = str(pattern)
        found = [pattern]
        if not Path(pattern).is_file():
            found = [path for part in braceexpand(pattern) for path in glob.glob(part)]
        found = sorted(path for path in found if not Path(path).name.startswith("._"))
        self.parts = _nonempty(list({os.path.realpath(path): path for path in found}.values()), pattern)
        # by its own path alone, so that one tar more renames none
        self.names = [f"{Path(part).stem}-{files.digest(part.encode())[:6]}" for part in self.parts]
        self.about = {
            "source": "webdataset",
            "folder": ", ".join(sorted({str(Path(part).parent) for part in self.parts})),
        }
        self.cut: dict = {}  # a part: so many of its pairs

    def first(self, count):
        """As many whole parts as hold so many keys, the last one cut; a part that cannot be read holds
        none."""
        cut, left = copy.copy(self), count
        cut.about, cut.parts, cut.names, cut.cut = self.about | {"first": count}, [], [], {}
        for part, name in zip(self.parts, self.names, strict=True):
            if left > 0:
                cut.parts.append(part), cut.names.append(name)
                cut.cut[part] = left
                left -= _count_keys(part, left)
        return cut

    def state(self, part):
        whole = files.digest(Path(part))  # a tar is padded: its size says little
        return [whole, self.cut[part]] if self.cut else whole

    def stamp(self, part):
        return [*(files.stamp(part) or []), self.cut[part]] if self.cut else files.stamp(part)

    def read(self, part):
        for key, sample in islice(samples(part), self.cut.get(part)):
            picture = next((sample[kind] for kind in PICTURES if kind in sample), None)
            yield key, (key, picture) if picture else None, caption(sample)

    def open(self, payload):
        key, data = payload
        return read_image(io.BytesIO(data), name=key)


def _count_keys(part, most):
    try:
        return sum(1 for _ in islice(samples(part), most))
    except (OSError, ValueError):
        return 0


class _Listed(_Numbered):
    """Pairs of files and captions that a list names: `pairs`."""

    def _take(self, pairs, about, size):
        self.pairs, self.about = _nonempty(pairs, about["path"]), about
        self._cut(0, len(pairs), size)

    def stamp(self, part):
        return files.digest([[*self.pairs[index], files.stamp(self.pairs[index][0])] for index in part])

    def state(self, part):
        pairs = [self.pairs[index] for index in part]
        return files.digest(
            [[*pair, os.path.isfile(pair[0]) and files.digest(Path(pair[0]))] for pair in pairs]
        )

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
        document = read_annotations(path, ("images", "annotations"))
        try:
            names = {image["id"]: image["file_name"] for image in document["images"]}
            found = sorted(
                (a for a in document["annotations"] if a["image_id"] in names),
                key=lambda a: str(a["id"]).zfill(20),
            )
            pairs = [
                (str(Path(root, split, names[a["image_id"]])), (a["caption"] or "").strip()) for a in found
            ]
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{path} is not a complete COCO caption file ({error!r}); download it again"
            ) from error
        if lost := len(document["annotations"]) - len(found):
            warnings.warn(f"{path}: {lost} captions are of images that it does not list", stacklevel=2)
        self._take(pairs, {"source": "coco", "path": str(path)}, size)


class CsvPairs(_Listed):
    """A table with the columns `filepath` and `title` (open_clip's names), by tabs or commas; relative paths
    start at its folder."""

    def __init__(self, path, size=1000):
        rows = _rows(Path(path))
        pairs = [(str(Path(path).parent / row["filepath"]), row["title"].strip()) for row in rows]
        self._take(pairs, {"source": "csv", "path": str(path)}, size)


def _rows(path):
    """A table's lines as dictionaries. A quote inside a caption is a quote: only where quotes pair up do they
    hold a field together."""
    if not path.is_file():
        raise FileNotFoundError(f"no table of image-caption pairs at {path}")
    text = path.read_bytes().decode("utf-8-sig")
    lines = [(number, line) for number, line in enumerate(re.split("\r\n|\r|\n", text), 1) if line.strip()]
    separator = "\t" if lines and "\t" in lines[0][1] else ","
    rows = _quoted(text, separator) or [(number, _fields(line, separator)) for number, line in lines]
    columns = [name.strip() for name in rows[0][1]] if rows else []
    if not columns.count("filepath") == columns.count("title") == 1:
        raise ValueError(
            f"{path}: needs the columns filepath and title once each, has {columns} (separator {separator!r})"
        )
    for number, row in rows[1:]:
        if len(row) < len(columns) or any(field.strip() for field in row[len(columns) :]):
            raise ValueError(
                f"{path}, line {number}: {len(row)} fields, not {len(columns)}; quote fields that hold "
                f"{separator!r}"
            )
    return [dict(zip(columns, row, strict=False)) for _, row in rows[1:]]


def _quoted(text, separator):
    """[(number of its last line, fields)] where every quote of a table opens or closes a field, also one of
    several lines; else None. A field that holds a line end and a separator is two lines with a quote each."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if "".join(row).strip()]
    except csv.Error:
        return None
    torn = (separator in field and re.search("[\r\n]", field) for _, row in rows for field in row)
    return None if any(torn) else rows


def _fields(line, separator):
    """The fields of one line: quotes hold a field together where they pair up, else they are part of it."""
    try:
        return next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error:
        return line.split(separator)


def _nonempty(found, what):
    if not found:
        raise FileNotFoundError(f"no image-caption pair in {what}")
    return found
