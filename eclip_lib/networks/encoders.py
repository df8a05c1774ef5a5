"""CLIP's image encoders from the inside: what F_c, the tokens F_i and φ_i are in each architecture (paper
§3.1, Eq. 1 and 2).

    VisionTransformer   every token after the final layer norm; φ_i is `proj` (ViT-B-16, MetaCLIP, …)
    ModifiedResNet      the attention pool asked by every token; φ_i is its output projection (RN50, …)
    TimmModel           every token through the trunk's own head as a picture of one token; φ_i is the linear
                        map that follows (EVA, MobileCLIP, ConvNeXt, ViTamin)

Together with `clip.py` the only place that knows open_clip's insides."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from ..method import ImageFeatures


def image_projection(visual, network):
    """φ_i -> (weight [D, C], bias [D] or None). Raises ValueError with the reason where an encoder has none,
    or pools in a way that leaves the tokens without one."""
    if isinstance(visual, VisionTransformer):
        if visual.attn_pool or visual.pool_type != "tok":
            way = "an attention pool" if visual.attn_pool else repr(visual.pool_type)
            raise ValueError(f"{network}: its image encoder pools by {way}, not through its class token")
        return visual.proj.T, None
    if isinstance(visual, ModifiedResNet):
        return visual.attnpool.c_proj.weight, visual.attnpool.c_proj.bias
    if not isinstance(visual, TimmModel):
        raise ValueError(f"{network}: no known way to the image tokens of a {type(visual).__name__}")
    trunk, head = visual.trunk, visual.head
    if getattr(trunk, "attn_pool", None) is not None or hasattr(head, "pool"):
        raise ValueError(
            f"{network}: its image encoder pools by an attention head of its own (SigLIP's way), which "
            "maps no single token"
        )
    if getattr(trunk, "cls_token", None) is not None and trunk.global_pool != "token":
        raise ValueError(
            f"{network}: its image encoder pools by {trunk.global_pool!r}, not through its class token"
        )
    linear = getattr(head, "proj", None) or trunk.get_classifier()
    if hasattr(head, "mlp") or not isinstance(linear, nn.Linear):
        raise ValueError(f"{network}: no linear projection follows its image encoder")
    return linear.weight, linear.bias


def image_features(visual, images):
    """[B, 3, H, W] -> `ImageFeatures`, differentiable in `images`."""
    if isinstance(visual, VisionTransformer):
        return finish_vit(visual, visual.transformer(embed_vit(visual, images)))
    if isinstance(visual, ModifiedResNet):
        return finish_resnet(visual, visual.layer4(resnet_stages(visual, images)))
    return _timm(visual, images)


def embed_vit(visual, images):
    """[B, 3, H, W] -> [B, 1 + N, C], what the first block of a ViT reads."""
    return visual._embeds(images)


def vit_tokens(visual, images, blocks):
    """What a ViT's tokens are after its first `blocks` blocks (all but the last where it is -1): [B, 1 + N,
    C]."""
    x = embed_vit(visual, images)
    for block in visual.transformer.resblocks[:blocks]:
        x = block(x)
    return x


def finish_vit(visual, x):
    """What the last block of a ViT gives, [B, 1 + N, C] -> `ImageFeatures`, every token after the final layer
    norm."""
    x = visual.ln_post(x)
    return ImageFeatures(x[:, 0], x[:, 1:], tuple(visual.grid_size))


def resnet_stages(visual, images):
    """[B, 3, H, W] -> what the last stage of a ResNet reads, [B, C, h, w]."""
    return visual.layer3(visual.layer2(visual.layer1(visual.stem(images))))


def finish_resnet(visual, x):
    """What the last stage of a ResNet gives, [B, C, h, w] -> `ImageFeatures`."""
    grid, feature_map, pool = tuple(x.shape[2:]), x.flatten(2).transpose(1, 2), visual.attnpool
    x = torch.cat([feature_map.mean(1, keepdim=True), feature_map], 1) + pool.positional_embedding
    # CLIP asks this pool with its mean token alone; here every token asks
    q, k, v = (_heads(linear(x), pool.num_heads) for linear in (pool.q_proj, pool.k_proj, pool.v_proj))
    x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return ImageFeatures(x[:, 0], x[:, 1:], grid, feature_map)


def _timm(visual, images):
    trunk = visual.trunk
    x = trunk.forward_features(images)
    pooled = trunk.forward_head(x, pre_logits=True)
    if x.ndim == 3:  # [B, prefix + N, C]
        grid, single = tuple(trunk.patch_embed.grid_size), x[:, trunk.num_prefix_tokens :, None]
    elif getattr(trunk, "output_fmt", "NCHW") == "NHWC":
        grid, single = tuple(x.shape[1:3]), x.flatten(1, 2)[:, :, None, None]
    else:
        grid, single = tuple(x.shape[2:]), x.flatten(2).transpose(1, 2)[..., None, None]
    tokens = trunk.forward_head(single.flatten(0, 1), pre_logits=True)
    return ImageFeatures(pooled, tokens.unflatten(0, (len(x), -1)), grid)


def resize_input(visual, size):
    """Let an encoder read images of `size` = (H, W): learned position embeddings are interpolated (bicubic,
    as open_clip does between square sizes). Changes `visual`; raises ValueError where its grid does not
    divide the size."""
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
    first, cells = owner.positional_embedding.split([1, len(owner.positional_embedding) - 1])
    side = round(len(cells) ** 0.5)
    grid = tuple(s // step for s, step in zip(size, stride, strict=True))
    cells = cells.T.reshape(1, -1, side, side)
    cells = F.interpolate(cells, grid, mode="bicubic", antialias=True, align_corners=False).flatten(2)[0].T
    owner.positional_embedding = nn.Parameter(torch.cat([first, cells]), requires_grad=False)
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
        """[B, heads, N, N], softmax over the last axis, on the gradient's path; formed when they are asked
        for."""
        return (self.queries @ self.keys.transpose(-1, -2) * self.queries.shape[-1] ** -0.5).softmax(-1)


def residual_block(block, x, mix=None):
    """One residual block of a ViT, spelled out: [B, N, C] -> ([B, N, C], `Attention`). Equal to `block(x)`,
    unless `mix` says otherwise what the tokens take from each other: a function of the `Attention` -> [B,
    heads, N, d] (default: weights @ values)."""
    attn = block.attn
    projected = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
    inside = Attention(*(_heads(z, attn.num_heads) for z in projected.chunk(3, -1)))
    taken = inside.weights @ inside.values if mix is None else mix(inside)
    x = x + attention_output(block, taken)
    return x + block.ls_2(block.mlp(block.ln_2(x))), inside


def attention_output(block, mixed):
    """What a block's attention adds to its residual stream, given what its heads took together [B, heads, N,
    d] -> [B, N, C]."""
    return block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).flatten(2)))
