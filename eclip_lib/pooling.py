"""How image tokens become one feature (paper §3.2, §3.3, Eq. 7), always before the projection.

attention    the class token, CLIP's own pooling: a weighted average
average      mean over the tokens
max          the largest value of every channel
masked_max   the same of F_i ⊙ A, the tokens weighted by a self-supervised model's attention (Eq. 7)
"""

from collections.abc import Sequence

import torch

from .encoders import ImageFeatures

METHODS = ("attention", "average", "max", "masked_max")


def pool(features: ImageFeatures, method: str | Sequence[str], attention: torch.Tensor | None = None):
    """Pool `ImageFeatures` of B images -> [B, C].

    method: one of `METHODS`, or a list of them, which gives {method: [B, C]} of the one forward pass. attention: A [B, N],
    needed by "masked_max" alone; its scale cancels in the cosine. On a ResNet all but "attention" pool the last stage's
    feature map (`features.feature_map`). Raises ValueError."""
    if not isinstance(method, str):
        return {name: pool(features, name, attention) for name in method}
    if method not in METHODS:
        raise ValueError(f"no pooling {method!r}; there are {', '.join(METHODS)}")
    tokens = features.tokens if features.feature_map is None else features.feature_map
    if method == "attention":
        return features.class_token
    if method == "average":
        return tokens.mean(1)
    if method == "max":
        return tokens.amax(1)
    if attention is None or attention.shape != tokens.shape[:2]:
        given = None if attention is None else list(attention.shape)
        raise ValueError(f"masked_max needs an attention of shape {list(tokens.shape[:2])}, not {given}")
    return (tokens * attention[..., None]).amax(1)
