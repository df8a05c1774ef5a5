"""An explainer over a dataset -> one row per (image, class); rows -> a summary with intervals (paper §4.1, Tables 1 to 3)."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from .clip import PROMPT, Clip, stacked
from .datasets.base import Dataset
from .itsm import itsm, score
from .metrics import average_precision, best_iou, score_contrast

COLUMNS = ["image_id", "class_name", "iou", "threshold", "score_contrast", "foreground"]


class _Prepared(TorchDataset):
    """Decodes and preprocesses where the loader's workers run; masks stay at the image's own resolution."""

    def __init__(self, dataset, preprocess):
        self.dataset, self.preprocess = dataset, preprocess

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return self._prepare(self.dataset[index])
        except (ValueError, OSError) as error:  # a worker's own exception would arrive wrapped in its traceback
            return error

    def _prepare(self, example):
        unknown = set(example.masks) - set(self.dataset.classes)
        if unknown:
            raise ValueError(f"{example.image_id}: masks of unknown classes {sorted(unknown)}")
        names = [name for name, mask in example.masks.items() if (mask if example.void is None else mask & ~example.void).any()]
        masks = torch.from_numpy(np.stack([example.masks[n] for n in names])) if names else None
        void = None if example.void is None or not example.void.any() else torch.from_numpy(example.void)
        return example.image_id, self.preprocess(example.image), names, masks, void


def batches(dataset, clip, batch_size, workers, description):
    """Batches of (image_id, prepared image, class names, masks [n, H, W], void or None), decoded in `workers`, with a progress bar."""
    if not len(dataset):
        raise ValueError("the dataset is empty")
    loader = DataLoader(_Prepared(dataset, clip.preprocess), batch_size, num_workers=workers, collate_fn=list)
    with tqdm(total=len(dataset), desc=description, unit="image") as bar:
        for batch in loader:
            for item in batch:
                if isinstance(item, Exception):
                    raise item
            yield batch
            bar.update(len(batch))


@torch.no_grad()
def prompts(dataset, clip):
    """F_t [T, Ct] of the dataset's classes, one prompt a class: "a photo of the {class}"."""
    return clip.encode_text([PROMPT.format(name) for name in dataset.classes])


def evaluate(
    explainer: Callable | dict[str, Callable], dataset: Dataset, clip: Clip, workers: int = 0, batch_size: int = 32, normalize: str = "after",
    description: str | None = None, observe: Callable | None = None,
):  # fmt: skip
    """Score an explainer on every (image, class present) pair of a dataset.

    explainer: see `explainers`; or {name: explainer}, scored in one pass over the images, those that need nothing but CLIP's
    features in one forward pass. workers: processes that decode images. normalize: Eq. 5's order, see `itsm`. observe: called
    with the scored maps [P, H, W], masks and void (or None) of images of one size, for statistics of one's own in the same pass.
    Streams: memory does not grow with the dataset. Returns a DataFrame (or {name: DataFrame}), one row a pair: image_id, class_name,
    iou (best over thresholds), threshold, score_contrast (nan where the image has no background), foreground (share of the pixels
    that count, which is also the IoU of the all-foreground map)."""
    text, number = prompts(dataset, clip), {name: k for k, name in enumerate(dataset.classes)}
    methods = explainer if isinstance(explainer, dict) else {"": explainer}
    rows: dict[str, list] = {name: [] for name in methods}
    for batch in batches(dataset, clip, batch_size, workers, description or "evaluating"):
        images = stacked([prepared for _, prepared, *_ in batch], clip.device)
        pairs = [(i, number[name]) for i, (_, _, names, *_) in enumerate(batch) for name in names]
        if not pairs:
            continue
        index, features = torch.tensor(pairs, device=clip.device), None
        for method, explain in methods.items():
            with torch.set_grad_enabled(hasattr(explain, "pairs")):
                if hasattr(explain, "pairs"):
                    maps = explain.pairs(images, text, index).detach()
                elif hasattr(explain, "of_features"):
                    features = features or clip.encode_image(images)
                    maps = explain.of_features(features, text)[index[:, 0], index[:, 1]]
                else:
                    maps = explain(images, text)[index[:, 0], index[:, 1]]
            maps = iter(maps.split([len(names) for _, _, names, *_ in batch]))
            by_size = defaultdict(list)  # images of one size are scored together
            for image_id, _, names, masks, void in batch:
                scored = next(maps)
                if names:
                    by_size[masks.shape[1:]].append((image_id, names, scored, masks, void))
            for size, group in by_size.items():
                rows[method] += _score(size, group, normalize, observe)
    frames = {name: pd.DataFrame(lines, columns=COLUMNS) for name, lines in rows.items()}
    return frames if isinstance(explainer, dict) else frames[""]


def _score(size, group, normalize, observe):
    counts = [len(names) for _, names, *_ in group]
    device = group[0][2].device
    maps = itsm(torch.cat([scored for _, _, scored, *_ in group])[:, None], size, normalize)[:, 0]
    masks = torch.cat([masks for *_, masks, _ in group]).to(device)
    void = None
    if any(v is not None for *_, v in group):
        empty = torch.zeros(size, dtype=torch.bool)
        void = torch.cat([(empty if v is None else v).expand(n, *size) for n, (*_, v) in zip(counts, group, strict=True)]).to(
            device
        )
    if observe:
        observe(maps, masks, void)
    valid = torch.ones_like(masks) if void is None else ~void
    foreground = (masks & valid).sum((1, 2)) / valid.sum((1, 2))
    columns = [*best_iou(maps, masks, void), score_contrast(maps, masks, void), foreground]
    names = [(image_id, name) for image_id, classes, *_ in group for name in classes]
    return [(*key, *values) for key, values in zip(names, torch.stack([c.double() for c in columns], 1).tolist(), strict=True)]


def _means(rows, value):
    """Class mean and pair mean of a column, in %; pairs without a value are left out."""
    return 100 * rows.groupby("class_name")[value].mean().mean(), 100 * rows[value].mean()


def summarize(rows: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> pd.Series:
    """Rows of `evaluate` -> a Series of §4.1's measures, in %.

    mIoU, mSC: mean per class, then over classes. `_pairs`: mean over all (image, class) pairs. `floor`: mIoU of the
    all-foreground map. `_low`, `_high`: 95 % bootstrap interval over images. images, pairs: how many; no_contrast: pairs
    left out of mSC because they have no background."""
    if rows.empty:
        raise ValueError("no rows to summarize: evaluate() found no (image, class) pair")
    summary = {}
    for value, name in (("iou", "mIoU"), ("score_contrast", "mSC")):
        summary[name], summary[f"{name}_pairs"] = _means(rows, value)
        summary[f"{name}_low"], summary[f"{name}_high"] = np.nanpercentile(bootstrap(rows, value, resamples, seed), [2.5, 97.5])
    summary["floor"] = _means(rows, "foreground")[0]
    summary["images"], summary["pairs"] = rows["image_id"].nunique(), len(rows)
    summary["no_contrast"] = int(rows["score_contrast"].isna().sum())
    return pd.Series(summary)


def bootstrap(rows, value, resamples=1000, seed=0):
    """Class means of `value` in % over bootstrap resamples of the images -> [resamples]. The same seed draws the same images
    for two methods on one dataset, so that their difference is paired."""
    images, image = np.unique(rows["image_id"], return_inverse=True)
    classes, label = np.unique(rows["class_name"], return_inverse=True)
    known = rows[value].notna().to_numpy()
    sums, counts = (np.zeros((len(images), len(classes))) for _ in range(2))
    np.add.at(sums, (image[known], label[known]), rows[value].to_numpy()[known])
    np.add.at(counts, (image[known], label[known]), 1)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(images), np.full(len(images), 1 / len(images)), size=resamples).astype(float)
    with np.errstate(invalid="ignore"):
        return 100 * np.nanmean((weights @ sums) / (weights @ counts), axis=1)


@torch.no_grad()
def recognize(dataset, clip, workers=0, batch_size=64):
    """Recognition by CLIP's own pair (Eq. 3, Table 4) -> (scores [N, T] cosines, labels bool [N, T], mAP in %)."""
    text = prompts(dataset, clip)
    scores, labels = [], []
    for batch in batches(dataset, clip, batch_size, workers, "recognizing"):
        images = stacked([prepared for _, prepared, *_ in batch], clip.device)
        scores.append(score(clip.encode_image(images).class_token, text, clip.projection).cpu())
        labels += [[name in names for name in dataset.classes] for _, _, names, *_ in batch]
    scores, labels = torch.cat(scores).numpy(), np.array(labels)
    return scores, labels, 100 * np.nanmean(average_precision(scores, labels))
