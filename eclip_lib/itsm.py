"""CLIP's score (Eq. 3) and the Image-Text Similarity Map (paper §3.1): similarity (Eq. 4), the map (Eq. 5), its reverse (Eq. 10)."""

import torch
import torch.nn.functional as F

from .encoders import ImageFeatures
from .projection import Projection


def score(class_token: torch.Tensor, text: torch.Tensor, projection: Projection) -> torch.Tensor:
    """Eq. 3: cosine of projected class tokens F_c [B, C] and projected texts F_t [T, Ct] -> [B, T]."""
    return F.normalize(projection.image(class_token), dim=-1) @ F.normalize(projection.text(text), dim=-1).T


def similarity(features: ImageFeatures, text: torch.Tensor, projection: Projection) -> torch.Tensor:
    """Eq. 4: cosine of projected image tokens and projected texts.

    features: `ImageFeatures` of B images. text: F_t [T, Ct]. projection: a `Projection`, CLIP's own or a learned one.
    Returns M̂ [B, T, h, w] in [-1, 1]. Raises ValueError where the pair was made for features of another width."""
    tokens = features.tokens if projection.reads == "tokens" or features.feature_map is None else features.feature_map
    widths = (projection.image.in_features, projection.text.in_features)
    if widths != (tokens.shape[-1], text.shape[-1]):
        raise ValueError(
            f"this projection was made for features of width {widths} (image, text), not {(tokens.shape[-1], text.shape[-1])}: "
            f"another network's? It says {projection.metadata}"
        )
    image = F.normalize(projection.image(tokens), dim=-1)
    text = F.normalize(projection.text(text), dim=-1)
    return (text @ image.transpose(1, 2)).unflatten(-1, features.grid)


def _minmax(maps):
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def _resize(maps, size):
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def itsm(similarity: torch.Tensor, size: tuple[int, int], normalize: str = "after") -> torch.Tensor:
    """Eq. 5: resize to the image (bilinear), then min-max each map to [0, 1].

    similarity: [B, T, h, w]. size: (H, W). normalize: "after" the resize as in Eq. 5, or "before" it as in the authors' later
    code (a resized map then need not reach 0 and 1). Returns M [B, T, H, W] float32; a constant map gives zeros."""
    similarity = similarity.float()
    if normalize not in ("after", "before"):
        raise ValueError(f"normalize is 'after' or 'before' the resize, not {normalize!r}")
    return _minmax(_resize(similarity, size)) if normalize == "after" else _resize(_minmax(similarity), size)


def reverse(itsm: torch.Tensor) -> torch.Tensor:
    """Eq. 10, RCLIP: |1 - M|. Same shape; mSC changes its sign and nothing else."""
    return (1 - itsm).abs()
