"""What every dataset is: `Example`s with a list of class names; and how every picture is read."""

import copy
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .. import files


@dataclass(frozen=True)
class Example:
    """One annotated image. `masks`: class name -> bool [H, W]; `void`: bool [H, W], what counts neither
    way."""

    image_id: str
    image: Image.Image
    masks: dict[str, np.ndarray]
    void: np.ndarray | None = None

    @property
    def largest(self) -> str:
        """The class that covers most of the image."""
        return max(self.masks, key=lambda name: self.masks[name].sum())


# what is behind objects of photographs, in the words of SCLIP's configurations
BEHIND = (
    "sky, wall, tree, wood, grass, road, sea, river, mountain, sands, desk, bed, building, cloud, lamp, "
    "door, window, wardrobe, ceiling, shelf, curtain, stair, floor, hill, rail, fence"
).split(", ")


class Dataset(Sequence):
    """A sequence of `Example`s. `name` and `classes` (in the dataset's own order) describe it; `items` holds
    what one example needs, and `example(item)` reads it from the files `sources(item)`. `background`: the
    names of what is behind the objects, for segmentation with a background. The constructor finds out what is
    missing before any work starts."""

    name: str
    layout: str  # of its files, in words
    classes: list[str]
    background: Sequence[str] = BEHIND
    items: Sequence

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        return self.example(self.items[index])

    def example(self, item) -> Example:
        raise NotImplementedError

    def require(self, path, is_there=Path.is_dir):
        """The path of a folder, or a file (Path.is_file). Raises FileNotFoundError that names the layout."""
        if is_there(path := Path(path)):
            return path
        there = next((place for place in (path, *path.parents) if place.exists()), path)
        wrong = f"{there} is no {'file' if there.is_dir() else 'folder'}"
        said = f"{self.name}: {wrong if there.is_file() or path.exists() else f'{path} is missing'}"
        rest = path.relative_to(there)
        # folders lie below the root that was meant; the files that a list names may lie anywhere
        around = [*there.parents[:2], *sorted(there.glob("*"))] if is_there == Path.is_dir else []
        holds = [place for place in around if rest.parts and os.path.exists(place / rest)]
        other = f", but {holds[0]} has it: name that" if holds else ""
        raise FileNotFoundError(
            f"{said}{other}. Expected {self.layout}. See data/README.md for how to get it."
        )

    def sources(self, item) -> list[Path]:
        """The files that an example is read from, by which a run notices that one changed; [] where it is
        drawn by the library. A class without it is never taken for the same again."""
        raise NotImplementedError

    @property
    def identity(self):
        """What decides an evaluation on this dataset, as JSON's types: its items and the state of their
        files; None where the class does not tell its `sources`."""
        if type(self).sources is Dataset.sources:
            return None
        items = [[str(item), *map(files.stamp, self.sources(item))] for item in self.items]
        return {"dataset": self.name, "items": files.digest([list(self.classes), items]), "images": len(self)}

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


def examples(dataset: Dataset, count: int, start: int = 0) -> list[Example]:
    """The first `count` annotated images from `start` on, each with a class not shown before if there is
    one."""
    chosen: list[Example] = []
    spare: list[Example] = []
    seen: set[str] = set()
    for index in range(start, min(len(dataset), start + 10 * count)):
        example = dataset[index]
        if not example.masks:
            continue
        fresh = [name for name in example.masks if name not in seen]
        (chosen if fresh else spare).append(example)
        seen |= set(example.masks)
        if len(chosen) == count:
            break
    return (chosen + spare)[:count]


def once(values, what):
    """Raise ValueError where one of the values is there twice. what: they are, in words."""
    for value in (value for value, count in Counter(values).items() if count > 1):
        raise ValueError(f"{what} {value!r} is there twice; keep one, or give each its own")


def read_image(path, mode="RGB", upright=True, name=None):
    """Decode an image whole -> PIL image of 8 bits; of an animated one the first frame.

    path: a file, or its bytes as a file object with `name` for messages. mode "RGB" converts: more bits are
    scaled to 8, transparent pixels are white. None keeps the file's own mode (label images). upright: turned
    as its EXIF orientation says, for photos; masks lie on the file's own pixels. Raises FileNotFoundError, or
    ValueError that names a file that is no picture."""
    name = name or path
    try:
        with Image.open(path) as image:
            kind, raw = image.format, image.tile[0][3] if image.tile else None
            tags = dict(getattr(image, "tag_v2", {}))  # of a TIFF
            image.load()
            image = ImageOps.exif_transpose(image) if upright else image.copy()
    except FileNotFoundError:
        raise
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no kind that Pillow reads" if unknown else str(error).replace(str(path), "it")
        raise ValueError(
            f"{name} cannot be read as an image ({reason}); download it again, convert it to an 8-bit PNG or "
            "remove it from the list"
        ) from error
    if mode is None:
        return image
    if kind == "PNG" and (clear := image.info.get("transparency")) is not None:
        if raw == "RGB;16B":
            raise ValueError(f"{name} has 16 bits a channel and a transparent colour; save it with 8 bits")
        image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}.get(raw, 1)  # as Pillow scales the grey
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image, kind, name, tags)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def read_mask(path):
    """A label image -> PIL image in the file's own mode. Raises FileNotFoundError, ValueError where Pillow
    would change the labels: it scales 2 and 4 bits of grey to 8, and cuts 16 bits of a colour."""
    mask = read_image(path, mode=None, upright=False)
    with open(path, "rb") as file:
        head = file.read(26)
    if not head.startswith(b"\x89PNG"):
        raise ValueError(f"{path} is no PNG, and labels outlive no other kind; get the file again")
    depth, palette, grey = head[24], head[25] == 3, head[25] == 0
    if (depth in (2, 4) and not palette) or (depth == 16 and not grey):
        raise ValueError(f"{path} has {depth} bits a channel; save it with 8, or as a palette image")
    return mask


def _eight_bits(image, kind, name, tags):
    """A picture of one channel of floats or of more than 8 bits -> 8 bits, white where transparent; Pillow
    would clip, and goes neither by a TIFF's 12 bits nor by its white of 0."""
    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    # Pillow may call the 16 bits of these two "I"; they have no more
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM"))
    most = 2 ** tags.get(ExifTags.Base.BitsPerSample, (16,))[0] - 1
    top = most if sixteen else 1 if image.mode == "F" and high <= 1 else 255 if high <= 255 else 65535
    if not (low >= 0 and high <= top):  # false for nan as well
        raise ValueError(
            f"{name} holds values from {low:g} to {high:g}, not of 0 to 1, 8 or 16 bits; convert it to 8 "
            "bits first"
        )
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        values = top - values
    grey = (values * (255 / top)).round().astype(np.uint8)
    grey[values == image.info.get("transparency")] = 255
    return Image.fromarray(grey)


def check_size(shape, image, path):
    """Raise ValueError where the shape (H, W) of a mask is not that of its image (PIL)."""
    height, width = shape
    if (width, height) != image.size:
        raise ValueError(f"{path}: the mask is {width}x{height}, its image {image.width}x{image.height}")
