"""Datasets with pixel masks, one registry. A new one is a `Dataset` subclass in a file of its own and a line
here."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .. import files
from .base import Dataset, Example, examples
from .coco import COCO2017
from .imagenet_s import ImageNetS50
from .scenes import Scenes
from .voc import VOC2012

REGISTRY: dict[str, Callable] = {
    "voc2012": VOC2012,
    "coco2017": COCO2017,
    "imagenet-s50": ImageNetS50,
    "scenes": Scenes,
    "scenes-cluttered": partial(Scenes, level="cluttered"),
}


def load_dataset(name: str, root: str | Path | None = None, limit: int | None = None, **options) -> Dataset:
    """Open a dataset: a sequence of `Example`s with `.classes`.

    name: "voc2012", "coco2017", "imagenet-s50", "scenes" or "scenes-cluttered". root: the folder that holds
    it (scenes need none). limit: keep the first so many. options: the constructor's own (for scenes: split,
    level, colours, length). Raises ValueError for an unknown name or a damaged file, FileNotFoundError that
    names what is missing."""
    files.require_known(name, REGISTRY, "no dataset")
    if root is None and not name.startswith("scenes"):
        raise ValueError(f"{name} needs root=, the folder that holds it; see data/README.md")
    root = None if root is None else files.place(root)
    return REGISTRY[name](root, **options).first(limit)
