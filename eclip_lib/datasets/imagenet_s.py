"""ImageNet-S50, validation split: 752 images, 50 classes, one class an image (paper §4.1)."""

from pathlib import Path

import numpy as np

from .base import Dataset, Example, check_size, once, read_image, read_mask

VOID = 1000
# class id = line number, from 1: the 50 synsets in sorted order, each with the words its prompt uses
LINES = Path(__file__).with_name("imagenet_s50.tsv").read_text().splitlines()
SYNSETS = dict(line.split("\t") for line in LINES)


class ImageNetS50(Dataset):
    """`root` is the folder ImageNetS50, or the one that holds it. Masks are RGB images whose class id is R +
    256 G: 0 other, 1 to 50, 1000 void."""

    name, classes = "imagenet-s50", list(SYNSETS.values())
    layout = (
        "root/validation/<synset>/*.JPEG and root/validation-segmentation/<synset>/*.png (its own layout)"
    )

    def __init__(self, root):
        root = self.require(root)
        root = root / "ImageNetS50" if (root / "ImageNetS50").is_dir() else root
        self.images, self.labels = map(self.require, (root / "validation", root / "validation-segmentation"))
        found = [*self.images.glob("*/*.JPEG"), *self.labels.glob("*/*.png")]  # a picture or mask may be gone
        found = [Path(p.parent.name, f"{p.stem}.JPEG") for p in found if not p.name.startswith("._")]
        self.items = sorted(set(found))
        if not self.items:
            raise FileNotFoundError(
                f"{self.name}: no image in {self.images}. Expected {self.layout}. See data/README.md."
            )
        for item in self.items:
            if (synset := item.parts[0]) not in SYNSETS:
                said = f"{synset} is not one of the 50 synsets of ImageNet-S50"
                raise ValueError(f"{self.images / item}: {said}")
            for path in self.sources(item):
                self.require(path, Path.is_file)
        once((item.stem for item in self.items), f"{self.images}: image")

    def sources(self, item):
        return [self.images / item, self.labels / item.with_suffix(".png")]

    def example(self, item):
        photo, path = self.sources(item)
        image = read_image(photo, upright=False)
        mask = read_mask(path)
        if mask.mode != "RGB":
            raise ValueError(f"{path} is no RGB image (its class id would be R + 256 G); get the file again")
        colours = np.asarray(mask).astype(np.int32)  # before the product: 256 G overflows uint8
        if colours[..., 2].any():
            said = f"{path}: blue is not 0 everywhere, as in masks of R + 256 G"
            raise ValueError(f"{said}; get the file again")
        labels = colours[..., 0] + 256 * colours[..., 1]
        check_size(labels.shape, image, path)
        present = sorted(set(np.unique(labels).tolist()) - {0, VOID})
        if present and present[-1] > len(SYNSETS):
            raise ValueError(f"{path}: class id {present[-1]} is beyond the {len(SYNSETS)} of ImageNet-S50")
        return Example(item.stem, image, {self.classes[k - 1]: labels == k for k in present}, labels == VOID)
