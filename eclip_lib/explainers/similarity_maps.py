"""CLIP, ECLIP and RCLIP: one computation (Eq. 4) with another `Projection`, or with the map reversed (Eq. 10)."""

from ..itsm import similarity


def clip(clip):
    """CLIP's own image-text similarity (§3.1)."""
    return lambda images, text: similarity(clip.encode_image(images), text, clip.projection)


def rclip(clip):
    """Reversed CLIP (Eq. 10). On the similarity a change of sign: min-max turns it into 1 - M."""
    return lambda images, text: -similarity(clip.encode_image(images), text, clip.projection)


def eclip(clip, projection):
    """ECLIP: the learned pair in the place of CLIP's own (§3.3)."""
    projection = projection.to(clip.device)
    return lambda images, text: similarity(clip.encode_image(images), text, projection)
