"""Maps of one's own pictures as a person sees them: one implementation for `eclip explain`, the page of
`eclip app` and the notebook's explorer."""

import textwrap
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from . import files, plots
from .datasets import scenes
from .explainers import explainer, named, scored
from .method import itsm
from .networks import demo
from .networks.clip import PROMPT
from .projection import Projection


@dataclass(frozen=True)
class View:
    """One picture (PIL), its T texts, CLIP's own cosines [T] (Eq. 3; no method changes them) and `cells`
    {method: [T, h, w]}, the raw scores on the network's grid (Eq. 4 for CLIP)."""

    image: Image.Image
    texts: list[str]
    cosines: torch.Tensor
    cells: dict[str, torch.Tensor]

    @cached_property
    def maps(self):
        """{method: M [T, H, W]} at the picture's size (Eq. 5), float32 in [0, 1]."""
        size = self.image.size[::-1]
        return {method: itsm(cells[None], size)[0] for method, cells in self.cells.items()}

    def save(self, file, kind, colormap=None, alpha=plots.ALPHA, dpi=110, **options):
        """Write the sheet: the picture, and beside it an overlay a text; of several methods an overlay a
        method, with a row for each text. kind: "png", "jpeg", "pdf", … colormap: matplotlib's name, default
        `plots.CMAP`. options: of matplotlib's savefig."""
        figure = self._sheet(colormap, alpha)
        figure.savefig(file, dpi=dpi, bbox_inches="tight", format=kind, **options)
        plt.close(figure)

    def _sheet(self, colormap, alpha):
        both = zip(self.texts, self.cosines, strict=True)
        labels = [f"{_label(text)}\nCLIP's cosine {cosine:.3f}" for text, cosine in both]
        columns, rows = [named(method) for method in self.maps], labels
        heats = [*zip(*self.maps.values(), strict=True)]
        if len(columns) == 1:
            columns, rows, heats = rows, columns, [*zip(*heats, strict=True)]
        panels = [(self.image, [None, *row]) for row in heats]
        return plots.sheet(panels, ["picture", *columns], rows, colormap, size=3, alpha=alpha)

    def arrays(self, name):
        """What an npz keeps: {name: maps [T, H, W] float16, name/grid: cells [T, h, w] float32}; of several
        methods name/method in place of name."""
        name = "./texts" if name == "texts" else name  # "texts" are the texts
        of = {method: f"{name}/{method}" if len(self.maps) > 1 else name for method in self.maps}
        kept = {of[method]: heat.numpy().astype(np.float16) for method, heat in self.maps.items()}
        return kept | {f"{of[method]}/grid": cells.float().numpy() for method, cells in self.cells.items()}


def views(clip, explainers, images, texts: list[str]) -> list[View]:
    """A `View` of each picture (PIL), of one batch; methods that need CLIP's features alone share one forward
    pass. explainers: {method: explainer}."""
    cosines, cells = scored(clip, explainers, images, clip.encode_text(texts))
    every = [{method: maps[k] for method, maps in cells.items()} for k in range(len(images))]
    return [View(*one) for one in zip(images, [texts] * len(images), cosines, every, strict=True)]


def _label(text):
    short = text if len(text) <= 80 else f"{text[:79]}…"
    return plots.literally(textwrap.fill(short, 36))


# ---------------------------------------------------------------------- pictures to begin with

PHOTOS = {  # scikit-image's, and what is in them
    "astronaut": ["astronaut", "flag"],
    "chelsea": ["cat"],
    "coffee": ["cup", "spoon"],
    "rocket": ["rocket", "tower"],
}


def several(dataset, count=3) -> dict[str, tuple[Image.Image, list[str]]]:
    """The first pictures of a dataset with several classes, the first of all where there are none ->
    {what it is: (picture, a prompt for each class, the largest first)}."""
    chosen: list = []
    for index in range(min(len(dataset), 10 * count)):
        chosen.append(dataset[index])
        if sum(len(example.masks) > 1 for example in chosen) == count:
            break
    found = {}
    for example in sorted(chosen, key=lambda example: len(example.masks) < 2)[:count]:
        names = sorted(example.masks, key=lambda name: -example.masks[name].sum())
        about = f"{dataset.name}, {example.image_id}: {', '.join(names)}"
        found[about] = example.image, [PROMPT.format(name) for name in names]
    return found


def photographs() -> dict[str, tuple[Image.Image, list[str]]]:
    """The photographs that scikit-image brings, as `several` gives pictures."""
    from skimage import data  # of the extra `notebooks`

    shown = {name: Image.fromarray(getattr(data, name)()) for name in PHOTOS}
    return {name: (shown[name], [PROMPT.format(n) for n in names]) for name, names in PHOTOS.items()}


# ---------------------------------------------------------------------- what a network can show


@contextmanager
def noted():
    """A list that has what was warned of in this block, in words, when it ends."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    notes += [str(warning.message) for warning in caught if warning.category is UserWarning]


def pair_of(clip, projection=None):
    """A trained pair for `clip`: `projection` (see `Projection.find`), else a demo network's own, or None."""
    own = files.REPOSITORY / "results" / "demo" / "pairs" / f"{clip.network}-ECLIP.safetensors"
    if projection is None and not (clip.network in demo.NETWORKS and own.is_file()):
        return None
    try:
        return Projection.find(projection or own, clip)
    except ValueError:
        if projection:
            raise
        return None  # other weights than the shipped ones


def fitting(clip, methods: Iterable[str], pair=None):
    """-> ({method: explainer}, {method: why it does not fit `clip`}). pair: for "eclip"."""
    made, refused = {}, {}
    for method in methods:
        if method == "eclip" and pair is None:
            refused[method] = "eclip needs a trained pair of projections for this network and its weights"
            continue
        try:
            made[method] = explainer(method, clip, **({"projection": pair} if method == "eclip" else {}))
        except ValueError as error:
            refused[method] = str(error)
    return made, refused


def limits(network):
    """One sentence for a demo network on what it can and cannot know; None for the others."""
    known = f"it knows {', '.join(scenes.CLASSES)} there, mostly by their colours, and nothing of photographs"
    said = f"{network} is a mini model of this repository's rendered scenes: {known}"
    return f"{said}; --network ViT-B-16 is OpenAI's CLIP" if network in demo.NETWORKS else None
