"""Notebook 02, first half: how well attention finds objects, without labels (Fig. 2)."""

import json
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from .. import plots
from ..datasets import examples
from ..evaluation import batches, best_iou, in_words, mean_interval, score_contrast, spread
from ..method import itsm
from ..networks import demo
from ..networks.attention import GRID, ClipAttention, mask_identity


def attention_quality(masks, clip, dataset, workers=0, batch_size=50):
    """How well masks find the objects of any class, without labels (Fig. 2).

    masks: {name: callable of (images [B, 3, S, S] in [0, 1], grid) -> [B, N]}, on their own grid. Returns a
    DataFrame, one row an image and mask: IoU at the best threshold, contrast, and the share of the mask's
    mass that lies on the foreground."""
    lines = []
    for batch in batches(dataset, clip, batch_size, workers, "masks against objects", least=1):
        images = clip.to_rgb(batch.images).clamp(0, 1)
        for name, mask in masks.items():
            with torch.no_grad():
                attention = mask(images).cpu().unflatten(1, getattr(mask, "grid", GRID))
            each = zip(attention[:, None, None], batch.ids, batch.objects, batch.void, strict=True)
            for cells, image_id, truth, void in each:
                judged = itsm(cells, truth.shape)[0], truth[None], void[None]
                mass = F.interpolate(cells, truth.shape, mode="nearest")[0, 0] * ~void
                line = {"image_id": image_id, "mask": name, "IoU": float(best_iou(*judged)[0])}
                line["contrast"] = float(score_contrast(*judged))
                lines.append(line | {"mass": float((mass * truth).sum() / mass.sum())})
    return pd.DataFrame(lines)


def mask_table(quality, seed=0):
    """{dataset: rows of `attention_quality`} -> means in % with 95 % bootstrap intervals over images, one
    line a dataset and mask."""
    lines = []
    for dataset, rows in quality.items():
        for name, part in rows.groupby("mask", sort=False):
            line = {"mask": name}
            for value in ("IoU", "contrast", "mass"):
                line |= spread(value, (100 * v for v in mean_interval(part[value], seed=seed)))
            lines.append(line | {"dataset": dataset})
    return pd.DataFrame(lines)


def measured(run, masks, clip, name):
    """`attention_quality` on one of a run's datasets, measured once."""
    dataset, known = run.load_dataset(name), {name: mask_identity(mask) for name, mask in masks.items()}
    measure = partial(attention_quality, masks, clip, dataset, run.workers, run.batch_size)
    return run.once("attention_quality", [clip, dataset, known], measure)


def mask_gains(quality, learned, seed=0):
    """Learned masks against every other, paired over images: DataFrame of dataset, mask, than, network (where
    it is CLIP's own), IoU gained in points and its 95 % interval."""
    lines = []
    for dataset, rows in quality.items():
        wide = rows.pivot(index="image_id", columns="mask", values="IoU")
        for mask in learned:
            for rival in (other for other in rows["mask"].unique() if other != mask):
                than, _, network = rival.partition(" ") if rival.startswith("CLIP ") else (rival, "", "")
                gain = (100 * v for v in mean_interval(wide[mask] - wide[rival], seed=seed))
                line = {"dataset": dataset, "mask": mask, "than": than, "network": network}
                lines.append(line | spread("IoU", gain))
    return pd.DataFrame(lines)


def gains_in_words(gains):
    """`mask_gains`: one sentence a learned mask and dataset."""
    lines = []
    for (name, mask), part in gains.groupby(["dataset", "mask"], sort=False):
        words = {"above": [], "below": [], "undecided against": []}
        for _, row in part.iterrows():
            word = in_words(row["IoU_low"], row["IoU_high"], *words)
            words[word].append(f"{row['than']} {row['network']}".strip())
        said = "; ".join(f"{word} {', '.join(who)}" for word, who in words.items() if who)
        lines.append(f"{name}, IoU of {mask}: {said}")
    return "\n".join(lines)


def mask_sheet(masks, clip, dataset, count=4):
    """Image, all objects, every mask. Returns the figure."""
    rows = []
    for example in examples(dataset, count):
        image = clip.to_rgb(clip.preprocess(example.image)[None]).clamp(0, 1).to(clip.device)
        panels = [None, np.any(list(example.masks.values()), 0)]
        for mask in masks.values():
            cells = mask(image).cpu().reshape(1, 1, *getattr(mask, "grid", GRID))
            panels.append(itsm(cells, example.image.size[::-1])[0, 0])
        rows.append((example.image, panels))
    return plots.sheet(rows, ["image", "objects", *masks], size=1.4)


def own_attentions(run, clips):
    """{"CLIP <network>": its own attention} of every ViT."""
    return {f"CLIP {clip.title}": ClipAttention(clip) for clip in clips.values() if clip.is_vit}


def about_masks(run):
    """Where the run's masks come from, in words."""
    own = [name for name, network in run.masks.items() if _card(network)]
    if run.pretrained is None:
        return "random weights: these masks learned nothing"
    if not own:
        return f"masks: {', '.join(f'{name} ({network})' for name, network in run.masks.items())}"
    return (
        f"{' and '.join(own)}: small ViTs that this repository trained without captions or masks, but not "
        "without help: their views are composed by pixel saliency, and their recipes were chosen partly by "
        "how well the attention covers objects of validation scenes (data/demo/tried.md)"
    )


def training_figure(run):
    """How the demo's own self-supervised models came to attend: loss, and IoU of the attention with objects
    of validation scenes, by step. Returns the figure, or None where the masks are not this repository's."""
    cards = {name: card for name, network in run.masks.items() if (card := _card(network))}
    if not cards or run.pretrained is None:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.8))
    for k, (name, card) in enumerate(cards.items()):
        loss, watched = card["loss_every_50_steps"], card["attention_IoU_on_validation"]
        axes[0].plot(np.arange(1, len(loss) + 1) * 50, loss, color=f"C{k}", label=name)
        for column, (level, style) in enumerate(zip(watched["levels"], ("o-", "s--"), strict=True)):
            points = sorted((int(step), values[column]) for step, values in watched["by_step"].items())
            look = {"color": f"C{k}", "markersize": 4, "label": f"{name}, {level}"}
            axes[1].plot(*zip(*points, strict=True), style, **look)
    axes[0].set(xlabel="step", ylabel="loss")
    axes[1].set(xlabel="step", ylabel="IoU of the attention (%)", ylim=(0, 100))
    for ax in axes:
        ax.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure


def _card(network):
    path = demo.FOLDER / f"{network}-seed0.json"
    return json.loads(path.read_text()) if path.exists() else None
