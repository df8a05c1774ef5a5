"""LeGrad (Bousselham et al., 2024): how an image-text cosine would grow if a token were attended more, over
the last blocks.

For each of the last `layers` blocks the target is the cosine between the text and that block's mean token,
taken through the final layer norm and the projection; the map is the positive part of its gradient by the
block's attention, mean over heads and queries, summed over the blocks. ViT only."""

import torch
import torch.nn.functional as F

from ..networks.encoders import residual_block
from .base import PairMap, vit_blocks


def legrad(clip, layers=2):
    """layers: how many of the last blocks are explained (its authors' default: 2)."""
    blocks, visual = vit_blocks(clip, "legrad"), clip.model.visual
    if not 1 <= layers <= len(blocks):
        raise ValueError(f"layers is 1 to {len(blocks)} on {clip.network}, not {layers}")
    first = len(blocks) - layers

    def explain(x, text, index):
        words = F.normalize(clip.projection.text(text), dim=-1)[index[:, 1]]
        relevance = 0
        for block in blocks[first:]:
            x, inside = residual_block(block, x)
            pooled = F.normalize(clip.projection.image(visual.ln_post(x.mean(1))), dim=-1)
            (gradient,) = torch.autograd.grad((pooled * words).sum(), inside.weights, retain_graph=True)
            relevance = relevance + gradient.clamp_min(0).mean((1, 2))
        return relevance[:, 1:].unflatten(1, tuple(visual.grid_size))

    return PairMap(explain, clip, first)
