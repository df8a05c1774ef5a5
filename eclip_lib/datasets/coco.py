"""MS COCO 2017, validation split: 5000 images, 80 classes (paper §4.1)."""

import contextlib
import io
import json
from collections import Counter

import numpy as np
from pycocotools.coco import COCO

from .base import Dataset, Example, check_size, read_image, require

LAYOUT = "root/val2017/*.jpg and root/annotations/instances_val2017.json"


class COCO2017(Dataset):
    """A class's mask is the union of all its annotations in the image, crowd regions included; no void. Images without any
    annotation are left out: they have nothing to score."""

    name = "coco2017"

    def __init__(self, root):
        self.images = require(require(root, self.name, LAYOUT) / "val2017", self.name, LAYOUT)
        path = require(self.images.parent / "annotations" / "instances_val2017.json", self.name, LAYOUT)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress there
                self.coco = COCO(str(path))
            categories = sorted(self.coco.dataset["categories"], key=lambda c: c["id"])
            self.coco.dataset["images"], self.coco.dataset["annotations"]
        except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a complete COCO annotation file ({error!r}); download it again") from error
        twice = [i for i, count in Counter(image["id"] for image in self.coco.dataset["images"]).items() if count > 1]
        if twice:
            raise ValueError(f"{path}: image id {twice[0]} is there twice; which image its annotations mean is not known")
        self.names = {c["id"]: c["name"] for c in categories}
        self.classes = list(self.names.values())
        unknown = {a["category_id"] for a in self.coco.anns.values()} - set(self.names)
        if unknown:
            raise ValueError(f"{path}: annotations of unknown category {sorted(unknown)[0]}")
        self.items = [i for i in sorted(self.coco.imgs) if self.coco.imgToAnns.get(i)]
        if not self.items:
            raise ValueError(f"{self.name}: {path} annotates no image")
        for item in self.items:
            require(self.images / self.coco.imgs[item]["file_name"], self.name, LAYOUT)

    def example(self, item):
        about = self.coco.imgs[item]
        image = read_image(path := self.images / about["file_name"])
        masks = {}
        for annotation in self.coco.imgToAnns[item]:
            name = self.names[annotation["category_id"]]
            try:
                mask = self.coco.annToMask(annotation).astype(bool)
            except Exception as error:  # pycocotools raises bare ones
                raise ValueError(f"{path.name}: the mask of annotation {annotation['id']} cannot be read ({error})") from error
            check_size(mask, image, path)
            masks[name] = mask | masks[name] if name in masks else mask
        masks = {name: masks[name] for name in self.classes if name in masks and masks[name].any()}
        return Example(f"{item:012d}", image, masks, np.zeros(image.size[::-1], bool))
