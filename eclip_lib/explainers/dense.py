"""Methods that change what tokens take from each other, and attention rollout. One forward pass; of a ViT,
where nothing else is said.

In the last block alone:

mask_clip      Zhou, Loy and Dai, "Extract Free Dense Labels from CLIP", 2022: every token keeps its own
               value; on a ResNet, as in their code, the attention pool's values of the last stage itself,
               without positions
sclip          Wang, Mei and Yuille, "SCLIP", 2024: correlative self-attention, softmax(q qᵀ) + softmax(k kᵀ)
clear_clip     Lan et al., "ClearCLIP", 2024: softmax(q qᵀ), and of the block its attention's output alone,
               neither the residual stream nor the MLP
naclip         Hajimiri, Ben Ayed and Dolz, "Pay Attention to Your Neighbours", 2025: softmax(k kᵀ + ω), ω a
               Gaussian of the tokens' distance on the grid, and the attention's output alone

On a second path beside the network's own, through the last half of the blocks (6 of 12 in their papers),
without their MLPs:

clip_surgery   Li et al., "A Closer Look at the Explainability of Contrastive Language-Image Pre-training",
               2023 (this paper's authors): value-value attention, then feature surgery, which takes away what
               an image token says to every text; on a ResNet, as in their code, value-value attention in the
               attention pool, its class token included
gem            Bousselham et al., "Grounding Everything", 2024: self-self attention of queries, keys and
               values, averaged

rollout        Abnar and Zuidema, "Quantifying Attention Flow in Transformers", 2020: class-agnostic, the
floor for all others"""

import warnings
from functools import cache

import open_clip
import torch
import torch.nn.functional as F

from ..method import ImageFeatures, score, similarity
from ..networks import encoders
from ..networks.encoders import attention_output, finish_vit, residual_block
from .base import FeatureMap, vit_blocks

STAGES = 4  # of a ResNet


def _self_attention(z, inside, near=0):
    """softmax(z zᵀ / sqrt d + near): tokens attend to tokens like themselves."""
    return (z @ z.transpose(-1, -2) * inside.values.shape[-1] ** -0.5 + near).softmax(-1)


# ---------------------------------------------------------------------- the last block changed


def _with_last_block(clip, method, mix, attention_alone=False):
    """attention_alone: the output of the block's attention, and nothing else, to the final layer norm."""
    last, visual = vit_blocks(clip, method)[-1], clip.model.visual

    def explain(x, text):
        if attention_alone:
            x = attention_output(last, mix(encoders.attention_of(last, x)))
        else:
            x = residual_block(last, x, mix)[0]
        return similarity(finish_vit(visual, x), text, clip.projection)

    return FeatureMap(clip, explain, -1)


def mask_clip(clip):
    if clip.pools == "feature_map":
        visual = clip.model.visual

        def explain(x, text):
            values = visual.attnpool.v_proj(x.flatten(2).transpose(1, 2))
            features = ImageFeatures(values.mean(1), values, tuple(x.shape[2:]))
            return similarity(features, text, clip.projection)

        return FeatureMap(clip, explain, STAGES)
    return _with_last_block(clip, "mask_clip", lambda inside: inside.values)


def sclip(clip):
    def correlative(inside):
        queries, keys = (_self_attention(z, inside) for z in (inside.queries, inside.keys))
        return (queries + keys) @ inside.values

    return _with_last_block(clip, "sclip", correlative)


def clear_clip(clip):
    mix = lambda inside: _self_attention(inside.queries, inside) @ inside.values  # noqa: E731
    return _with_last_block(clip, "clear_clip", mix, attention_alone=True)


def naclip(clip):
    vit_blocks(clip, "naclip")
    cells = torch.cartesian_prod(*(torch.arange(n, device=clip.device) for n in clip.model.visual.grid_size))
    distance = (cells[:, None] - cells).square().sum(-1)
    # a standard deviation of 5 tokens, its authors'; the class token has no neighbours
    near = F.pad((-distance / (2 * 5**2)).exp(), (1, 0, 1, 0))
    mix = lambda inside: _self_attention(inside.keys, inside, near) @ inside.values  # noqa: E731
    return _with_last_block(clip, "naclip", mix, attention_alone=True)


# ---------------------------------------------------------------------- a second path


def _second_path(clip, method, mix):
    """-> (number of blocks before it, a function of what they give that gives (features of the second path,
    class token of the network's own))."""
    blocks, visual = vit_blocks(clip, method), clip.model.visual
    first = len(blocks) - min(6, len(blocks) // 2)

    def encode(x):
        second = x
        for block in blocks[first:]:
            size = block.ln_1(x).norm(dim=-1).mean(-1)
            x, inside = residual_block(block, x)
            second = second + attention_output(block, mix(inside, size))
        return finish_vit(visual, second), finish_vit(visual, x).class_token

    return first, encode


def _value_value(inside, size=None):
    return _self_attention(inside.values, inside) @ inside.values


def clip_surgery(clip, redundant=None):
    """redundant: what is taken away from what an image token says to a text. "texts": what it says to all of
    them, each weighed by how well the picture fits it; with two texts their maps are each other's negatives.
    "empty": what it says to the empty text, in its authors' ensemble of prompts. Default as their demo:
    "texts", but "empty" for a single text. Raises ValueError."""
    if redundant not in (None, "texts", "empty"):
        raise ValueError(f"redundant is 'texts' or 'empty', not {redundant!r}")
    if clip.pools == "feature_map":
        visual = clip.model.visual

        def encode(x):
            features = encoders.finish_resnet(visual, x, _value_value)
            return features, features.class_token

        blocks = STAGES
    else:
        blocks, encode = _second_path(clip, "clip_surgery", _value_value)

    @cache
    def empty():
        """The mean of the unit vectors of all prompts about nothing, a unit vector [D]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a demo network knows few of these words
            text = clip.encode_text([template("") for template in TEMPLATES])
        return F.normalize(F.normalize(clip.projection.text(text), dim=-1).mean(0), dim=-1)

    def explain(x, text):
        features, class_token = encode(x)
        maps = similarity(features, text, clip.projection)
        if redundant == "empty" or (redundant is None and len(text) == 1):
            tokens = F.normalize(clip.projection.image(features.tokens), dim=-1)
            return maps - (tokens @ empty()).unflatten(-1, features.grid)[:, None]
        if len(torch.unique(text, dim=0)) == 1:
            said = "clip_surgery: the texts are all the same, so what they share is everything: a blank map"
            warnings.warn(said, stacklevel=2)
        weight = (2 * score(class_token, text, clip.projection)).softmax(-1)  # obvious classes count more
        maps = maps * (weight / weight.mean(-1, keepdim=True))[:, :, None, None]
        return maps - maps.mean(1, keepdim=True)

    return FeatureMap(clip, explain, blocks)


# CLIP's prompts for ImageNet and five about scenes, as in CLIP Surgery's code
SCENES = ("there is a", "there is the", "this is a", "this is the", "this is one")
TEMPLATES = [*open_clip.OPENAI_IMAGENET_TEMPLATES, *(f"{this} {{}} in the scene.".format for this in SCENES)]


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
    blocks, encode = _second_path(clip, "gem", _self_self)
    return FeatureMap(clip, lambda x, text: similarity(encode(x)[0], text, clip.projection), blocks)


# ---------------------------------------------------------------------- no text at all


def rollout(clip):
    blocks, visual = vit_blocks(clip, "rollout"), clip.model.visual

    def explain(x, text):
        flow = None
        for block in blocks:
            x, inside = residual_block(block, x)
            itself = torch.eye(x.shape[1], device=x.device)
            step = (inside.weights.mean(1) + itself) / 2  # half of each token stays where it is
            flow = step if flow is None else step @ flow
        return flow[:, None, 0, 1:].unflatten(-1, tuple(visual.grid_size)).expand(-1, len(text), -1, -1)

    return FeatureMap(clip, explain, 0)
