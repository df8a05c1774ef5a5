"""CLIP, ECLIP and RCLIP: one computation (Eq. 4) with another `Projection`, or reversed (Eq. 10)."""

from ..method import similarity
from .base import FeatureMap


def clip_map(clip):
    """CLIP's own image-text similarity (§3.1)."""
    return FeatureMap(clip, lambda features, text: similarity(features, text, clip.projection))


def rclip_map(clip):
    """Reversed CLIP (Eq. 10). On the similarity a change of sign: min-max turns it into 1 - M."""
    return FeatureMap(clip, lambda features, text: -similarity(features, text, clip.projection))


def eclip_map(clip, projection):
    """ECLIP: the learned pair in the place of CLIP's own (§3.3)."""
    projection = projection.to(clip.device)
    return FeatureMap(clip, lambda features, text: similarity(features, text, projection))
