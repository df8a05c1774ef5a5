"""Self-supervised attention A (paper Fig. 2, Eq. 6): where a ViT's class token looks in its last layer, and
what can stand in for it.

The one module that knows timm's insides. DINO comes through timm (`vit_base_patch16_224.dino` and the small
ones), MoCo v3 from its authors' checkpoint; any other timm ViT with a class token works.

A mask is a callable of (RGB images [B, 3, S, S] in [0, 1], grid) -> A [B, N], N = h*w of `grid`."""

import inspect
from contextlib import nullcontext
from pathlib import Path
from uuid import uuid4

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import nn

from .. import files
from ..downloads import hub
from ..method import ImageFeatures
from . import demo
from .checkpoints import obtain, registered, registry
from .encoders import partway, residual_block
from .state_dicts import load_into, read_checkpoint

GRID = (14, 14)  # of masks that have none of their own


class SelfAttention(nn.Module):
    """A locked ViT that gives its attention. Attributes: `name`, `grid` (h, w), `size` (the side of its
    input)."""

    def __init__(self, model, name):
        super().__init__()
        usual = isinstance(model, VisionTransformer) and model.cls_token is not None
        if not usual or not isinstance(model.blocks[-1].attn, Attention):
            said = f"{name}: attention is read from timm's VisionTransformer with a class token"
            raise ValueError(f"{said}, not {type(model).__name__}")
        self.model, self.name = model.eval().requires_grad_(False), name
        self.grid, self.size = tuple(model.patch_embed.grid_size), model.patch_embed.img_size[0]
        config = getattr(model, "pretrained_cfg", None) or {}
        defaults = {"mean": timm.data.IMAGENET_DEFAULT_MEAN, "std": timm.data.IMAGENET_DEFAULT_STD}
        for key, fallback in defaults.items():
            self.register_buffer(key, torch.tensor(config.get(key) or fallback).view(3, 1, 1))

    def _prepare(self, images):
        if images.shape[-1] != self.size:
            how = {"mode": "bilinear", "antialias": True, "align_corners": False}
            images = F.interpolate(images, (self.size, self.size), **how)
        return (images - self.mean) / self.std

    def features(self, images):
        """RGB images [B, 3, S, S] in [0, 1] -> `ImageFeatures` after the final layer norm: the model as an
        image encoder."""
        x = self.model.forward_features(self._prepare(images))
        return ImageFeatures(x[:, 0], x[:, self.model.num_prefix_tokens :], self.grid)

    @torch.no_grad()
    def forward(self, images, grid=None):
        """RGB images [B, 3, S, S] in [0, 1], not normalised -> A [B, N], mean over heads (Eq. 6), N = h*w of
        `grid` (default: the model's own; another one is reached by bilinear resize)."""
        # up to the last layer's input, then its queries and keys, because fused attention never forms the map
        *_, last = self.model.blocks
        before = {"indices": [len(self.model.blocks) - 2], "stop_early": True, "norm": False}
        shape = {"output_fmt": "NLC", "return_prefix_tokens": True, "intermediates_only": True}
        ((tokens, prefix),) = self.model.forward_intermediates(self._prepare(images), **before, **shape)
        attn, x = last.attn, last.norm1(torch.cat([prefix, tokens], 1))
        q, k, _ = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        class_query, k = attn.q_norm(q[:, :, :1]) * attn.scale, attn.k_norm(k)
        weights = (class_query @ k.transpose(-2, -1)).softmax(-1)
        attention = weights.mean(1)[:, 0, self.model.num_prefix_tokens :]
        return resize_attention(attention, self.grid, grid or self.grid)


def resize_attention(attention, source, target):
    """A [B, N] on the grid `source` -> on the grid `target`, bilinear (design decision: 7x7 and 16x16 grids
    need it)."""
    if tuple(source) == tuple(target):
        return attention
    cells = attention.unflatten(1, source)[:, None]
    return F.interpolate(cells, tuple(target), mode="bilinear", align_corners=False).flatten(1)


@torch.no_grad()
def clip_attention(clip, images: torch.Tensor) -> torch.Tensor:
    """CLIP's own last-layer attention (Fig. 2b): preprocessed images [B, 3, S, S] -> A [B, N]. ViTs only."""
    if not clip.is_vit:
        raise ValueError(f"{clip.network} is no ViT: it has no class-token attention layer")
    visual = clip.model.visual
    x = partway(visual, images.to(clip.device), -1)
    return residual_block(visual.transformer.resblocks[-1], x)[1].weights.mean(1)[:, 0, 1:]


class ClipAttention:
    """CLIP's own last-layer attention as a mask."""

    def __init__(self, clip):
        self.clip, self.name = clip, f"{clip.network}, {clip.pretrained}"
        self.grid = tuple(clip.model.visual.grid_size)

    def __call__(self, images, grid=None):
        mean, std = (torch.tensor(s, device=images.device).view(3, 1, 1) for s in self.clip.statistics)
        attention = clip_attention(self.clip, (images - mean) / std)
        return resize_attention(attention, self.grid, grid or self.grid)


# ---------------------------------------------------------------------- masks without a model


def pixel_saliency(images, grid=GRID):
    """How far each cell's mean colour lies from the image's median cell."""
    cells = F.adaptive_avg_pool2d(images, grid).flatten(2)
    return (cells - cells.median(-1, keepdim=True).values).norm(dim=1)


def noise(images, grid=GRID):
    """A random mask, the same one for the same image."""
    masks = []
    for image in images:
        seed = int((image[:, ::16, ::16] * 255).round().sum())
        masks.append(torch.rand(grid[0] * grid[1], generator=torch.Generator().manual_seed(seed)))
    return torch.stack(masks).to(images.device)


def center_prior(images, grid=GRID):
    """One minus the distance from the middle."""
    y, x = (torch.linspace(-1, 1, n) for n in grid)
    mask = 1 - (y[:, None] ** 2 + x[None] ** 2).sqrt() / 2**0.5
    return mask.flatten().expand(len(images), -1).to(images.device)


def mask_identity(mask):
    """What decides a mask, as JSON's types: [its name for the reader, the digest of its weights or its code].
    Of what cannot be told, a word that never comes again."""
    if isinstance(mask, ClipAttention):
        contents = ("model", "quick_gelu", "input", "statistics")
        return [mask.name, files.digest([mask.clip.identity[key] for key in contents])]
    name = getattr(mask, "name", None) or getattr(mask, "__name__", type(mask).__name__)
    if isinstance(mask, nn.Module) and mask.state_dict():
        return [name, files.digest(mask)]
    if mask in (pixel_saliency, noise, center_prior):  # part of the library's own code
        return [name, name]
    try:
        outside = inspect.getclosurevars(mask).nonlocals
        return [name, uuid4().hex if outside else files.digest(inspect.getsource(mask))]
    except (TypeError, OSError):
        return [name, uuid4().hex]


# ---------------------------------------------------------------------- loading


def load_attention(
    network: str, checkpoint: str | Path | None = "default", device: str = "cpu"
) -> SelfAttention:
    """A self-supervised ViT for its attention.

    network: a timm model name, "vit_base_patch16_224.dino" among them, or one of the demo's
    (`demo.ATTENTIONS`). checkpoint: "default" (timm's weights, DINO's from its authors; the demo's bundled
    ones), a local file (MoCo v3's, DINO's or MAE's official format, or timm's names), a file of
    `registry.yaml`, or None for random weights (the same ones every time). Raises ValueError,
    FileNotFoundError."""
    demo.require(network)
    own = network in demo.ATTENTIONS
    if checkpoint == "default":
        checkpoint = demo.checkpoint(network) if own else registered(network, "dino") or "default"
    if isinstance(checkpoint, str) and checkpoint in registry()["weights"] and not Path(checkpoint).is_file():
        checkpoint = obtain(checkpoint)
    from_timm = checkpoint == "default"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = demo.attention_model() if own else _timm_model(network, from_timm)
    if checkpoint is not None and not from_timm:
        load_into(model, _encoder_state(read_checkpoint(checkpoint)[0]), checkpoint, network)
    return SelfAttention(model, network).to(device)


def _timm_model(network, pretrained):
    try:
        with hub() if pretrained else nullcontext():
            return timm.create_model(network, pretrained=pretrained, num_classes=0)
    except Exception as error:
        weights = "its weights" if pretrained else "random weights"
        raise ValueError(
            f"{network} could not be made with {weights}: they are neither in the cache nor could they be "
            f"downloaded, or timm has no such model; give a local checkpoint ({str(error).splitlines()[0]})"
        ) from error


def _encoder_state(state):
    """The ViT alone out of a self-supervised training: MoCo v3's encoder, without DINO's head, MAE's decoder
    or a classifier."""
    if any("_encoder." in name for name in state):
        state = moco_v3_state(state)
    others = ("head.", "fc_norm.", "decoder_", "mask_token", "masked_embed", "predictor.")
    return {name: tensor for name, tensor in state.items() if not name.startswith(others)}


def moco_v3_state(state):
    """The official MoCo v3 checkpoint's image encoder in timm's names; older files hold the momentum encoder
    alone."""
    for prefix in ("base_encoder.", "momentum_encoder."):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if part:
            return {key: value for key, value in part.items() if not key.startswith("head.")}
    raise ValueError("no base_encoder or momentum_encoder in this checkpoint: not MoCo v3's format")
