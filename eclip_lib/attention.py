"""Self-supervised attention A (paper Fig. 2, Eq. 6): where a ViT's class token looks in its last layer.

The one module that knows timm's insides. DINO comes through timm (`vit_base_patch16_224.dino` and the small ones), MoCo v3
from its authors' checkpoint; any other timm ViT with a class token works."""

from contextlib import nullcontext
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import nn

from . import demo
from .encoders import ImageFeatures, embed_vit, residual_block
from .weights import hub, obtain, read_checkpoint, registered, registry


class SelfAttention(nn.Module):
    """A locked ViT that gives its attention. Attributes: `name`, `grid` (h, w), `size` (the side of its input)."""

    def __init__(self, model, name):
        super().__init__()
        if (
            not isinstance(model, VisionTransformer)
            or model.cls_token is None
            or not isinstance(model.blocks[-1].attn, Attention)
        ):
            raise ValueError(
                f"{name}: attention is read from timm's VisionTransformer with a class token, not {type(model).__name__}"
            )
        self.model, self.name = model.eval().requires_grad_(False), name
        self.grid, self.size = tuple(model.patch_embed.grid_size), model.patch_embed.img_size[0]
        config = getattr(model, "pretrained_cfg", None) or {}
        for key, fallback in (("mean", timm.data.IMAGENET_DEFAULT_MEAN), ("std", timm.data.IMAGENET_DEFAULT_STD)):
            self.register_buffer(key, torch.tensor(config.get(key) or fallback).view(3, 1, 1))

    def _prepare(self, images):
        if images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return (images - self.mean) / self.std

    def features(self, images):
        """RGB images [B, 3, S, S] in [0, 1] -> `ImageFeatures` after the final layer norm: the model as an image encoder."""
        x = self.model.forward_features(self._prepare(images))
        return ImageFeatures(x[:, 0], x[:, self.model.num_prefix_tokens :], self.grid)

    @torch.no_grad()
    def forward(self, images, grid=None):
        """RGB images [B, 3, S, S] in [0, 1], not normalised -> A [B, N], mean over heads (Eq. 6), N = h*w of `grid`
        (default: the model's own; another one is reached by bilinear resize)."""
        # up to the last layer's input, then its queries and keys, because fused attention never forms the map
        *_, last = self.model.blocks
        before = {"indices": [len(self.model.blocks) - 2], "stop_early": True, "norm": False, "output_fmt": "NLC"}
        ((tokens, prefix),) = self.model.forward_intermediates(
            self._prepare(images), **before, return_prefix_tokens=True, intermediates_only=True
        )
        attn, x = last.attn, last.norm1(torch.cat([prefix, tokens], 1))
        q, k, _ = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        class_query, k = attn.q_norm(q[:, :, :1]) * attn.scale, attn.k_norm(k)
        weights = (class_query @ k.transpose(-2, -1)).softmax(-1)
        return resize_attention(weights.mean(1)[:, 0, self.model.num_prefix_tokens :], self.grid, grid or self.grid)


def resize_attention(attention, source, target):
    """A [B, N] on the grid `source` -> on the grid `target`, bilinear (design decision: 7x7 and 16x16 grids need it)."""
    if tuple(source) == tuple(target):
        return attention
    return F.interpolate(attention.unflatten(1, source)[:, None], tuple(target), mode="bilinear", align_corners=False).flatten(
        1
    )


def pixel_saliency(images, grid):
    """A mask that needs no model: how far each cell's mean colour lies from the image's median cell. images: [B, 3, S, S] in
    [0, 1], not normalised. Returns [B, N], N = h*w of `grid`."""
    cells = F.adaptive_avg_pool2d(images, grid).flatten(2)
    return (cells - cells.median(-1, keepdim=True).values).norm(dim=1)


@torch.no_grad()
def clip_attention(clip, images: torch.Tensor) -> torch.Tensor:
    """CLIP's own last-layer attention (Fig. 2b): preprocessed images [B, 3, S, S] -> A [B, N]. ViTs only."""
    if not clip.is_vit:
        raise ValueError(f"{clip.network} is no ViT: it has no class-token attention layer")
    visual = clip.model.visual
    *before, last = visual.transformer.resblocks
    x = embed_vit(visual, images.to(clip.device))
    for block in before:
        x = block(x)
    return residual_block(last, x)[1].weights.mean(1)[:, 0, 1:]


def moco_v3_state(state):
    """The official MoCo v3 checkpoint's image encoder in timm's names; older files hold the momentum encoder alone."""
    for prefix in ("base_encoder.", "momentum_encoder."):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if part:
            return {key: value for key, value in part.items() if not key.startswith("head.")}
    raise ValueError("no base_encoder or momentum_encoder in this checkpoint: not MoCo v3's format")


def load_attention(network: str, checkpoint: str | Path | None = "default", device: str = "cpu") -> SelfAttention:
    """A self-supervised ViT for its attention.

    network: a timm model name, "vit_base_patch16_224.dino" among them, or one of the demo's (`demo.ATTENTIONS`). checkpoint: "default"
    (timm's weights, DINO's from its authors; the demo's bundled ones), a local file (MoCo v3's official format, or timm's names), a file of
    `data/registry.yaml`, or None for random weights (the same ones every time). Raises ValueError,
    FileNotFoundError."""
    own = network in demo.ATTENTIONS
    if checkpoint == "default":
        checkpoint = demo.checkpoint(network) if own else registered(network, "dino") or checkpoint
    if isinstance(checkpoint, str) and checkpoint in registry()["weights"] and not Path(checkpoint).is_file():
        checkpoint = obtain(checkpoint)
    try:
        with hub() if checkpoint == "default" else nullcontext(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = (
                demo.attention_model() if own else timm.create_model(network, pretrained=checkpoint == "default", num_classes=0)
            )
    except Exception as error:
        raise ValueError(
            f"{network} could not be made with {'its weights' if checkpoint == 'default' else 'random weights'}: they are neither in "
            f"the cache nor could they be downloaded, or timm has no such model; give a local checkpoint ({str(error).splitlines()[0]})"
        ) from error
    if checkpoint is not None and checkpoint != "default":
        state = read_checkpoint(Path(checkpoint))[0]
        if any("_encoder." in key for key in state):
            state = moco_v3_state(state)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{checkpoint} does not fit {network}: {str(error).splitlines()[1].strip()}") from error
    return SelfAttention(model, network).to(device)
