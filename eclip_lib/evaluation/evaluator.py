"""An explainer over a dataset -> one tidy row a method, image and class (paper §4.1, Tables 1 to 3)."""

import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from .. import files
from ..datasets.base import Dataset, once
from ..explainers import Shared, maps
from ..method import itsm, score
from ..networks.clip import Clip
from .annotated import batches, prompts
from .faithfulness import deletion_insertion, faithfulness, road
from .metrics import average_precision, best_of, image_iou, iou_curve, score_contrast
from .segmentation import Segmentation

KEYS, SCORES = ["image_id", "class_name"], ["iou", "threshold", "score_contrast", "foreground"]
COLUMNS = [*KEYS, *SCORES, "dataset", "network", "method", "seed"]
MORE = {  # what may be measured in the same pass: its columns
    "image_threshold": ["iou_image"],
    "argmax": ["argmax_intersection", "argmax_union"],
    "argmax_background": ["argmax_background_intersection", "argmax_background_union"],
    "faithfulness": ["deletion", "insertion"],
    "road": ["road"],
}
ANSWERS = {"faithfulness": deletion_insertion, "road": road}


def read_rows(path, columns=None) -> pd.DataFrame | None:
    """Rows that were written as CSV, to the last bit, or None where they are not there or not whole."""
    kinds = {"dtype": {"image_id": str}, "float_precision": "round_trip"}
    try:  # a class may be called None, or NA
        rows = pd.read_csv(path, keep_default_na=False, na_values=[""], **kinds)
        return rows if columns is None else rows[columns]
    except pd.errors.EmptyDataError:  # a table without rows is an empty line
        return pd.DataFrame() if columns is None and os.path.getsize(path) else None
    except (OSError, ValueError, KeyError):
        return None


def evaluate(
    explainer: Callable | dict,
    dataset: Dataset,
    clip: Clip,
    workers: int = 0,
    batch_size: int = 32,
    normalize: str = "after",
    description: str = "evaluating",
    observe: Callable | None = None,
    measures: Sequence[str] = (),
    slide: bool = False,
    ensemble: bool = False,
) -> pd.DataFrame:
    """Score an explainer on every (image, class present) pair of a dataset.

    explainer: see `explainers`; or {method: explainer} and {(method, seed): explainer}, scored in one pass
    over the images, those that need nothing but CLIP's features in one forward pass. workers: processes that
    decode images. normalize: Eq. 5's order, see `itsm`. observe: called with the scored maps [P, H, W], masks
    and void (or None) of images of one size, for statistics of one's own in the same pass. Streams: memory
    does not grow with the dataset.

    measures: what else is measured in this pass, each with columns of its own (docs/measures.md):
    "image_threshold" (`image_iou`), "faithfulness" and "road" of every pair; "argmax" and "argmax_background"
    (`Segmentation`, by slide and ensemble if asked), pixels of every class present or predicted, which adds
    rows without an iou.

    Returns a DataFrame, one row a method and pair: image_id, class_name, iou (best over thresholds),
    threshold, score_contrast (nan where the image has no background), foreground (share of the pixels that
    count, which is also the IoU of the all-foreground map), and the dataset, network, method and seed that it
    belongs to. Raises ValueError."""
    for name in measures:
        files.require_known(name, MORE, "no measure")
    argmax = [name for name in MORE if name in measures and name.startswith("argmax")]
    segment = {n: Segmentation(clip, dataset, n.endswith("background"), slide, ensemble) for n in argmax}
    asked = [name for name in ANSWERS if name in measures]
    text, order, bare = prompts(dataset, clip), dict[str, int](), []
    rows, pixels = defaultdict[object, list](list), defaultdict[object, list](list)
    methods = explainer if isinstance(explainer, dict) else {None: explainer}
    for batch in batches(dataset, clip, batch_size, workers, description, slide and bool(segment)):
        once([*order, *batch.ids], "image id")
        order |= {name: len(order) + k for k, name in enumerate(batch.ids)}
        bare += [name for name, classes in zip(batch.ids, batch.names, strict=True) if not classes]
        batch = batch if segment else batch.with_at_least(1)  # with a background, every image counts
        index, shared = batch.index(dataset.classes), Shared(clip, batch.images)
        if not rows and len(batch):
            shared.features  # noqa: B018  damaged weights show in them, and not every method reads them
        views = [Shared(clip, w.to(clip.device)) for w in batch.windows] if batch.windows else shared
        for key, explain in methods.items():
            for name, segmentation in segment.items():
                pixels[key, name] += segmentation.rows(batch, explain, views)
            if not len(index):
                continue
            found = maps(explain, batch.images, text, index, shared)
            more = [faithfulness(ANSWERS[name], clip, batch.images, found, text, index) for name in asked]
            rows[key] += _score_batch(batch, found, normalize, observe, more)
    if bare:
        said = f"{len(bare)} of {len(dataset)} images have no class to score and are left out"
        said += " of all but argmax_background" if "argmax_background" in segment else ""
        warnings.warn(f"{said} ({files.few(bare)})", stacklevel=2)
    columns = [*KEYS, *SCORES, *MORE["image_threshold"], *(c for name in asked for c in MORE[name])]
    labels, frames = {"dataset": getattr(dataset, "name", None), "network": clip.title}, []
    for key in methods:
        frame = pd.DataFrame(rows[key], columns=columns)
        frame = frame.drop(columns=[] if "image_threshold" in measures else MORE["image_threshold"])
        for name in segment:
            counted = pd.DataFrame(pixels[key, name], columns=[*KEYS, *MORE[name]])
            frame = frame.merge(counted, "outer", KEYS, validate="1:1")
        frame = frame.sort_values("image_id", key=lambda ids: ids.map(order), kind="stable")
        frames.append(labelled(frame.assign(**labels), key))
    return pd.concat(frames, ignore_index=True)


def labelled(rows, key):
    """Rows with the columns method and seed of their key, a method or (method, seed)."""
    method, seed = key if isinstance(key, tuple) else (key, None)
    return rows.assign(method=method, seed=seed)


def _score_batch(batch, found, normalize, observe, more=()):
    """A row a pair. Images of one size are scored together, as many as a CPU's caches hold. more: [P, …]
    measured elsewhere, further columns."""
    counts, room = [len(names) for names in batch.names], 2**20 if found.device.type == "cpu" else 2**26
    groups, pixels, rows = defaultdict(list), defaultdict(int), []
    for k, pairs in enumerate(torch.arange(len(found), device=found.device).split(counts)):
        if counts[k]:
            size = tuple(batch.void[k].shape)
            groups[size, pixels[size] // room].append((k, pairs))
            pixels[size] += counts[k] * size[0] * size[1]
    for (size, _), group in groups.items():
        places, pairs = [k for k, _ in group], torch.cat([pairs for _, pairs in group])
        scored = itsm(found[pairs][:, None], size, normalize)[:, 0]
        masks = torch.cat([batch.masks[k] for k in places]).to(found.device)
        void = None
        if any(batch.void[k].any() for k in places):
            void = torch.cat([batch.void[k].expand_as(batch.masks[k]) for k in places]).to(found.device)
        if observe:
            observe(scored, masks, void)
        valid = torch.ones_like(masks[:1]) if void is None else ~void
        foreground = (masks & valid).sum((1, 2)) / valid.sum((1, 2))
        curves = iou_curve(scored, masks, void)
        by_image = torch.cat([image_iou(part) for part in curves.split([counts[k] for k in places])])
        columns = [*best_of(curves), score_contrast(scored, masks, void), foreground, by_image]
        columns += [column for numbers in more for column in numbers[pairs].unbind(1)]
        numbers = torch.stack([column.double() for column in columns], 1).tolist()
        names = [(batch.ids[k], name) for k in places for name in batch.names[k]]
        rows += [(*name, *values) for name, values in zip(names, numbers, strict=True)]
    return rows


@torch.no_grad()
def recognize(dataset, clip, workers=0, batch_size=64):
    """Recognition by CLIP's own pair (Eq. 3, Table 4) -> (cosines [N, T], labels bool [N, T], mAP in %)."""
    text = prompts(dataset, clip)
    scores, labels = [], []
    for batch in batches(dataset, clip, batch_size, workers, "recognizing"):
        scores.append(score(clip.encode_image(batch.images).class_token, text, clip.projection).cpu())
        labels += [[name in names for name in dataset.classes] for names in batch.names]
    scores, labels = torch.cat(scores).numpy(), np.array(labels)
    return scores, labels, 100 * np.nanmean(average_precision(scores, labels))
