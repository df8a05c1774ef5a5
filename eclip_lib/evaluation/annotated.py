"""Annotated images as an evaluation sees them: decoded, prepared, in batches."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from ..datasets.base import Dataset
from ..networks.clip import PROMPT, Clip, loaded, to_batch
from ..progress import tqdm
from .segmentation import windows


@dataclass(frozen=True)
class Batch:
    """Images of one batch and what is annotated in them. `ids`: B names. `images`: [B, 3, H, W], prepared, on
    CLIP's device. `names`: the classes present in each. `masks`: for each bool [n, h, w] at the image's own
    size; `void`: for each bool [h, w]. `windows`: for each [n, 3, H, W], its sliding windows if asked."""

    ids: list[str]
    images: torch.Tensor
    names: list[list[str]]
    masks: list[torch.Tensor]
    void: list[torch.Tensor]
    windows: list[torch.Tensor] | None = None

    def __len__(self):
        return len(self.ids)

    @property
    def objects(self) -> list[torch.Tensor]:
        """The union of all classes, for each image bool [h, w]."""
        return [masks.any(0) for masks in self.masks]

    def index(self, classes) -> torch.Tensor:
        """(image, class) of every pair present -> int64 [P, 2]."""
        number = {name: k for k, name in enumerate(classes)}
        pairs = [(i, number[name]) for i, names in enumerate(self.names) for name in names]
        return torch.tensor(pairs, device=self.images.device).reshape(-1, 2)

    def with_at_least(self, count) -> "Batch":
        """The images in which so many classes are present."""
        keep = [k for k, names in enumerate(self.names) if len(names) >= count]
        if len(keep) == len(self):
            return self
        lists = ("ids", "names", "masks", "void", *["windows"] * (self.windows is not None))
        parts = {name: [getattr(self, name)[k] for k in keep] for name in lists}
        return replace(self, images=self.images[keep], **parts)


class _Prepared(TorchDataset):
    """Decodes and preprocesses where the loader's workers run; masks stay at the image's own resolution."""

    def __init__(self, dataset, preprocess, window=None):
        self.dataset, self.preprocess, self.window = dataset, preprocess, window

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return self._prepare(self.dataset[index])
        except (ValueError, OSError) as error:  # raised in a worker it would come wrapped in its traceback
            return error

    def _prepare(self, example):
        unknown = set(example.masks) - set(self.dataset.classes)
        if unknown:
            raise ValueError(f"{example.image_id}: masks of unknown classes {sorted(unknown)}")
        size = example.image.size[::-1]
        void = np.zeros(size, bool) if example.void is None else example.void
        names = [name for name, mask in example.masks.items() if (mask & ~void).any()]
        masks = np.stack([example.masks[name] for name in names]) if names else np.zeros((0, *size), bool)
        image, more = self.preprocess(example.image), []
        if self.window:
            more = [windows(example.image, self.preprocess, self.window)]
        return example.image_id, image, names, torch.from_numpy(masks), torch.from_numpy(void), *more


def batches(
    dataset: Dataset,
    clip: Clip,
    batch_size: int,
    workers: int,
    description: str,
    slide: bool = False,
    least: int = 0,
) -> Iterator[Batch]:
    """A dataset in `Batch`es, decoded in `workers`, with a progress bar. slide: with sliding windows; least:
    only images in which so many classes are present. Raises ValueError where it is empty or broken."""
    if not len(dataset):
        raise ValueError("the dataset is empty")
    title = f"{clip.network} on {getattr(dataset, 'name', 'a dataset')}, {description}"
    with tqdm(total=len(dataset), desc=title, unit="image") as bar:
        prepared = _Prepared(dataset, clip.preprocess, clip.size if slide else None)
        for items in loaded(prepared, batch_size, workers):
            for item in items:
                if isinstance(item, Exception):
                    raise item
            ids, images, *annotations = zip(*items, strict=True)
            batch = Batch(list(ids), to_batch(images, clip.device), *map(list, annotations))
            if len(batch := batch.with_at_least(least)):
                yield batch
            bar.update(len(items))


@torch.no_grad()
def prompts(dataset, clip) -> torch.Tensor:
    """F_t [T, Ct] of the dataset's classes, one prompt a class: "a photo of the {class}"."""
    return clip.encode_text([PROMPT.format(name) for name in dataset.classes])
