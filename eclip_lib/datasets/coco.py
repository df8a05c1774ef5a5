"""MS COCO 2017, validation split: 5000 images, 80 classes (paper §4.1)."""

import contextlib
import io
import json
import os
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np

from .. import files
from .base import Dataset, Example, check_size, once, read_image

FARTHEST = 1e6  # pixels, of a polygon's point

INSTANCES = {"images": "id file_name height width", "annotations": "id image_id category_id"}
INSTANCES |= {"categories": "id name"}
CAPTIONS = {"images": "id file_name", "annotations": "id image_id caption"}


KINDS = {  # what a field must be, in words: (the fields, the check)
    "a whole number or a word": (
        "id image_id category_id",
        lambda value: isinstance(value, str) or (type(value) in (int, float) and value % 1 == 0),
    ),
    "a whole number from 1 to 65535": ("height width", lambda v: type(v) is int and 0 < v < 2**16),
    "a word": ("file_name name", lambda value: isinstance(value, str) and bool(value.strip())),
    "a text": ("caption", lambda value: value is None or isinstance(value, str)),
}
FIELDS = {name: (fits, words) for words, (names, fits) in KINDS.items() for name in names.split()}


def _incomplete(path, problem):
    """The ValueError of a COCO file that is not as COCO's are."""
    return ValueError(f"{path} is not a complete COCO file: {problem}; download it again")


def _once(pairs):
    """A JSON object. Raises ValueError where it has a name twice, of which json takes the last."""
    if len(found := dict(pairs)) < len(pairs):
        once((name for name, _ in pairs), "the name")
    return found


def read_annotations(path, needs):
    """A COCO annotation file -> its dictionary. needs: {list in it: the `FIELDS` of each of its entries}.
    Raises ValueError that names what is not there, or not as it must be."""
    try:
        document = json.loads(path.read_bytes(), object_pairs_hook=_once)  # of any Unicode encoding
    except (ValueError, RecursionError) as error:
        raise _incomplete(path, error) from error
    for key, fields in needs.items():
        entries = document.get(key) if isinstance(document, dict) else None
        if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
            raise _incomplete(path, f"it has no list of {key}")
        for field in fields.split():
            fits, words = FIELDS[field]
            for place, entry in enumerate(entries):
                if not (field in entry and fits(entry[field])):
                    value = files.few([repr(entry[field])]) if field in entry else "not there"
                    raise _incomplete(path, f"{field} of {key}[{place}] is {value}, not {words}")
    return document


class COCO2017(Dataset):
    """A class's mask is the union of all its annotations in the image, crowd regions included; no void.
    Images without any annotation that covers a pixel are left out: they have nothing to score."""

    name = "coco2017"
    layout = "root/val2017/*.jpg and root/annotations/instances_val2017.json"

    def __init__(self, root):
        self.images = self.require(self.require(root) / "val2017")
        self.path = self.images.parent / "annotations" / "instances_val2017.json"
        self.require(self.path, Path.is_file)
        from pycocotools.coco import COCO

        self.coco = COCO()
        self.coco.dataset = read_annotations(self.path, INSTANCES)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress there
            self.coco.createIndex()
        self._check()
        self.items = _sorted(filter(self.annotations.get, self.coco.imgs))
        if not self.items:
            raise ValueError(f"{self.name}: {self.path} annotates no image")
        if bare := sorted(self.coco.imgs.keys() - set(self.items), key=str):
            said = f"{len(bare)} of {len(self.coco.imgs)} images have no class to score and are left out"
            warnings.warn(f"{self.path}: {said} ({files.few(bare)})", stacklevel=3)
        for item in self.items:
            self.require(self.sources(item)[0], Path.is_file)

    def _check(self):
        images, annotations = (self.coco.dataset[key] for key in ("images", "annotations"))
        known = {c["id"]: c for c in self.coco.dataset["categories"]}
        categories = [known[number] for number in _sorted(c["id"] for c in self.coco.dataset["categories"])]
        self.names = {c["id"]: c["name"] for c in categories}
        self.classes = [c["name"] for c in categories]
        once((image["id"] for image in images), f"{self.path}: image id")
        once((os.path.normpath(image["file_name"]) for image in images), f"{self.path}: picture")
        once((c["id"] for c in categories), f"{self.path}: category id")
        once(self.classes, f"{self.path}: category")
        sizes = {image["id"]: (image["width"], image["height"]) for image in images}
        self.annotations, empty, lost = defaultdict(list), [], 0  # image: those that cover a pixel of it
        for annotation in annotations:
            if annotation["category_id"] not in self.names:
                raise ValueError(f"{self.path}: annotations of unknown category {annotation['category_id']}")
            if annotation["image_id"] not in sizes:
                lost += 1
                continue
            try:
                area = _area(annotation.get("segmentation"), sizes[annotation["image_id"]])
            except Exception as error:
                said = f"{self.path}: the mask of annotation {annotation['id']} cannot be read ({error})"
                raise ValueError(f"{said}; mend it or remove it") from error
            if area >= 2 or self.coco.annToMask(annotation).any():
                self.annotations[annotation["image_id"]].append(annotation)
            else:
                empty.append(annotation["id"])
        covers = f"cover no pixel and are left out ({files.few(empty)})"
        for count, said in ((lost, "are of images that it does not list"), (len(empty), covers)):
            if count:
                warnings.warn(f"{self.path}: {count} annotations {said}", stacklevel=4)

    def sources(self, item):
        return [self.images / self.coco.imgs[item]["file_name"], self.path]

    def example(self, item):
        path, listed, masks = self.sources(item)[0], self.coco.imgs[item], {}
        image = read_image(path, upright=False)
        check_size((listed["height"], listed["width"]), image, path)
        for annotation in self.annotations[item]:
            mask = self.coco.annToMask(annotation).astype(bool)
            name = self.names[annotation["category_id"]]
            masks[name] = mask | masks[name] if name in masks else mask
        masks = {name: masks[name] for name in self.classes if name in masks}
        image_id = f"{item:012d}" if isinstance(item, int) else str(item)
        return Example(image_id, image, masks, np.zeros(image.size[::-1], bool))


def _sorted(ids):
    """Ids in order: by number, or where one is a word by what they are called."""
    ids = list(ids)
    return sorted(ids, key=str if any(isinstance(item, str) for item in ids) else None)


def _area(segmentation, size):
    """About how many pixels of a picture (width, height) a segmentation covers. Raises where it is none that
    pycocotools reads as it is meant: of others it makes an empty mask, leaves pixels as it finds them, or
    takes the process down."""
    if isinstance(segmentation, dict):
        sides, counts = segmentation.get("size"), segmentation.get("counts")
        if sides != [*size[::-1]] or {*map(type, sides)} != {int}:
            raise ValueError(f"its size is {files.few([sides])}, its image's {[*size[::-1]]}")
        if not isinstance(counts, list | str):
            raise ValueError("it has no counts")
        height, width = sides
        counts = counts if isinstance(counts, list) else _run_lengths(counts)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("its run lengths are not whole numbers")
        if sum(counts) != height * width:
            raise ValueError(f"its run lengths cover {sum(counts)} of {height * width} pixels")
        return sum(counts[1::2])
    if not segmentation or not isinstance(segmentation, list):
        raise ValueError("it has no segmentation, and boxes alone cannot be scored")
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon needs three points or more, each of x and y")
        # false for nan as well
        if not all(type(n) in (int, float) and abs(n) < FARTHEST for n in polygon):
            raise ValueError("a polygon has a point that is no number, or far outside of any picture")
    area = 0
    for polygon in segmentation:
        x, y = (np.clip(polygon[k::2], 0, side) for k, side in enumerate(size))
        covered = abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
        around = np.hypot(x - np.roll(x, -1), y - np.roll(y, -1)).sum()
        area += covered if covered > around else 0  # a thinner one may lie between the pixels
    return area


def _run_lengths(text):
    """The run lengths in COCO's compressed form: five bits a character, the lowest first; differences from
    the fourth on."""
    runs, value, shift = [], 0, 0
    for code in text.encode():
        value |= (code - 48 & 31) << shift
        shift += 5
        if not code - 48 & 32:
            if code - 48 & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs
