"""Sources of image-caption pairs for training a projection: rendered scenes, webdataset shards, COCO captions, a CSV.

A source is cut into `parts` (a tar file, or so many pairs), the unit that is cached, resumed and handed to a worker:
`read(part)` lists (key, payload, caption) and `open(payload)` decodes one image. `about` describes the source for the cache."""

import glob
import hashlib
import io
import json
from pathlib import Path

import pandas as pd
import torch
import webdataset
from PIL import Image

from . import scenes
from .base import read_image


def load_pairs(where):
    """A source from one word: "scenes:3000" (none of which the mini CLIPs were trained on), "scenes-validation:1000", "coco:ROOT"
    (its val2017 captions; "coco-train:ROOT" the training ones), "web:GLOB of tar files" or "csv:PATH". Raises ValueError,
    FileNotFoundError."""
    kind, _, place = where.partition(":")
    sources = {
        "scenes": lambda p: ScenePairs(_count(p, where), start=scenes.PRETRAINING),
        "scenes-validation": lambda p: ScenePairs(_count(p, where), seed=scenes.SEEDS["validation"]),
        "coco": CocoPairs,
        "coco-train": lambda p: CocoPairs(p, "train2017"),
        "web": WebPairs,
        "csv": CsvPairs,
    }
    if kind not in sources or not place:
        raise ValueError(f"{where!r} names no image-caption pairs; write one of {', '.join(f'{k}:…' for k in sources)}")
    try:
        return sources[kind](place)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place} is not UTF-8 ({error.reason} at byte {error.start}); convert it first, e.g. with iconv"
        ) from error


def _count(place, where):
    if not place.isdecimal() or not int(place):
        raise ValueError(f"{where!r}: how many scenes must be a whole number, e.g. scenes:3000")
    return int(place)


def _chunks(count, size):
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _nonempty(paths, what):
    if not paths:
        raise FileNotFoundError(f"no image-caption pair in {what}")
    return paths


class ScenePairs:
    """`count` rendered training scenes from `start` on, levels in turn."""

    def __init__(self, count, start=0, levels=("plain", "cluttered"), colours="typical", seed=scenes.SEEDS["train"], size=1000):
        self.levels, self.colours, self.seed = tuple(levels), colours, seed
        self.parts = [range(start + part.start, start + part.stop) for part in _chunks(count, size)]
        self.about = {
            "source": "scenes",
            "count": count,
            "start": start,
            "levels": levels,
            "colours": colours,
            "seed": seed,
            "size": size,
        }

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
    """webdataset shards in img2dataset's layout (.jpg and .txt of one key), e.g. GCC3M: `pattern` is a glob of tar files."""

    def __init__(self, pattern):
        self.parts = _nonempty(sorted(glob.glob(str(pattern))), pattern)
        sizes = [(Path(p).name, Path(p).stat().st_size) for p in self.parts]
        self.about = {"source": "webdataset", "shards": len(sizes), "sizes": hashlib.sha256(repr(sizes).encode()).hexdigest()}

    def read(self, part):
        for sample in webdataset.WebDataset(part, shardshuffle=False):
            picture = next((sample[k] for k in ("jpg", "jpeg", "png", "webp") if k in sample), b"")
            yield sample["__key__"], picture, sample.get("txt", b"").decode("utf-8", errors="replace")

    def open(self, payload):
        return Image.open(io.BytesIO(payload)).convert("RGB")


class _Listed:
    """Pairs of files and captions that a list names."""

    def _take(self, pairs, about, size):
        self.pairs, self.parts = _nonempty(pairs, about), _chunks(len(pairs), size)
        self.about = {**about, "size": size, "pairs": hashlib.sha256(repr(pairs).encode()).hexdigest()}

    def read(self, part):
        for index in part:
            yield f"{index:09d}", *self.pairs[index]

    def open(self, payload):
        return read_image(payload)


class CocoPairs(_Listed):
    """COCO's captions: root/annotations/captions_<split>.json and root/<split>/*.jpg; every caption is a pair."""

    def __init__(self, root, split="val2017", size=1000):
        path = Path(root, "annotations", f"captions_{split}.json")
        try:
            about = json.loads(path.read_text())
            names = {image["id"]: image["file_name"] for image in about["images"]}
            captions = sorted(about["annotations"], key=lambda a: a["id"])
            pairs = [
                (str(Path(root, split, names[a["image_id"]])), a["caption"].strip()) for a in captions if a["image_id"] in names
            ]
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"{path} is not a complete COCO caption file ({error!r}); download it again") from error
        self._take(pairs, {"source": "coco", "split": split}, size)


class CsvPairs(_Listed):
    """A table with the columns `filepath` and `title` (open_clip's names); relative paths start at the table's folder."""

    def __init__(self, path, sep="\t", size=1000):
        table = pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False)
        if not {"filepath", "title"} <= set(table.columns):
            raise ValueError(f"{path}: needs the columns filepath and title, has {list(table.columns)} (separator {sep!r})")
        pairs = [(str(Path(path).parent / file), title) for file, title in zip(table["filepath"], table["title"], strict=True)]
        self._take(pairs, {"source": "csv"}, size)
