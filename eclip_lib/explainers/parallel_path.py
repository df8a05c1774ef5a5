"""Methods that walk a second path beside the network's own: in the last blocks tokens take from tokens like themselves, and the MLP
is left out. The network's own path stays as it is and feeds both. ViT only, one forward pass.

clip_surgery   Li et al., "A Closer Look at the Explainability of Contrastive Language-Image Pre-training", 2023 (this paper's
               authors): value-value attention, then feature surgery, which takes away what an image token says to every text
gem            Bousselham et al., "Grounding Everything", 2024: self-self attention of queries, keys and values, averaged

Both papers change the last 6 of 12 blocks; here the last half, 6 at most.
"""

import torch
import torch.nn.functional as F

from ..encoders import attention_output, embed_vit, finish_vit, residual_block
from ..itsm import score, similarity
from .dense import vit_blocks


def _parallel(clip, method, mix):
    """-> a function of images that gives (features of the second path, class token of the network's own)."""
    blocks, visual = vit_blocks(clip, method), clip.model.visual
    first = len(blocks) - min(6, len(blocks) // 2)

    def encode(images):
        x = embed_vit(visual, images.to(clip.device))
        for block in blocks[:first]:
            x = block(x)
        second = x
        for block in blocks[first:]:
            size = block.ln_1(x).norm(dim=-1).mean(-1)
            x, inside = residual_block(block, x)
            second = second + attention_output(block, mix(inside, size))
        return finish_vit(visual, second), finish_vit(visual, x).class_token

    return encode


def _value_value(inside, size):
    values = inside.values
    return (values @ values.transpose(-1, -2) * values.shape[-1] ** -0.5).softmax(-1) @ values


def clip_surgery(clip):
    encode = _parallel(clip, "clip_surgery", _value_value)

    def explain(images, text):
        features, class_token = encode(images)
        alone = len(text) == 1  # a single text is compared with the empty one, as its authors do
        text = torch.cat([text, clip.encode_text([""])]) if alone else text
        maps = similarity(features, text, clip.projection)
        if alone:
            return maps[:, :1] - maps[:, 1:]
        weight = (2 * score(class_token, text, clip.projection)).softmax(-1)  # obvious classes count more
        maps = maps * (weight / weight.mean(-1, keepdim=True))[:, :, None, None]
        return maps - maps.mean(1, keepdim=True)

    return explain


def _self_self(inside, size):
    """Queries, keys and values each gather into groups once, then say who takes whose value; `size` [B] sharpens."""
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
    encode = _parallel(clip, "gem", _self_self)
    return lambda images, text: similarity(encode(images)[0], text, clip.projection)
