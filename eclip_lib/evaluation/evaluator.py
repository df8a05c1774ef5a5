"""An explainer over a dataset -> one tidy row a method, image and class (paper §4.1, Tables 1 to 3)."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset as TorchDataset

from ..datasets.base import Dataset
from ..explainers import Shared, maps
from ..method import itsm, score
from ..networks.clip import PROMPT, Clip, loaded, to_batch
from ..progress import tqdm
from .metrics import average_precision, best_iou, score_contrast

KEYS, SCORES = ["image_id", "class_name"], ["iou", "threshold", "score_contrast", "foreground"]
COLUMNS = [*KEYS, *SCORES, "dataset", "network", "method", "seed"]


def read_rows(path, columns=None) -> pd.DataFrame | None:
    """Rows that were written as CSV, to the last bit, or None where they are not there or not whole."""
    try:
        rows = pd.read_csv(path, dtype={"image_id": str}, float_precision="round_trip")
        return rows if columns is None else rows[columns]
    except pd.errors.EmptyDataError:  # a table without rows is an empty line
        return pd.DataFrame() if columns is None and os.path.getsize(path) else None
    except (OSError, ValueError, KeyError):
        return None


@dataclass(frozen=True)
class Batch:
    """Images of one batch and what is annotated in them. `ids`: B names. `images`: [B, 3, H, W], prepared, on
    CLIP's device. `names`: the classes present in each. `masks`: for each bool [n, h, w] at the image's own
    size; `void`: for each bool [h, w]."""

    ids: list[str]
    images: torch.Tensor
    names: list[list[str]]
    masks: list[torch.Tensor]
    void: list[torch.Tensor]

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
        parts = {name: [getattr(self, name)[k] for k in keep] for name in ("ids", "names", "masks", "void")}
        return replace(self, images=self.images[keep], **parts)


class _Prepared(TorchDataset):
    """Decodes and preprocesses where the loader's workers run; masks stay at the image's own resolution."""

    def __init__(self, dataset, preprocess):
        self.dataset, self.preprocess = dataset, preprocess

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
        image = self.preprocess(example.image)
        return example.image_id, image, names, torch.from_numpy(masks), torch.from_numpy(void)


def batches(dataset: Dataset, clip: Clip, batch_size: int, workers: int, description: str) -> Iterator[Batch]:
    """A dataset in `Batch`es, decoded in `workers`, with a progress bar. Raises ValueError where it is empty
    or cannot be read."""
    if not len(dataset):
        raise ValueError("the dataset is empty")
    title = f"{clip.network} on {getattr(dataset, 'name', 'a dataset')}, {description}"
    with tqdm(total=len(dataset), desc=title, unit="image") as bar:
        for items in loaded(_Prepared(dataset, clip.preprocess), batch_size, workers):
            for item in items:
                if isinstance(item, Exception):
                    raise item
            ids, images, *annotations = zip(*items, strict=True)
            yield Batch(list(ids), to_batch(images, clip.device), *map(list, annotations))
            bar.update(len(items))


@torch.no_grad()
def prompts(dataset, clip) -> torch.Tensor:
    """F_t [T, Ct] of the dataset's classes, one prompt a class: "a photo of the {class}"."""
    return clip.encode_text([PROMPT.format(name) for name in dataset.classes])


def evaluate(
    explainer: Callable | dict,
    dataset: Dataset,
    clip: Clip,
    workers: int = 0,
    batch_size: int = 32,
    normalize: str = "after",
    description: str = "evaluating",
    observe: Callable | None = None,
) -> pd.DataFrame:
    """Score an explainer on every (image, class present) pair of a dataset.

    explainer: see `explainers`; or {method: explainer} and {(method, seed): explainer}, scored in one pass
    over the images, those that need nothing but CLIP's features in one forward pass. workers: processes that
    decode images. normalize: Eq. 5's order, see `itsm`. observe: called with the scored maps [P, H, W], masks
    and void (or None) of images of one size, for statistics of one's own in the same pass. Streams: memory
    does not grow with the dataset.

    Returns a DataFrame, one row a method and pair: image_id, class_name, iou (best over thresholds),
    threshold, score_contrast (nan where the image has no background), foreground (share of the pixels that
    count, which is also the IoU of the all-foreground map), and the dataset, network, method and seed that it
    belongs to. Raises ValueError."""
    text = prompts(dataset, clip)
    rows: dict = defaultdict(list)
    methods = explainer if isinstance(explainer, dict) else {None: explainer}
    for batch in batches(dataset, clip, batch_size, workers, description):
        batch = batch.with_at_least(1)
        if not len(batch):
            continue
        index, shared = batch.index(dataset.classes), Shared(clip, batch.images)
        for key, explain in methods.items():
            found = maps(explain, batch.images, text, index, shared)
            rows[key] += _score_batch(batch, found, normalize, observe)
    frames = []
    for key in methods:
        method, seed = key if isinstance(key, tuple) else (key, None)
        frame = pd.DataFrame(rows[key], columns=[*KEYS, *SCORES])
        frames.append(
            frame.assign(dataset=getattr(dataset, "name", None), network=clip.title, method=method, seed=seed)
        )
    return pd.concat(frames, ignore_index=True)


def _score_batch(batch, found, normalize, observe):
    """Images of one size are scored together."""
    groups, rows = defaultdict(list), []
    for k, cells in enumerate(found.split([len(names) for names in batch.names])):
        groups[tuple(batch.void[k].shape)].append((k, cells))
    for size, group in groups.items():
        places = [k for k, _ in group]
        similarity = torch.cat([cells for _, cells in group])
        device = similarity.device
        scored = itsm(similarity[:, None], size, normalize)[:, 0]
        masks = torch.cat([batch.masks[k] for k in places]).to(device)
        void = None
        if any(batch.void[k].any() for k in places):
            void = torch.cat([batch.void[k].expand_as(batch.masks[k]) for k in places]).to(device)
        if observe:
            observe(scored, masks, void)
        valid = torch.ones_like(masks) if void is None else ~void
        foreground = (masks & valid).sum((1, 2)) / valid.sum((1, 2))
        columns = [*best_iou(scored, masks, void), score_contrast(scored, masks, void), foreground]
        numbers = torch.stack([column.double() for column in columns], 1).tolist()
        names = [(batch.ids[k], name) for k in places for name in batch.names[k]]
        rows += [(*name, *values) for name, values in zip(names, numbers, strict=True)]
    return rows


@torch.no_grad()
def recognize(dataset, clip, workers=0, batch_size=64):
    """Recognition by CLIP's own pair (Eq. 3, Table 4) -> (scores [N, T] cosines, labels bool [N, T], mAP in
    %)."""
    text = prompts(dataset, clip)
    scores, labels = [], []
    for batch in batches(dataset, clip, batch_size, workers, "recognizing"):
        scores.append(score(clip.encode_image(batch.images).class_token, text, clip.projection).cpu())
        labels += [[name in names for name in dataset.classes] for names in batch.names]
    scores, labels = torch.cat(scores).numpy(), np.array(labels)
    return scores, labels, 100 * np.nanmean(average_precision(scores, labels))
