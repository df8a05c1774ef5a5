"""PASCAL VOC 2012 segmentation, validation split: 1449 images, 20 classes (paper §4.1)."""

from pathlib import Path

import numpy as np

from .. import files
from .base import Dataset, Example, check_size, once, read_image, read_mask

# the dataset's own order; its spellings are written out as words a text encoder has read
CLASSES = (
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse, motorbike, "
    "person, potted plant, sheep, sofa, train, tv monitor"
).split(", ")
VOID = 255


def _colour(label):
    """VOC's colour of a label: its bits, three at a time, from the highest bit of red, green and blue
    down."""
    return tuple(sum((label >> 3 * k + channel & 1) << 7 - k for k in range(3)) for channel in range(3))


LABEL_OF = {_colour(label): label for label in (*range(len(CLASSES) + 1), VOID)}


class VOC2012(Dataset):
    """`root` holds VOCdevkit/. Masks are the palette images of SegmentationClass: 0 background, 1 to 20, 255
    void."""

    name, classes = "voc2012", CLASSES
    layout = "root/VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation/val.txt}"

    def __init__(self, root):
        base = self.require(root) / "VOCdevkit" / "VOC2012"
        self.images, self.labels = map(self.require, (base / "JPEGImages", base / "SegmentationClass"))
        listing = self.require(base / "ImageSets" / "Segmentation" / "val.txt", Path.is_file)
        self.items = [line.strip() for line in files.read_text(listing).splitlines() if line.strip()]
        for item in self.items:
            if item[0] == "#" or len(item.split()) > 1 or not item.isprintable():
                said = f"{listing}: {files.few([item])!r} is not the id of an image"
                raise ValueError(f"{said}; write one id a line, and nothing else")
        if not self.items:
            raise ValueError(f"{self.name}: {listing} lists no image")
        once(self.items, f"{listing}: image")
        for item in self.items:
            for path in self.sources(item):
                self.require(path, Path.is_file)

    def sources(self, item):
        return [self.images / f"{item}.jpg", self.labels / f"{item}.png"]

    def example(self, item):
        photo, path = self.sources(item)
        image, labels = read_image(photo, upright=False), read_labels(path)
        check_size(labels.shape, image, path)
        present = sorted(set(np.unique(labels).tolist()) - {0, VOID})
        if present and present[-1] > len(CLASSES):
            raise ValueError(f"{path}: label {present[-1]} is not one of VOC's {len(CLASSES)} classes")
        return Example(item, image, {CLASSES[k - 1]: labels == k for k in present}, labels == VOID)


def read_labels(path):
    """A mask of SegmentationClass -> labels, uint8 [H, W]. A PNG optimiser may have sorted the palette: its
    colours decide then. Raises ValueError."""
    image = read_mask(path)
    labels = np.asarray(image)
    if labels.ndim != 2 or image.mode == "1":
        kind = "is a colour image" if labels.ndim != 2 else "has one bit a pixel, so no label"
        raise ValueError(f"{path} {kind}; SegmentationClass holds palette images (one label a pixel)")
    if image.mode != "P":
        return labels
    palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
    used = np.unique(labels)
    colours = {int(index): tuple(palette[index].tolist()) for index in used if index < len(palette)}
    grey = all(colour == (index,) * 3 for index, colour in colours.items())  # of a plain greyscale image
    if grey or all(LABEL_OF.get(colour) == index for index, colour in colours.items()):
        return labels
    strange = next((colour for colour in colours.values() if colour not in LABEL_OF), None)
    if strange or len(colours) < len(used):
        said = f"{path}: its palette holds {strange}, no colour of VOC's: the labels cannot be told"
        raise ValueError(f"{said}; get the file again")
    table = np.zeros(256, np.uint8)
    for index, colour in colours.items():
        table[index] = LABEL_OF[colour]
    return table[labels]
