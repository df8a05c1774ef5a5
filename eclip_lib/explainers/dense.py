"""Methods that change what tokens take from each other, and attention rollout. ViT only, one forward pass.

In the last block alone:

mask_clip      Zhou, Loy and Dai, "Extract Free Dense Labels from CLIP", 2022: every token keeps its own value
sclip          Wang, Mei and Yuille, "SCLIP", 2024: correlative self-attention, softmax(q qᵀ) + softmax(k kᵀ)

On a second path beside the network's own, through the last half of the blocks (6 of 12 in their papers),
without their MLPs:

clip_surgery   Li et al., "A Closer Look at the Explainability of Contrastive Language-Image Pre-training",
               2023 (this paper's authors): value-value attention, then feature surgery, which takes away what
               an image token says to every text
gem            Bousselham et al., "Grounding Everything", 2024: self-self attention of queries, keys and
               values, averaged

rollout        Abnar and Zuidema, "Quantifying Attention Flow in Transformers", 2020: class-agnostic, the
floor for all others"""

import warnings

import torch
import torch.nn.functional as F

from ..method import score, similarity
from ..networks.encoders import attention_output, embed_vit, finish_vit, residual_block, vit_tokens
from .base import vit_blocks


def _self_attention(z, inside):
    """softmax(z zᵀ / sqrt d): tokens attend to tokens like themselves."""
    return (z @ z.transpose(-1, -2) * inside.values.shape[-1] ** -0.5).softmax(-1)


# ---------------------------------------------------------------------- the last block changed


def _with_last_block(clip, method, mix):
    last, visual = vit_blocks(clip, method)[-1], clip.model.visual

    def explain(images, text):
        x = residual_block(last, vit_tokens(visual, images.to(clip.device), -1), mix)[0]
        return similarity(finish_vit(visual, x), text, clip.projection)

    return explain


def mask_clip(clip):
    return _with_last_block(clip, "mask_clip", lambda inside: inside.values)


def sclip(clip):
    def correlative(inside):
        queries, keys = (_self_attention(z, inside) for z in (inside.queries, inside.keys))
        return (queries + keys) @ inside.values

    return _with_last_block(clip, "sclip", correlative)


# ---------------------------------------------------------------------- a second path


def _second_path(clip, method, mix):
    """-> a function of images that gives (features of the second path, class token of the network's own)."""
    blocks, visual = vit_blocks(clip, method), clip.model.visual
    first = len(blocks) - min(6, len(blocks) // 2)

    def encode(images):
        second = x = vit_tokens(visual, images.to(clip.device), first)
        for block in blocks[first:]:
            size = block.ln_1(x).norm(dim=-1).mean(-1)
            x, inside = residual_block(block, x)
            second = second + attention_output(block, mix(inside, size))
        return finish_vit(visual, second), finish_vit(visual, x).class_token

    return encode


def clip_surgery(clip):
    """A single text is compared with the empty one, as its authors do; with several, what they share is taken
    away."""
    encode = _second_path(
        clip, "clip_surgery", lambda inside, size: _self_attention(inside.values, inside) @ inside.values
    )

    def explain(images, text):
        features, class_token = encode(images)
        if len(text) == 1:
            both = similarity(features, torch.cat([text, clip.encode_text([""])]), clip.projection)
            return both[:, :1] - both[:, 1:]
        if len(torch.unique(text, dim=0)) == 1:
            said = "clip_surgery: the texts are all the same, so what they share is everything: a blank map"
            warnings.warn(said, stacklevel=2)
        maps = similarity(features, text, clip.projection)
        weight = (2 * score(class_token, text, clip.projection)).softmax(-1)  # obvious classes count more
        maps = maps * (weight / weight.mean(-1, keepdim=True))[:, :, None, None]
        return maps - maps.mean(1, keepdim=True)

    return explain


def _self_self(inside, size):
    """Queries, keys and values each gather into groups once, then say who takes whose value; `size` [B]
    sharpens."""
    sharp = (size * inside.values.shape[-1] ** -0.5)[:, None, None, None]

    def alike(z):
        z = F.normalize(z, dim=-1)
        return (z @ z.transpose(-1, -2) * sharp).softmax(-1), z

    taken = []
    for z in (inside.values, inside.keys, inside.queries):
        weights, z = alike(z)
        taken.append(alike(weights @ z)[0] @ inside.values)
    return sum(taken) / 3


def gem(clip):
    encode = _second_path(clip, "gem", _self_self)
    return lambda images, text: similarity(encode(images)[0], text, clip.projection)


# ---------------------------------------------------------------------- no text at all


def rollout(clip):
    blocks, visual = vit_blocks(clip, "rollout"), clip.model.visual

    def explain(images, text):
        x, flow = embed_vit(visual, images.to(clip.device)), None
        for block in blocks:
            x, inside = residual_block(block, x)
            itself = torch.eye(x.shape[1], device=x.device)
            step = (inside.weights.mean(1) + itself) / 2  # half of each token stays where it is
            flow = step if flow is None else step @ flow
        return flow[:, None, 0, 1:].unflatten(-1, tuple(visual.grid_size)).expand(-1, len(text), -1, -1)

    return explain
