"""PASCAL VOC 2012 segmentation, validation split: 1449 images, 20 classes (paper §4.1)."""

from collections import Counter

import numpy as np

from .base import Dataset, Example, check_size, read_image, require

# the dataset's own order; its spellings are written out as words a text encoder has read
CLASSES = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog",
           "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor"]  # fmt: skip
LAYOUT = "root/VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation/val.txt}"
VOID = 255


class VOC2012(Dataset):
    """`root` holds VOCdevkit/. Masks are the palette images of SegmentationClass: 0 background, 1 to 20, 255 void."""

    name, classes = "voc2012", CLASSES

    def __init__(self, root):
        base = require(root, self.name, LAYOUT) / "VOCdevkit" / "VOC2012"
        self.images = require(base / "JPEGImages", self.name, LAYOUT)
        self.labels = require(base / "SegmentationClass", self.name, LAYOUT)
        listing = require(base / "ImageSets" / "Segmentation" / "val.txt", self.name, LAYOUT)
        self.items = listing.read_text().split()
        if not self.items:
            raise ValueError(f"{self.name}: {listing} lists no image")
        twice = [item for item, count in Counter(self.items).items() if count > 1]
        if twice:
            raise ValueError(f"{listing} lists {twice[0]} twice: it would count twice")
        for item in self.items:
            require(self.images / f"{item}.jpg", self.name, LAYOUT)
            require(self.labels / f"{item}.png", self.name, LAYOUT)

    def example(self, item):
        image, path = read_image(self.images / f"{item}.jpg"), self.labels / f"{item}.png"
        labels = np.asarray(read_image(path, mode=None))
        if labels.ndim != 2:
            raise ValueError(f"{path} is a colour image; SegmentationClass holds palette images (one label a pixel)")
        check_size(labels, image, path)
        present = sorted(set(np.unique(labels).tolist()) - {0, VOID})
        if present and present[-1] > len(CLASSES):
            raise ValueError(f"{path}: label {present[-1]} is not one of VOC's {len(CLASSES)} classes")
        return Example(item, image, {CLASSES[k - 1]: labels == k for k in present}, labels == VOID)
