"""Notebook 06's picture sheets (Figs. 1, 7, 8, 12, 13), each as arguments of `plots.sheet`."""

import torch

from .benchmarks import explainers_of, vits
from .clip import PROMPT
from .discovery import examples
from .itsm import itsm


def _maps(clip, found, example, class_name):
    """Every method's map of one class of one image: [H, W] in [0, 1]."""
    image, text = clip.preprocess(example.image)[None].to(clip.device), clip.encode_text([PROMPT.format(class_name)])
    size, maps = example.image.size[::-1], []
    for explain in found.values():
        with torch.set_grad_enabled(hasattr(explain, "pairs")):
            maps.append(itsm(explain(image, text).detach(), size)[0, 0].cpu())
    return maps


def _largest(example):
    return max(example.masks, key=lambda name: example.masks[name].sum())


def figure_1(run, name):
    """Fig. 1: ground truth, CLIP and ECLIP below each other, one network and image a column."""
    shown = examples(run.load_dataset(name), len(run.networks))
    images, truth, maps, titles = [], [], [], []
    for k, network in enumerate(run.networks):
        clip, example = run.load_clip(network), shown[k % len(shown)]
        class_name = _largest(example)
        images.append(example.image)
        truth.append(example.masks[class_name])
        maps.append(_maps(clip, explainers_of(run, clip, ["clip", "eclip"]), example, class_name))
        titles.append(f"{run.title(network)}\n{class_name}")
    rows = [(images, truth), *((images, [m[k] for m in maps]) for k in range(2))]
    return rows, titles, ["ground truth", "CLIP", "ECLIP"]


def figure_7(run, count=6):
    """Fig. 7: ECLIP of the finest ViT (else the last network), images of every dataset, ground truth beside the map."""
    network = (vits(run) or run.networks)[-1]
    clip, rows = run.load_clip(network), []
    found = explainers_of(run, clip, ["eclip"])
    for name in run.datasets:
        images, panels = [], []
        for example in examples(run.load_dataset(name), count // 2, start=20):
            class_name = _largest(example)
            images += [example.image] * 2
            panels += [example.masks[class_name], _maps(clip, found, example, class_name)[0]]
        rows.append((images, panels))
    return rows, ["ground truth", "ECLIP"] * (count // 2), run.datasets


def methods_sheet(run, network, methods, count=4):
    """Figs. 8, 12 and 13: one object a row, one method a column, on the last dataset."""
    clip = run.load_clip(network)
    found, rows, picked = explainers_of(run, clip, methods), [], []
    for example in examples(run.load_dataset(run.datasets[-1]), count, start=5):
        class_name = _largest(example)
        rows.append((example.image, [None, example.masks[class_name], *_maps(clip, found, example, class_name)]))
        picked.append(class_name)
    return rows, ["image", "truth", *methods], picked
