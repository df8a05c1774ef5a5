"""Explainers, one registry: method -> a function that takes (clip, **options) and returns a callable.

The callable takes (images [B, 3, S, S], text [T, Ct]) and returns [B, T, h, w], higher where the text is more relevant. It
may also offer `.pairs(images, text, index [P, 2]) -> [P, h, w]` for selected (image, text) pairs; `evaluate` then asks for
those alone. A new method is one small file and one line here."""

from collections.abc import Callable
from typing import NamedTuple

from .bi_model import bi_model
from .dense import mask_clip, rollout, sclip
from .grad_cam import grad_cam
from .legrad import legrad
from .parallel_path import clip_surgery, gem
from .similarity_maps import clip, eclip, rclip

REGISTRY: dict[str, Callable] = {"clip": clip, "rclip": rclip, "eclip": eclip, "grad_cam": grad_cam, "bi_model": bi_model,
            "clip_surgery": clip_surgery, "mask_clip": mask_clip, "sclip": sclip, "gem": gem, "legrad": legrad, "rollout": rollout}  # fmt: skip


class Needs(NamedTuple):
    """What a method needs: `backward` pass or not, `trained` (an own training), and the `networks` it knows."""

    backward: bool
    trained: bool
    networks: str
    title: str


NEEDS = {
    "clip": Needs(False, False, "ViT, ResNet", "CLIP's own map (Eq. 4, 5)"),
    "rclip": Needs(False, False, "ViT, ResNet", "RCLIP, the map reversed (Eq. 10)"),
    "eclip": Needs(False, True, "ViT, ResNet", "ECLIP, a pair trained by masked max pooling (§3.3)"),
    "grad_cam": Needs(True, False, "ViT, ResNet", "Grad-CAM of the image-text cosine"),
    "bi_model": Needs(True, False, "ViT", "Bi-Model: relevance through attention (Chefer et al.)"),
    "clip_surgery": Needs(False, False, "ViT", "CLIP Surgery: value-value attention, feature surgery"),
    "mask_clip": Needs(False, False, "ViT", "MaskCLIP: value features of the last block"),
    "sclip": Needs(False, False, "ViT", "SCLIP: correlative self-attention in the last block"),
    "gem": Needs(False, False, "ViT", "GEM: self-self attention on a second path"),
    "legrad": Needs(True, False, "ViT", "LeGrad: gradient by the attention of the last blocks"),
    "rollout": Needs(False, False, "ViT", "attention rollout: knows no text, the floor"),
}


def explainer(method: str, clip, **options) -> Callable:
    """The explainer `method` (a key of `REGISTRY`) of a loaded `Clip`; options: eclip takes projection=, bi_model layers=. Raises
    ValueError for an unknown method, or one that does not fit the network."""
    if method not in REGISTRY:
        raise ValueError(f"no method {method!r}; there are {', '.join(REGISTRY)}")
    return REGISTRY[method](clip, **options)
