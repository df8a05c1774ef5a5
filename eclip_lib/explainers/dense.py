"""Methods that change what the last block's tokens take from each other, and attention rollout. ViT only, one forward pass.

mask_clip   Zhou, Loy and Dai, "Extract Free Dense Labels from CLIP", 2022: every token keeps its own value
sclip       Wang, Mei and Yuille, "SCLIP", 2024: correlative self-attention, softmax(q qᵀ) + softmax(k kᵀ)
rollout     Abnar and Zuidema, "Quantifying Attention Flow in Transformers", 2020: class-agnostic, the floor for all others
"""

import torch

from ..encoders import embed_vit, finish_vit, residual_block
from ..itsm import similarity


def vit_blocks(clip, method):
    """The residual blocks of a ViT. Raises ValueError on another network, in the method's name."""
    if not clip.is_vit:
        raise ValueError(f"{method} needs a ViT's attention; {clip.network} is none")
    return clip.model.visual.transformer.resblocks


def _with_last_block(clip, method, mix):
    *before, last = vit_blocks(clip, method)
    visual = clip.model.visual

    def explain(images, text):
        x = embed_vit(visual, images.to(clip.device))
        for block in before:
            x = block(x)
        return similarity(finish_vit(visual, residual_block(last, x, mix)[0]), text, clip.projection)

    return explain


def mask_clip(clip):
    return _with_last_block(clip, "mask_clip", lambda inside: inside.values)


def _correlative(inside):
    weights = sum((z @ z.transpose(-1, -2) * z.shape[-1] ** -0.5).softmax(-1) for z in (inside.queries, inside.keys))
    return weights @ inside.values


def sclip(clip):
    return _with_last_block(clip, "sclip", _correlative)


def rollout(clip):
    blocks, visual = vit_blocks(clip, "rollout"), clip.model.visual

    def explain(images, text):
        x, flow = embed_vit(visual, images.to(clip.device)), None
        for block in blocks:
            x, inside = residual_block(block, x)
            step = (inside.weights.mean(1) + torch.eye(x.shape[1], device=x.device)) / 2  # half of each token stays where it is
            flow = step if flow is None else step @ flow
        return flow[:, None, 0, 1:].unflatten(-1, tuple(visual.grid_size)).expand(-1, len(text), -1, -1)

    return explain
