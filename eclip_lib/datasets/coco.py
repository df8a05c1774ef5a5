"""MS COCO 2017, validation split: 5000 images, 80 classes (paper §4.1)."""

import contextlib
import io
import json
from collections import Counter

import numpy as np
from pycocotools.coco import COCO

from .base import Dataset, Example, check_size, read_image, require

LAYOUT = "root/val2017/*.jpg and root/annotations/instances_val2017.json"


def read_annotations(path, keys):
    """A COCO annotation file -> its dictionary, the lists `keys` in it. Raises ValueError that names the
    file."""
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not a complete COCO file ({error}); download it again") from error
    lists = {key: document.get(key) if isinstance(document, dict) else None for key in keys}
    wrong = [
        key
        for key, value in lists.items()
        if not (isinstance(value, list) and all(isinstance(v, dict) for v in value))
    ]
    if wrong:
        raise ValueError(
            f"{path} is not a complete COCO file: it has no list of {' and '.join(wrong)}; download it again"
        )
    return document


class COCO2017(Dataset):
    """A class's mask is the union of all its annotations in the image, crowd regions included; no void.
    Images without any annotation are left out: they have nothing to score."""

    name = "coco2017"

    def __init__(self, root):
        self.images = require(require(root, self.name, LAYOUT) / "val2017", self.name, LAYOUT)
        self.path = require(self.images.parent / "annotations" / "instances_val2017.json", self.name, LAYOUT)
        self.coco = COCO()
        self.coco.dataset = read_annotations(self.path, ("images", "annotations", "categories"))
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress there
                self.coco.createIndex()
            self._check()
        except KeyError as error:
            raise ValueError(
                f"{self.path} is not a complete COCO file: an entry has no {error}; download it again"
            ) from error
        self.items = [i for i in sorted(self.coco.imgs, key=str) if self.coco.imgToAnns.get(i)]
        if all(isinstance(item, int) for item in self.items):
            self.items = sorted(self.items)
        if not self.items:
            raise ValueError(f"{self.name}: {self.path} annotates no image")
        for item in self.items:
            require(self.sources(item)[0], self.name, LAYOUT)

    def _check(self):
        document, coco = self.coco.dataset, self.coco
        twice = [i for i, count in Counter(image["id"] for image in document["images"]).items() if count > 1]
        if twice:
            raise ValueError(
                f"{self.path}: image id {twice[0]} is there twice; which image its annotations mean is "
                "not known"
            )
        self.names = {c["id"]: c["name"] for c in sorted(document["categories"], key=lambda c: c["id"])}
        self.classes = list(self.names.values())
        for annotation in coco.anns.values():
            if annotation["category_id"] not in self.names:
                raise ValueError(f"{self.path}: annotations of unknown category {annotation['category_id']}")
            if not annotation.get("segmentation"):
                raise ValueError(
                    f"{self.path}: annotation {annotation['id']} has no segmentation (boxes alone cannot "
                    "be scored)"
                )
        sizes = [image for image in coco.imgs.values() if not {"file_name", "height", "width"} <= set(image)]
        if sizes:
            raise ValueError(
                f"{self.path}: image {sizes[0]['id']} has no file_name, height or width; download it again"
            )

    def sources(self, item):
        return [self.images / self.coco.imgs[item]["file_name"], self.path]

    def example(self, item):
        path, masks = self.sources(item)[0], {}
        image = read_image(path, upright=False)
        for annotation in self.coco.imgToAnns[item]:
            try:
                _require_full(annotation["segmentation"])
                mask = self.coco.annToMask(annotation).astype(bool)
            except Exception as error:  # pycocotools raises bare ones
                raise ValueError(
                    f"{path.name}: the mask of annotation {annotation['id']} cannot be read ({error})"
                ) from error
            check_size(mask, image, path)
            name = self.names[annotation["category_id"]]
            masks[name] = mask | masks[name] if name in masks else mask
        masks = {name: masks[name] for name in self.classes if name in masks and masks[name].any()}
        image_id = f"{item:012d}" if isinstance(item, int) else str(item)
        return Example(image_id, image, masks, np.zeros(image.size[::-1], bool))


def _require_full(segmentation):
    """Raise ValueError where run lengths do not fill their picture: pycocotools would leave the rest as it
    finds it."""
    if not isinstance(segmentation, dict):
        return
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    pixels = sum(counts if isinstance(counts, list) else _run_lengths(counts))
    if pixels != height * width:
        raise ValueError(f"its run lengths cover {pixels} of {height * width} pixels")


def _run_lengths(text):
    """The run lengths in COCO's compressed form: five bits a character, from the lowest; from the fourth run
    on, differences."""
    runs, value, shift = [], 0, 0
    for code in text if isinstance(text, bytes) else text.encode():
        value |= (code - 48 & 31) << shift
        shift += 5
        if not code - 48 & 32:
            if code - 48 & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs
