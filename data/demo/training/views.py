"""Views of unlabelled scenes for self-supervised training: the same salient pixels before different
backgrounds.

Background augmentation after Ryali, Schwab and Morcos, "Characterizing and Improving the Robustness of
Self-Supervised Learning through Background Augmentations", 2021; saliency is the distance from the image's
median colour, no label."""

import io
import math
import tarfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from shards import write_scenes
from tqdm.auto import tqdm

from eclip_lib import files
from eclip_lib.datasets import scenes
from eclip_lib.networks.attention import pixel_saliency

LEVELS = ("plain", "cluttered")
IMAGES, SHARD = 40_000, 2000
SIDE = 128  # the pixels of an object do not change their scale much: 128 of 224
MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


def load_images(folder):
    """The first 40,000 training scenes, levels in turn, as a memory-mapped uint8 array [n, 224, 224, 3];
    decoded once."""
    path = Path(folder, f"images{IMAGES}.npy")
    if not path.exists():
        shards = write_scenes(Path(folder, "scenes"), scenes.PRETRAINING, levels=LEVELS)
        with files.replacing(path) as partial:
            array = np.lib.format.open_memmap(partial, "w+", np.uint8, (IMAGES, scenes.SIZE, scenes.SIZE, 3))
            for number, shard in enumerate(tqdm(shards[: IMAGES // SHARD], desc="decoding", unit="shard")):
                with tarfile.open(shard) as tar:
                    pictures = (tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg"))
                    for k, picture in enumerate(pictures, number * SHARD):
                        array[k] = np.asarray(Image.open(io.BytesIO(picture)))
            array.flush()
    return np.load(path, mmap_mode="r")


def salient(images):
    """Soft mask [B, 1, 224, 224] of what differs from the image's median colour. images: [B, 3, 224, 224] in
    [0, 1]."""
    grid = (images.shape[-1] // 8,) * 2
    distance = pixel_saliency(images, grid).unflatten(1, grid)[:, None]
    distance = F.avg_pool2d(distance, 3, 1, 1, count_include_pad=False)
    edge = 0.4 * distance.flatten(1).quantile(0.97, dim=1)[:, None, None, None]
    distance = F.interpolate(distance, scale_factor=8, mode="bilinear", align_corners=False)
    return ((distance - edge) / (0.15 * edge)).sigmoid()


def _uniform(n, low, high):
    return torch.empty(n, 1, 1, 1).uniform_(low, high)


def _crop(images, side, low, high):
    """Random resized crop and flip: of `low` to `high` of the area, to side x side."""
    n = len(images)
    area = _uniform(n, low, high).flatten()
    ratio = _uniform(n, math.log(3 / 4), math.log(4 / 3)).flatten().exp()
    width = (area * ratio).sqrt().clamp(max=1)
    height = (area / ratio).sqrt().clamp(max=1)
    frame = torch.zeros(n, 2, 3)
    frame[:, 0, 0] = width * (torch.randint(0, 2, (n,)) * 2 - 1)
    frame[:, 1, 1] = height
    frame[:, 0, 2] = (torch.rand(n) * 2 - 1) * (1 - width)
    frame[:, 1, 2] = (torch.rand(n) * 2 - 1) * (1 - height)
    grid = F.affine_grid(frame, (n, 3, side, side), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="reflection")


def _jitter(images):
    """Brightness, contrast, saturation (one image in ten grey), then ImageNet's normalisation, as DINO and
    MoCo v3 read it."""
    n = len(images)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * _uniform(n, 0.5, 1.3) * (_uniform(n, 0, 1) > 0.1)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * _uniform(n, 0.7, 1.3)) * _uniform(n, 0.7, 1.3)
    return (images.clamp(0, 1) - MEAN) / STD


class Views:
    """Batches of views of `array`; the plain scenes (even indices) give the salient pixels. Behind them lies,
    in a share `as_it_is` of the batches, a window of any scene as it is, else another plain scene without its
    own salient pixels."""

    def __init__(self, array, batch, as_it_is, seed):
        self.array, self.batch, self.as_it_is = array, batch, as_it_is
        self.rng = np.random.default_rng(seed)

    def _tensor(self, arrays):
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float().div_(255)

    def _windows(self, side):
        chosen = self.rng.choice(len(self.array), self.batch, replace=False)
        corners = self.rng.integers(0, scenes.SIZE + 1 - side, (self.batch, 2))
        places = zip(chosen, corners, strict=True)
        return self._tensor([self.array[k, y : y + side, x : x + side] for k, (y, x) in places])

    def scenes(self):
        """RGB and salient mask of a batch of scenes [B, 4, 224, 224]."""
        chosen = self.rng.choice(np.arange(0, len(self.array), 2), self.batch, replace=False)
        images = self._tensor([self.array[k] for k in chosen])
        return torch.cat([images, salient(images)], 1)

    def view(self, sources, low, high):
        """A crop of `low` to `high` of the area of sources [B, 4, 224, 224] -> [B, 3, 128, 128],
        normalised."""
        cropped = _crop(sources, SIDE, low, high)
        image, mask = cropped[:, :3], cropped[:, 3:]
        if self.rng.random() < self.as_it_is:
            behind = self._windows(SIDE)
        else:
            others, salient_there = sources[torch.randperm(len(sources))].split([3, 1], 1)
            others = others * (1 - salient_there) + others.roll(scenes.SIZE // 2, -1) * salient_there
            behind = _crop(others, SIDE, low, high)
        return _jitter(image * mask + behind * (1 - mask))
