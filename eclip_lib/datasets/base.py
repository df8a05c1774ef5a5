"""What every dataset is: a sequence of `Example`s with a list of class names."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


@dataclass(frozen=True)
class Example:
    """One annotated image. `masks`: class name -> bool [H, W]; `void`: bool [H, W], pixels that count neither way."""

    image_id: str
    image: Image.Image
    masks: dict[str, np.ndarray]
    void: np.ndarray | None = None


class Dataset(Sequence):
    """A sequence of `Example`s. `name` and `classes` (in the dataset's own order) describe it; `items` holds what one
    example needs, and `example(item)` reads it. The constructor finds out what is missing before any work starts."""

    name: str
    classes: list[str]
    items: Sequence

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        return self.example(self.items[index])

    def first(self, limit: int | None) -> "Dataset":
        """The same dataset cut to its first `limit` items (None keeps all)."""
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        return self.part(0, limit)

    def part(self, start: int, stop: int | None) -> "Dataset":
        """The same dataset cut to its items from `start` up to `stop`."""
        part = copy.copy(self)
        part.items = self.items[start:stop]
        return part


def require(path, dataset, layout):
    """Return `path`, or raise FileNotFoundError that says which dataset lacks it and which layout is expected."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{dataset}: {path} is missing. Expected {layout}. See data/README.md for how to get it.")
    return Path(path)


def read_image(path, mode="RGB", upright=False):
    """Decode an image whole; of an animated one the first frame. mode "RGB" converts (16 bits are scaled to 8); None keeps the file's own
    mode (label images). upright: turned as its EXIF orientation says, for photos; masks lie on the file's own pixels. Raises
    ValueError naming a corrupt file."""
    try:
        with Image.open(path) as image:
            image.load()
            image = ImageOps.exif_transpose(image) if upright else image
            if mode and image.mode.startswith("I"):  # Pillow would clip at 255
                image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
            return image.convert(mode) if mode else image.copy()
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as an image ({error}); download it again or remove it from the list"
        ) from error


def check_size(mask, image, path):
    """Raise ValueError where a mask [H, W] and its image (PIL) differ in size."""
    if mask.shape != image.size[::-1]:
        raise ValueError(f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]}, its image {image.width}x{image.height}")
