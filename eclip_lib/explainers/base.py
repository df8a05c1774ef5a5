"""The one contract of explainers: a callable (images [B, 3, S, S], text [T, Ct]) -> [B, T, h, w], higher
where the text is more relevant.

`FeatureMap` needs nothing but CLIP's features, or what its blocks gave on the way there, so several share one
forward pass. `PairMap` explains one (image, text) pair at a time, with a backward pass, so only the pairs
that are asked for are computed. Any plain callable is an explainer too; `maps` asks all three for selected
pairs."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import nn

from ..method import itsm, score
from ..networks.clip import to_batch
from ..networks.encoders import in_steps

CHUNK = 32  # pairs a backward pass holds at once


class FeatureMap:
    """`of_features`: (`ImageFeatures` of B images, text [T, Ct]) -> [B, T, h, w]; with `blocks`, what comes
    out of so many of CLIP's blocks (`encoders.partway`), which has no gradient, stands in the place of the
    features."""

    def __init__(self, clip, of_features: Callable[..., torch.Tensor], blocks: int | None = None):
        self.clip, self.of_features, self.blocks = clip, of_features, blocks

    def of_shared(self, shared, text):
        given = shared.features if self.blocks is None else shared.partway(self.blocks)
        return self.of_features(given, text)

    def __call__(self, images, text):
        if self.blocks is None:  # the features differentiable in the images
            return self.of_features(self.clip.encode_image(images), text)
        return self.of_shared(Shared(self.clip, images), text)


class PairMap:
    """`explain`: (images [B, 3, S, S], text [T, Ct], index [P, 2] of image and text) -> [P, h, w], P at most
    `CHUNK`. With `clip` and `blocks` in place of the images, for each of the pairs, what comes out of so many
    of CLIP's blocks (`encoders.partway`), [P, …]: each image runs once through what no gradient needs, and
    everything after it is differentiable."""

    def __init__(self, explain: Callable[..., torch.Tensor], clip=None, blocks: int | None = None):
        self.explain, self.clip, self.blocks = explain, clip, blocks

    def pairs(self, images, text, index, shared=None):
        if self.blocks is None:
            images = images.to(text.device)
            begin = lambda part: images  # noqa: E731
        else:
            x = (shared or Shared(self.clip, images)).partway(self.blocks)
            begin = lambda part: x[part[:, 0]].requires_grad_()  # noqa: E731
        with torch.enable_grad():
            every = [self.explain(begin(part), text, part) for part in index.split(CHUNK)]
        return torch.cat(every).detach()

    def __call__(self, images, text):
        return self.pairs(images, text, every_pair(images, text)).unflatten(0, (len(images), len(text)))


def every_pair(images, text):
    """(image, text) of all pairs -> int64 [B T, 2], where the texts are."""
    return torch.cartesian_prod(*(torch.arange(len(x), device=text.device) for x in (images, text)))


class Shared:
    """CLIP's features of some images and what its blocks gave on the way there, computed when the first
    explainer of that CLIP asks for them."""

    def __init__(self, clip, images):
        self.clip, self.images, self._known = clip, images, {}

    @cached_property
    @torch.no_grad()
    def features(self):
        own = self.clip.precision == "fp32" and self.clip.backbone is None
        steps = in_steps(self.clip.model.visual) if own else None
        if steps is None:
            return self.clip.encode_image(self.images)
        return self.clip.sound(steps.finish(steps.blocks[-1](self.partway(-1))))

    @torch.no_grad()
    def partway(self, blocks):
        """What comes out of the first `blocks` blocks, see `encoders.partway`; from the nearest that is
        known."""
        begin, every, _ = in_steps(self.clip.model.visual)
        count = len(every[:blocks])
        known = [k for k in self._known if k <= count]
        x = self._known[max(known)] if known else begin(self.images.to(self.clip.device))
        for block in every[max(known, default=0) : count]:
            x = block(x)
        return self._known.setdefault(count, x)


def maps(
    explain: Callable,
    images: torch.Tensor,
    text: torch.Tensor,
    index: torch.Tensor,
    shared: Shared | None = None,
):
    """The maps of selected pairs: index [P, 2] of image and text -> [P, h, w], without a gradient. shared:
    the features of these images, for several explainers of one batch. Raises ValueError where one is not
    finite."""
    own = shared if shared is not None and getattr(explain, "clip", None) is shared.clip else None
    with torch.set_grad_enabled(hasattr(explain, "pairs")):
        if own and isinstance(explain, PairMap):
            found = explain.pairs(images, text, index, own)
        elif hasattr(explain, "pairs"):
            found = explain.pairs(images, text, index).detach()
        elif own and isinstance(explain, FeatureMap):
            found = explain.of_shared(own, text)[index[:, 0], index[:, 1]]
        else:
            found = explain(images, text)[index[:, 0], index[:, 1]]
    if not found.isfinite().all():
        said = "a map is not of finite numbers: the network's weights or the pair's are damaged"
        raise ValueError(f"{said}, or too large for float32; get them again")
    return found


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
