"""Locked CLIP: image features, text features and the projection pair between them (paper §3.1, Eq. 1 to 3).

The one module that knows open_clip's insides. Everything it returns is *before* the projection, because CLIP, ECLIP and
RCLIP differ only in the `Projection` that follows.
"""

import json
import logging
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer, text_global_pool
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import transforms

from . import demo
from .weights import read_checkpoint

PROMPT = "a photo of the {}"


@dataclass(frozen=True)
class ImageFeatures:
    """Eq. 2: what the image encoder gives before any projection.

    `class_token` F_c: [B, C], the feature CLIP pools. `tokens` F_i: [B, N, C], row by row over `grid` = (h, w), N = h*w.
    `feature_map`: [B, N, C], what a learned pair pools and projects on a ResNet (the last stage, before the attention
    pool); None where it is the tokens themselves.
    """

    class_token: torch.Tensor
    tokens: torch.Tensor
    grid: tuple[int, int]
    feature_map: torch.Tensor | None = None


class Projection(nn.Module):
    """A pair of linear projections (φ_i, φ_t): `.image` maps [..., C] to [..., D], `.text` maps [..., Ct] to [..., D].

    `reads` says which image features the pair was made for, "tokens" or "feature_map"; `metadata` is a flat dict of
    strings that travels with the saved file (network, weights, how it was trained).
    """

    def __init__(self, image_width, text_width, width, image_bias=False, reads="tokens", metadata=None):
        super().__init__()
        if reads not in ("tokens", "feature_map"):
            raise ValueError(f"a projection reads 'tokens' or 'feature_map', not {reads!r}")
        self.image = nn.Linear(image_width, width, bias=image_bias)
        self.text = nn.Linear(text_width, width, bias=False)
        self.reads, self.metadata = reads, dict(metadata or {})

    def save(self, path):
        """Write the pair and its metadata as safetensors."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, str(path), metadata={"projection": json.dumps({"reads": self.reads, **self.metadata})})

    @classmethod
    def load(cls, path, clip=None):
        """Read a pair that `save` wrote; with `clip`, only one made for that network and its weights.

        Raises FileNotFoundError, or ValueError where the file is no projection pair or belongs to another network."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no projection pair at {path}")
        try:
            with safe_open(str(path), "pt") as file:
                metadata = json.loads((file.metadata() or {})["projection"])
            tensors = load_file(str(path))
            pair = cls(
                tensors["image.weight"].shape[1], *tensors["text.weight"].shape[::-1], image_bias="image.bias" in tensors,
                reads=metadata.pop("reads"), metadata=metadata,
            )  # fmt: skip
            pair.load_state_dict(tensors)
        except Exception as error:
            raise ValueError(f"{path} is not a projection pair written by Projection.save: {error}") from error
        made_for = (pair.metadata.get("network"), pair.metadata.get("weights"))
        if clip is not None and made_for != (clip.network, clip.pretrained):
            raise ValueError(
                f"{path} was made for {made_for[0]} with weights {made_for[1]}, not for {clip.network} with {clip.pretrained}"
            )
        return pair.requires_grad_(False)


def _to_rgb(image):
    return image.convert("RGB")


class Clip:
    """A locked CLIP. Attributes: `network`, `pretrained` (a word for tables and titles), `preprocess` (PIL image ->
    float32 [3, S, S]), `image_size` S, `statistics` (mean and std of the preprocessing), `projection` (CLIP's own pair),
    `is_vit`, `pools` ("tokens" or "feature_map": what `pool` reads and a learned pair projects), `logit_scale` (float, the
    factor on cosines), `device`, `model` (open_clip's)."""

    def __init__(self, model, tokenizer, network, pretrained, device):
        self.model, self.tokenizer = model.eval().requires_grad_(False).to(device), tokenizer
        self.network, self.pretrained, self.device = network, pretrained, torch.device(device)
        config = open_clip.get_model_preprocess_cfg(model)
        side = config["size"] if isinstance(config["size"], int) else config["size"][0]
        self.image_size, self.statistics = side, (config["mean"], config["std"])
        self.preprocess = transforms.Compose(
            [
                _to_rgb,
                transforms.Resize((side, side), transforms.InterpolationMode.BICUBIC),  # no crop, aspect ratio not kept
                transforms.ToTensor(),
                transforms.Normalize(config["mean"], config["std"]),
            ]
        )
        self.is_vit = isinstance(model.visual, VisionTransformer)
        self.pools = "tokens" if self.is_vit else "feature_map"
        self.logit_scale = float(model.logit_scale.exp())
        self.projection = _own_projection(model).requires_grad_(False).to(device)
        self.projection.metadata = {"network": network, "weights": pretrained}

    def encode_image(self, images):
        """[B, 3, S, S] -> `ImageFeatures`. Differentiable in `images`; the weights stay locked."""
        side = self.image_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise ValueError(f"{self.network} reads images of shape [B, 3, {side}, {side}], not {list(images.shape)}")
        images, visual = images.to(self.device), self.model.visual
        return (
            finish_vit(visual, visual.transformer(embed_vit(visual, images))) if self.is_vit else _encode_resnet(visual, images)
        )

    def encode_text(self, texts):
        """A list of T prompts -> F_t [T, Ct]: the end-of-text token after the final layer norm, before the projection.

        A demo network warns about words its captions never contained."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if self.network in demo.NETWORKS:
            unknown = sorted({w for t in texts for w in re.findall(r"\w+", t.lower())} - set(demo.words()))
            if unknown:
                warnings.warn(f"{self.network} never saw the words {unknown}; it knows {demo.words()}", stacklevel=2)
        model, tokens = self.model, self.tokenizer(texts).to(self.device)
        x = model.token_embedding(tokens) + model.positional_embedding
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        return text_global_pool(x, tokens, model.text_pool_type, eos_token_id=model.text_eos_id)


def _own_projection(model):
    """CLIP's own (φ_i, φ_t) as a `Projection`; on ResNets φ_i is the attention pool's output projection, with its bias."""
    visual, text = model.visual, model.text_projection
    if isinstance(visual, ModifiedResNet):
        weight, bias = visual.attnpool.c_proj.weight, visual.attnpool.c_proj.bias
    else:
        weight, bias = visual.proj.T, None
    pair = Projection(weight.shape[1], *text.shape, image_bias=bias is not None)
    pair.load_state_dict({"image.weight": weight, "text.weight": text.T} | ({} if bias is None else {"image.bias": bias}))
    return pair


def embed_vit(visual, images):
    """[B, 3, S, S] -> [B, 1 + N, C], what the first block of a ViT reads."""
    return visual._embeds(images)


def finish_vit(visual, x):
    """What the last block of a ViT gives, [B, 1 + N, C] -> `ImageFeatures`, every token after the final layer norm."""
    x = visual.ln_post(x)
    return ImageFeatures(x[:, 0], x[:, 1:], tuple(visual.grid_size))


def _encode_resnet(visual, images):
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
    grid, feature_map, pool = tuple(x.shape[2:]), x.flatten(2).transpose(1, 2), visual.attnpool
    x = torch.cat([feature_map.mean(1, keepdim=True), feature_map], 1) + pool.positional_embedding
    # CLIP asks this pool with its mean token alone; here every token asks
    q, k, v = (_heads(linear(x), pool.num_heads) for linear in (pool.q_proj, pool.k_proj, pool.v_proj))
    x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return ImageFeatures(x[:, 0], x[:, 1:], grid, feature_map)


def _heads(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, N, C] -> [B, heads, N, C / heads]


@dataclass(frozen=True)
class Attention:
    """The inside of one residual block. `queries`, `keys`, `values`: [B, heads, N, d]; `weights`: [B, heads, N, N],
    softmax over the last axis, on the gradient's path."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    weights: torch.Tensor


def residual_block(block, x, mix=None):
    """One residual block of a ViT, spelled out: [B, N, C] -> ([B, N, C], `Attention`). Equal to `block(x)`, unless `mix`
    says otherwise what the tokens take from each other: a function of the `Attention` -> [B, heads, N, d] (default: weights @
    values)."""
    attn = block.attn
    q, k, v = (_heads(z, attn.num_heads) for z in F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    inside = Attention(q, k, v, weights)
    x = x + attention_output(block, weights @ v if mix is None else mix(inside))
    return x + block.ls_2(block.mlp(block.ln_2(x))), inside


def attention_output(block, mixed):
    """What a block's attention adds to its residual stream, given what its heads took together [B, heads, N, d] -> [B, N, C]."""
    return block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).flatten(2)))


# ---------------------------------------------------------------------------------------------------- loading


@contextmanager
def _quiet():
    """open_clip logs what it does at warning level; what a user must know is raised or returned here."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)


def load_clip(network, pretrained="default", device="cpu"):
    """Load a locked CLIP.

    network: an open_clip model name ("ViT-B-16", "RN50", …) or a demo network (`demo.NETWORKS`). pretrained: "default"
    (OpenAI's weights; for a demo network its bundled checkpoint), an open_clip tag (for a demo network "seed0" to
    "seed4"), a path to a local checkpoint (OpenAI's format, open_clip .pt or .safetensors), or None for random weights
    (the same ones every time). OpenAI weights always get QuickGELU.

    Raises ValueError for an unknown network or tag and for a file that does not fit, FileNotFoundError for a missing one.
    """
    demo.register()
    if network not in open_clip.list_models():
        near = get_close_matches(network, open_clip.list_models(), 3) or list(demo.NETWORKS)
        raise ValueError(f"no network {network!r}; near: {', '.join(near)} (open_clip.list_models() has them all)")
    if pretrained in ("default", "openai") and network not in demo.NETWORKS:
        pretrained = "openai"
    elif network in demo.NETWORKS and pretrained is not None and not _is_path(pretrained):
        pretrained = demo.checkpoint(network, pretrained)
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if pretrained is None:
            model, label = open_clip.create_model(network), "random"
        elif _is_path(pretrained):
            model, label = _from_file(network, Path(pretrained)), Path(pretrained).stem
        else:
            model, label = _from_tag(network, pretrained), pretrained
        if not isinstance(model.visual, (VisionTransformer, ModifiedResNet)) or not hasattr(model, "text_projection"):
            raise ValueError(
                f"{network}: only CLIPs with OpenAI's architectures (VisionTransformer, ModifiedResNet) are supported"
            )
        if isinstance(model.visual, VisionTransformer) and (model.visual.attn_pool or model.visual.pool_type != "tok"):
            raise ValueError(f"{network}: its image encoder does not pool through a class token")
        tokenizer = open_clip.get_tokenizer(network)
    return Clip(model, tokenizer, network, label, device)


def is_vit(network):
    """Whether a network is a ViT, by its entry in the registry; nothing is loaded."""
    demo.register()
    return isinstance(open_clip.get_model_config(network)["vision_cfg"].get("layers"), int)


def _is_path(pretrained):
    return (
        isinstance(pretrained, Path) or Path(pretrained).suffix in (".pt", ".pth", ".bin", ".safetensors") or "/" in pretrained
    )


def _from_tag(network, tag):
    config = open_clip.get_pretrained_cfg(network, tag)
    if not config:
        raise ValueError(f"{network} has no weights {tag!r}; it has {open_clip.list_pretrained_tags_by_model(network)}")
    try:
        return open_clip.create_model(network, tag, force_quick_gelu=tag == "openai" or bool(config.get("quick_gelu")))
    except Exception as error:
        raise ValueError(
            f"the weights {tag!r} of {network} are neither in the cache nor could they be downloaded; give `pretrained` the "
            f"path of a local checkpoint, or None for random weights ({error})"
        ) from error


def _from_file(network, path):
    state, from_openai = read_checkpoint(path)
    model = open_clip.create_model(network, force_quick_gelu=from_openai)
    bad = sorted(name for name, tensor in state.items() if not tensor.isfinite().all())
    if bad:
        raise ValueError(f"{path}: weights that are not finite numbers in {', '.join(bad[:3])}")
    try:
        model.load_state_dict(
            {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        )
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {network}: {str(error).splitlines()[1].strip()}") from error
    return model
