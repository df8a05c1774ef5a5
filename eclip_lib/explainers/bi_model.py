"""Bi-Model (Chefer, Gur and Wolf, 2021; the paper's [9]): relevance through the attention of the visual
transformer.

R starts as the identity; for each chosen block in order R ← R + cam R with cam = mean over heads of
max(gradient ⊙ attention, 0), the gradient being that of the image-text logit with its scale; the map is the
class token's row of R. ViT only."""

import torch

from ..method import score
from ..networks.encoders import finish_vit, residual_block
from .base import PairMap, vit_blocks


def bi_model(clip, layers="last"):
    """layers: "last" (the default of the authors' CLIP_explainability.ipynb) or "all" blocks (as their
    example.py computes it)."""
    blocks, visual = vit_blocks(clip, "bi_model"), clip.model.visual
    if layers not in ("last", "all"):
        raise ValueError(f"layers is 'last' or 'all', not {layers!r}")
    first = len(blocks) - 1 if layers == "last" else 0

    def explain(x, text, index):
        attention = []
        for block in blocks[first:]:
            x, inside = residual_block(block, x)
            attention.append(inside.weights)
        features = finish_vit(visual, x)
        logits = clip.logit_scale * score(features.class_token, text, clip.projection)
        gradients = torch.autograd.grad(logits[torch.arange(len(index)), index[:, 1]].sum(), attention)
        relevance = torch.eye(x.shape[1], device=x.device).expand(len(index), -1, -1)
        for weights, gradient in zip(attention, gradients, strict=True):
            cam = (weights.detach() * gradient).clamp_min(0).mean(1)
            relevance = relevance + cam @ relevance
        return relevance[:, 0, 1:].unflatten(1, features.grid)

    return PairMap(explain, clip, first)
