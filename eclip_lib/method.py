"""The paper's method on one screen: what is compared (Eq. 2), the score (Eq. 3), the map (Eqs. 4, 5), its
reverse (Eq. 10), pooling (Eqs. 6 to 8) and the loss that trains a new pair of projections (Eq. 9).

CLIP, ECLIP and RCLIP are one computation. They differ in the `Projection` that is handed in and in whether
the map is reversed."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

METHODS = ("attention", "average", "max", "masked_max")


@dataclass(frozen=True)
class ImageFeatures:
    """Eq. 2: what the image encoder gives before any projection.

    `class_token` F_c: [B, C], the feature CLIP pools. `tokens` F_i: [B, N, C], row by row over `grid` = (h,
    w), N = h*w. `feature_map`: [B, N, C], what a learned pair pools and projects on a ResNet (the last stage,
    before the attention pool); None where it is the tokens themselves."""

    class_token: torch.Tensor
    tokens: torch.Tensor
    grid: tuple[int, int]
    feature_map: torch.Tensor | None = None

    def read(self, what):
        """The tokens that a pair reads: "tokens", or "feature_map", which on a ViT is the same."""
        return self.tokens if what == "tokens" or self.feature_map is None else self.feature_map


def score(class_token: torch.Tensor, text: torch.Tensor, projection) -> torch.Tensor:
    """Eq. 3: cosine of projected class tokens F_c [B, C] and projected texts F_t [T, Ct] -> [B, T]."""
    return F.normalize(projection.image(class_token), dim=-1) @ F.normalize(projection.text(text), dim=-1).T


def similarity(features: ImageFeatures, text: torch.Tensor, projection) -> torch.Tensor:
    """Eq. 4: cosine of projected image tokens and projected texts.

    features: `ImageFeatures` of B images. text: F_t [T, Ct]. projection: a `Projection`, CLIP's own or a
    learned one. Returns M̂ [B, T, h, w] in [-1, 1]. Raises ValueError where the pair was made for features of
    another width."""
    tokens = features.read(projection.reads)
    made_for = (projection.image.in_features, projection.text.in_features)
    if made_for != (tokens.shape[-1], text.shape[-1]):
        raise ValueError(
            f"this projection was made for features of width {made_for} (image, text), not "
            f"{(tokens.shape[-1], text.shape[-1])}: another network's? It says "
            f"{projection.metadata.get('network')}"
        )
    image = F.normalize(projection.image(tokens), dim=-1)
    words = F.normalize(projection.text(text), dim=-1)
    return (words @ image.transpose(1, 2)).unflatten(-1, features.grid)


def itsm(similarity: torch.Tensor, size: tuple[int, int], normalize: str = "after") -> torch.Tensor:
    """Eq. 5: resize to the image (bilinear), then min-max each map to [0, 1].

    similarity: [B, T, h, w]. size: (H, W). normalize: "after" the resize as in Eq. 5, or "before" it as in
    the authors' later code (a resized map then need not reach 0 and 1). Returns M [B, T, H, W] float32; a
    constant map gives zeros."""
    if normalize not in ("after", "before"):
        raise ValueError(f"normalize is 'after' or 'before' the resize, not {normalize!r}")
    maps = similarity.float()
    return _minmax(_resize(maps, size)) if normalize == "after" else _resize(_minmax(maps), size)


def _minmax(maps):
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def _resize(maps, size):
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def reverse(itsm: torch.Tensor) -> torch.Tensor:
    """Eq. 10, RCLIP: |1 - M|. Same shape; mSC changes its sign and nothing else."""
    return (1 - itsm).abs()


def pool(
    features: ImageFeatures, method: str, attention: torch.Tensor | None = None, reads: str = "feature_map"
):
    """§3.2, Eqs. 7 and 8: pool `ImageFeatures` of B images -> [B, C], before any projection.

    method: "attention" (the class token, CLIP's own pooling), "average", "max", or "masked_max" (the largest
    value a channel of F_i ⊙ A). attention: A [B, N], needed by "masked_max" alone; its scale cancels in the
    cosine. reads: on a ResNet all but "attention" pool the last stage ("feature_map"), or the "tokens" after
    the attention pool. Raises ValueError."""
    if method not in METHODS:
        raise ValueError(f"no pooling {method!r}; there are {', '.join(METHODS)}")
    tokens = features.read(reads)
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


def contrastive_loss(projection, pooled: torch.Tensor, text: torch.Tensor, scale: float) -> torch.Tensor:
    """Eq. 9: symmetric InfoNCE between F_mc φ̂_i and F_t φ̂_t. pooled: [n, C] and text: [n, Ct], both before
    the projection; scale: CLIP's logit scale. The logits are computed once for both directions."""
    image = F.normalize(projection.image(pooled), dim=-1)
    words = F.normalize(projection.text(text), dim=-1)
    logits = (scale * image) @ words.T
    # both cross entropies without their log-softmax matrices: -log softmax of the diagonal = logsumexp -
    # diagonal
    return (logits.logsumexp(0) + logits.logsumexp(1)).mean() / 2 - logits.diagonal().mean()
