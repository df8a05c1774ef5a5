"""Explainers, one registry: method -> a function that takes (clip, **options) and returns a callable.

The callable takes (images [B, 3, S, S], text [T, Ct]) and returns [B, T, h, w], higher where the text is more relevant. It
may also offer `.pairs(images, text, index [P, 2]) -> [P, h, w]` for selected (image, text) pairs; `evaluate` then asks for
those alone. A new method is one small file and one line here."""

from .similarity_maps import clip, eclip, rclip

REGISTRY = {"clip": clip, "rclip": rclip, "eclip": eclip}


def explainer(method, clip, **options):
    """The explainer `method` ("clip", "rclip", "eclip") of a loaded `Clip`. Raises ValueError for an unknown method."""
    if method not in REGISTRY:
        raise ValueError(f"no method {method!r}; there are {', '.join(REGISTRY)}")
    return REGISTRY[method](clip, **options)
