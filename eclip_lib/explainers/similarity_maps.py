"""CLIP, ECLIP and RCLIP: one computation (Eq. 4) with another `Projection`, or with the map reversed (Eq. 10)."""

from ..itsm import similarity


def _of_features(clip, maps_of):
    """An explainer that needs CLIP's features alone: `.of_features(features, text)` shares one forward pass with others."""

    def explain(images, text):
        return maps_of(clip.encode_image(images), text)

    explain.of_features = maps_of
    return explain


def clip(clip):
    """CLIP's own image-text similarity (§3.1)."""
    return _of_features(clip, lambda features, text: similarity(features, text, clip.projection))


def rclip(clip):
    """Reversed CLIP (Eq. 10). On the similarity a change of sign: min-max turns it into 1 - M."""
    return _of_features(clip, lambda features, text: -similarity(features, text, clip.projection))


def eclip(clip, projection):
    """ECLIP: the learned pair in the place of CLIP's own (§3.3)."""
    projection = projection.to(clip.device)
    return _of_features(clip, lambda features, text: similarity(features, text, projection))
