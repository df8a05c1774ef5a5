"""Explainers, one registry: method -> a function that takes (clip, **options) and returns a callable.

The callable takes (images [B, 3, S, S], text [T, Ct]) and returns [B, T, h, w], higher where the text is more relevant. It
may also offer `.pairs(images, text, index [P, 2]) -> [P, h, w]` for selected (image, text) pairs; `evaluate` then asks for
those alone. A new method is one small file and one line here."""

from .bi_model import bi_model
from .dense import mask_clip, rollout, sclip
from .grad_cam import grad_cam
from .legrad import legrad
from .parallel_path import clip_surgery, gem
from .similarity_maps import clip, eclip, rclip

REGISTRY = {"clip": clip, "rclip": rclip, "eclip": eclip, "grad_cam": grad_cam, "bi_model": bi_model,
            "clip_surgery": clip_surgery, "mask_clip": mask_clip, "sclip": sclip, "gem": gem, "legrad": legrad, "rollout": rollout}  # fmt: skip


def explainer(method, clip, **options):
    """The explainer `method` (a key of `REGISTRY`) of a loaded `Clip`; options: eclip takes projection=, bi_model layers=. Raises
    ValueError for an unknown method, or one that does not fit the network."""
    if method not in REGISTRY:
        raise ValueError(f"no method {method!r}; there are {', '.join(REGISTRY)}")
    return REGISTRY[method](clip, **options)
