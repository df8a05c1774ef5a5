"""CLIP's image encoders from the inside: what F_c, the tokens F_i and φ_i are in each architecture (paper
§3.1, Eq. 1 and 2).

    VisionTransformer   every token after the final layer norm; φ_i is `proj` (ViT-B-16, MetaCLIP, CLIPA, …),
                        whether the class token, the tokens' mean or their maximum is the pooled feature
    ModifiedResNet      the attention pool asked by every token; φ_i is its output projection (RN50, …)
    TimmModel           every token through the trunk's own head as a picture of this token alone; φ_i is the
                        linear map that follows (EVA, MobileCLIP, ConvNeXt, ViTamin, PE-Core, …)

An attention pool that is asked by a query of its own (SigLIP, SigLIP 2, PE-Core, CoCa) weighs a single token
with 1, whatever it is asked: F_i is the pool's value path. Where nothing follows the head (SigLIP), φ_i is
the identity: the map compares what the head makes of each token, and ECLIP's pair reads that.

Together with `clip.py` the only place that knows open_clip's insides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers import resample_abs_pos_embed
from torch import nn

from ..method import ImageFeatures


def built(name, **options):
    """open_clip's model of a configuration, without weights; options: of `open_clip.create_model`.

    A ViT may pool by "max" too, a word that open_clip does not know: it is built as one that pools by "avg",
    and `max_pool` takes that place."""
    vision = open_clip.get_model_config(name)["vision_cfg"]
    most = vision.get("pool_type") == "max"
    options |= {"vision_cfg": vision | {"pool_type": "avg"}} if most else {}
    model = open_clip.create_model(name, load_weights=False, **options)
    if most:
        model.visual.pool_type, model.visual._global_pool = "max", max_pool
    return model


def max_pool(tokens):
    """A ViT's tokens [B, 1 + N, C] -> (the largest value a channel without the class token [B, C], tokens [B,
    N, C]), as open_clip's own `_global_pool` gives them."""
    return tokens[:, 1:].amax(1), tokens[:, 1:]


def image_projection(visual, network):
    """φ_i -> (weight [D, C], bias [D] or None), the identity where nothing follows the head. Raises
    ValueError with the reason where an encoder pools in a way that leaves the tokens without one."""
    if isinstance(visual, VisionTransformer):
        if visual.pool_type == "none":
            raise ValueError(f"{network}: its image encoder pools in no single step that a token could take")
        return visual.proj.T, None
    if isinstance(visual, ModifiedResNet):
        return visual.attnpool.c_proj.weight, visual.attnpool.c_proj.bias
    if not isinstance(visual, TimmModel):
        raise ValueError(f"{network}: no known way to the image tokens of a {type(visual).__name__}")
    trunk, head = visual.trunk, visual.head
    if hasattr(head, "pool") or not getattr(trunk, "global_pool", True):
        raise ValueError(f"{network}: its image encoder pools outside the head that a token could pass")
    mlp = getattr(head, "mlp", None)
    linear = mlp.fc2 if mlp else getattr(head, "proj", None) or trunk.get_classifier()
    if isinstance(linear, nn.Identity):
        return torch.eye(getattr(trunk, "head_hidden_size", trunk.num_features)), None
    return linear.weight, linear.bias


def pools_class_token(visual):
    """Whether an encoder is a ViT of open_clip's whose class token alone is compared with texts."""
    return isinstance(visual, VisionTransformer) and not visual.attn_pool and visual.pool_type == "tok"


class Steps(NamedTuple):
    """An image encoder in steps. `begin`: [B, 3, H, W] -> what the first block reads, of a ViT [B, 1 + N, C],
    of a ResNet [B, C, h, w]; `blocks`: a ViT's residual blocks, a ResNet's stages; `finish`: what the last of
    them gives -> `ImageFeatures`."""

    begin: Callable
    blocks: Sequence[Callable]
    finish: Callable


def in_steps(visual):
    """-> `Steps` of open_clip's own ViTs and ResNets, None of any other encoder."""
    if isinstance(visual, VisionTransformer):
        return Steps(visual._embeds, visual.transformer.resblocks, partial(finish_vit, visual))
    if isinstance(visual, ModifiedResNet):
        stages = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
        return Steps(visual.stem, stages, partial(finish_resnet, visual))
    return None


def image_features(visual, images):
    """[B, 3, H, W] -> `ImageFeatures`, differentiable in `images`."""
    steps = in_steps(visual)
    return steps.finish(partway(visual, images, None)) if steps else _timm(visual, images)


def partway(visual, images, blocks):
    """What comes out of the first `blocks` blocks of `in_steps` (-1: all but the last; None: all)."""
    begin, every, _ = in_steps(visual)
    x = begin(images)
    for block in every[:blocks]:
        x = block(x)
    return x


def at_every_depth(visual, images):
    """A ViT's `ImageFeatures` of [B, 3, H, W] were the final layer norm and what follows it put right behind
    the patch embedding, behind its first block, and so on: one more than it has blocks, the last its own."""
    begin, blocks, finish = in_steps(visual)
    x = begin(images)
    yield finish(x)
    for block in blocks:
        x = block(x)
        yield finish(x)


def finish_vit(visual, x):
    """What a ViT's last block gives, [B, 1 + N, C] -> `ImageFeatures`, after the final layer norm."""
    tokens = visual.ln_post(_alone(visual.attn_pool, x) if visual.attn_pool else x)
    pooled = tokens[:, 0] if pools_class_token(visual) else visual._pool(x)[0]
    return ImageFeatures(pooled, tokens[:, 1:], tuple(visual.grid_size))


def _alone(pool, x):
    """CoCa's attention pool of every token alone: one of its queries will do, all get the same answer."""
    single = pool.ln_k(x).flatten(0, 1)[:, None]
    query = pool.ln_q(pool.query[:1]).expand(len(single), -1, -1)
    return pool.attn(query, single, single, need_weights=False)[0].unflatten(0, x.shape[:2])[:, :, 0]


def finish_resnet(visual, x, mix=None):
    """What the last stage of a ResNet gives, [B, C, h, w] -> `ImageFeatures`. mix: as in `residual_block`, of
    the attention pool."""
    grid, feature_map, pool = tuple(x.shape[2:]), x.flatten(2).transpose(1, 2), visual.attnpool
    x = torch.cat([feature_map.mean(1, keepdim=True), feature_map], 1) + pool.positional_embedding
    # CLIP asks this pool with its mean token alone; here every token asks
    q, k, v = (_heads(linear(x), pool.num_heads) for linear in (pool.q_proj, pool.k_proj, pool.v_proj))
    taken = mix(Attention(q, k, v)) if mix else F.scaled_dot_product_attention(q, k, v)
    x = taken.transpose(1, 2).flatten(2)
    return ImageFeatures(x[:, 0], x[:, 1:], grid, feature_map)


def _timm(visual, images):
    trunk = visual.trunk
    x = trunk.forward_features(images)
    if x.ndim == 3:  # [B, prefix + N, C]; its class token, if the head looks for one, is the token as well
        grid, prefix = tuple(trunk.patch_embed.grid_size), trunk.num_prefix_tokens
        single = x[:, prefix:, None].expand(-1, -1, 1 + prefix, -1)
    elif getattr(trunk, "output_fmt", "NCHW") == "NHWC":
        grid, single = tuple(x.shape[1:3]), x.flatten(1, 2)[:, :, None, None]
    else:
        grid, single = tuple(x.shape[2:]), x.flatten(2).transpose(1, 2)[..., None, None]
    pooled, tokens = (trunk.forward_head(z, pre_logits=True) for z in (x, single.flatten(0, 1)))
    if mlp := getattr(visual.head, "mlp", None):  # up to its last layer, which is φ_i
        pooled, tokens = (mlp.norm(mlp.act(mlp.fc1(z))) for z in (pooled, tokens))
    return ImageFeatures(pooled, tokens.unflatten(0, (len(x), -1)), grid)


def resize_input(visual, size):
    """Let an encoder read images of `size` = (H, W): learned position embeddings are interpolated
    (bicubic, as open_clip does between square sizes). Changes `visual`; raises ValueError where the size
    does not fit."""
    visual.preprocess_cfg = {**visual.preprocess_cfg, "size": tuple(size)}
    if isinstance(visual, TimmModel):
        stride = (visual.trunk.feature_info[-1]["reduction"],) * 2
    elif isinstance(visual, ModifiedResNet):
        owner, stride = visual.attnpool, (32, 32)
    else:
        owner, stride = visual, visual.patch_size
    if any(side % step or side < step for side, step in zip(size, stride, strict=True)):
        cell = f"{stride[0]}x{stride[1]}"
        raise ValueError(f"an input of {size[0]}x{size[1]} does not divide into cells of {cell}")
    if isinstance(visual, TimmModel):
        return visual.set_input_size(size)
    grid = tuple(s // step for s, step in zip(size, stride, strict=True))
    positions = resample_abs_pos_embed(owner.positional_embedding[None], grid)[0]
    owner.positional_embedding = nn.Parameter(positions, requires_grad=False)
    visual.image_size, visual.grid_size = tuple(size), grid


def _heads(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, N, C] -> [B, heads, N, C / heads]


@dataclass(frozen=True)
class Attention:
    """The inside of one residual block. `queries`, `keys`, `values`: [B, heads, N, d]."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor

    @cached_property
    def weights(self):
        """[B, heads, N, N], softmax over the last axis, on the gradient's path; formed when asked for."""
        return (self.queries @ self.keys.transpose(-1, -2) * self.queries.shape[-1] ** -0.5).softmax(-1)


def attention_of(block, x):
    """What a residual block asks, offers and gives: the stream [B, N, C] before it -> `Attention`."""
    attn = block.attn
    projected = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
    return Attention(*(_heads(z, attn.num_heads) for z in projected.chunk(3, -1)))


def residual_block(block, x, mix=None):
    """One residual block of a ViT, spelled out: [B, N, C] -> ([B, N, C], `Attention`). Equal to `block(x)`,
    unless `mix` says otherwise what the tokens take from each other: a function of the `Attention` -> [B,
    heads, N, d] (default: weights @ values)."""
    inside = attention_of(block, x)
    taken = inside.weights @ inside.values if mix is None else mix(inside)
    x = x + attention_output(block, taken)
    return x + block.ls_2(block.mlp(block.ln_2(x))), inside


def attention_output(block, mixed):
    """What a block's attention adds to its residual stream, given what its heads took together [B, heads, N,
    d] -> [B, N, C]."""
    return block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).flatten(2)))
