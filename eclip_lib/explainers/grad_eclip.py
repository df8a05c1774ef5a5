"""Grad-ECLIP (Zhao et al., "Gradient-based Visual Explanation for Transformer-based CLIP", 2024): what the
class token took in the last block's attention, token by token.

With o the output of that attention at the class token (its heads side by side, before the output layer), S
the image-text cosine and v, k the values and keys of token i, the map is ReLU(Σ_c w_c λ_i v_ic): w = ∂S/∂o,
and λ_i the cosine of the class token's query and k_i, min-max over the tokens, in the place of the sparse
softmax. The authors' code lets that attention run with one head, so that its S is not quite CLIP's, and takes
query and keys through the output layer before their cosine; here it has the network's own heads, and q and k
as they are. ViT only."""

import torch
import torch.nn.functional as F

from ..method import score
from ..networks.encoders import finish_vit, residual_block
from .base import PairMap, vit_blocks


def grad_eclip(clip):
    last, visual = vit_blocks(clip, "grad_eclip")[-1], clip.model.visual

    def explain(before, text, index):
        taken = []

        def mix(inside):
            taken.append(inside.weights @ inside.values)
            return taken[0]

        x, inside = residual_block(last, before, mix)
        features = finish_vit(visual, x)
        scores = score(features.class_token, text, clip.projection)[torch.arange(len(index)), index[:, 1]]
        (gradient,) = torch.autograd.grad(scores.sum(), taken)
        queries, keys = (z.transpose(1, 2).flatten(2) for z in (inside.queries, inside.keys))
        near = F.cosine_similarity(queries[:, :1], keys[:, 1:], dim=-1)
        near = near - near.amin(1, keepdim=True)
        near = near / near.amax(1, keepdim=True).clamp_min(torch.finfo(near.dtype).tiny)
        channels = (gradient[:, :, :1] * inside.values[:, :, 1:]).sum((1, 3))
        return (near * channels).clamp_min(0).unflatten(1, features.grid)

    return PairMap(explain, clip, -1)
