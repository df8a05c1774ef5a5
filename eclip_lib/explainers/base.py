"""The one contract of explainers: a callable (images [B, 3, S, S], text [T, Ct]) -> [B, T, h, w], higher
where the text is more relevant.

`FeatureMap` needs nothing but CLIP's features, so several share one forward pass. `PairMap` explains one
(image, text) pair at a time, with a backward pass, so only the pairs that are asked for are computed. Any
plain callable is an explainer too; `maps` asks all three for selected pairs."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import nn

from ..method import ImageFeatures, itsm, score
from ..networks.clip import to_batch

CHUNK = 32  # pairs a backward pass holds at once


class FeatureMap:
    """`of_features`: (`ImageFeatures` of B images, text [T, Ct]) -> [B, T, h, w]."""

    def __init__(self, clip, of_features: Callable[[ImageFeatures, torch.Tensor], torch.Tensor]):
        self.clip, self.of_features = clip, of_features

    def __call__(self, images, text):
        return self.of_features(self.clip.encode_image(images), text)


class PairMap:
    """`explain`: (images [B, 3, S, S], text [T, Ct], index [P, 2] of image and text) -> [P, h, w], P at most
    `CHUNK`."""

    def __init__(self, explain: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]):
        self.explain = explain

    def pairs(self, images, text, index):
        images = images.to(text.device)
        with torch.enable_grad():
            return torch.cat([self.explain(images, text, part) for part in index.split(CHUNK)]).detach()

    def __call__(self, images, text):
        return self.pairs(images, text, every_pair(images, text)).unflatten(0, (len(images), len(text)))


def every_pair(images, text):
    """(image, text) of all pairs -> int64 [B T, 2], where the texts are."""
    return torch.cartesian_prod(*(torch.arange(len(x), device=text.device) for x in (images, text)))


class Shared:
    """CLIP's features of some images, computed when the first `FeatureMap` of that CLIP asks for them."""

    def __init__(self, clip, images):
        self.clip, self.images = clip, images

    @cached_property
    def features(self):
        return self.clip.encode_image(self.images)


def maps(
    explain: Callable,
    images: torch.Tensor,
    text: torch.Tensor,
    index: torch.Tensor,
    shared: Shared | None = None,
):
    """The maps of selected pairs: index [P, 2] of image and text -> [P, h, w], without a gradient. shared:
    the features of these images, for several explainers of one batch."""
    if hasattr(explain, "pairs"):
        with torch.enable_grad():
            return explain.pairs(images, text, index).detach()
    with torch.no_grad():
        if shared is not None and isinstance(explain, FeatureMap) and explain.clip is shared.clip:
            every = explain.of_features(shared.features, text)
        else:
            every = explain(images, text)
        return every[index[:, 0], index[:, 1]]


def vit_blocks(clip, method):
    """The residual blocks of a ViT. Raises ValueError on another network, in the method's name."""
    blocks = clip.model.visual.transformer.resblocks if clip.is_vit else ()
    if not blocks or not isinstance(blocks[-1].attn, nn.MultiheadAttention):
        raise ValueError(
            f"{method} reads the attention of OpenAI's ViTs, pooled by their class token; {clip.network} is "
            "none"
        )
    return blocks


@torch.no_grad()
def once_an_image(begin, images, index):
    """begin(images) for every pair [P, …]; each image runs once through what no gradient needs. Requires a
    gradient, so that everything after it is differentiable."""
    used, place = index[:, 0].unique(return_inverse=True)
    return begin(images[used])[place].requires_grad_()


@torch.no_grad()
def scored(clip, explainers: dict[str, Callable], images, text: torch.Tensor):
    """Pictures (PIL) and F_t [T, Ct] -> (CLIP's own cosines [B, T] (Eq. 3), {method: maps before Eq. 5 [B, T,
    h, w]}), on the CPU."""
    shared = _prepared(clip, images)
    cells = {method: every_map(explain, shared, text).cpu() for method, explain in explainers.items()}
    return score(shared.features.class_token, text, clip.projection).cpu(), cells


@torch.no_grad()
def map_of(clip, explain: Callable, image, text: str) -> torch.Tensor:
    """One picture (PIL) and one text -> the map M at the picture's size (Eq. 5), float32 [H, W] in [0, 1] on
    the CPU."""
    cells = every_map(explain, _prepared(clip, [image]), clip.encode_text([text]))
    return itsm(cells, image.size[::-1])[0, 0].cpu()


def _prepared(clip, images):
    return Shared(clip, to_batch([clip.preprocess(image) for image in images], clip.device))


def every_map(explain: Callable, shared: Shared, text: torch.Tensor) -> torch.Tensor:
    """The maps of every image and text, before Eq. 5 -> [B, T, h, w]."""
    cells = maps(explain, shared.images, text, every_pair(shared.images, text), shared)
    return cells.unflatten(0, (len(shared.images), len(text)))
