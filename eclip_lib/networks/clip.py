"""Locked CLIP: image features, text features and the projection pair between them (paper §3.1, Eq. 1 to 3).

Together with `encoders.py` the only place that knows open_clip's insides. Everything it returns is *before*
the projection, because CLIP, ECLIP and RCLIP differ only in the `Projection` that follows."""

import copy
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import TextTransformer, text_global_pool
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from .. import files
from ..method import ImageFeatures
from ..projection import Projection
from . import demo
from .encoders import at_every_depth, image_features, image_projection, pools_class_token

PROMPT = "a photo of the {}"
KILLED = (
    "a process that decodes images was killed, mostly because memory ran out: run again with fewer workers "
    "(--workers 0, in Python workers=0)"
)


def to_batch(images, device):
    """Prepared images [3, S, S] -> [B, 3, S, S] on the device; onto a GPU through pinned memory, so that the
    copy does not wait."""
    batch = torch.stack(list(images))
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)


def loaded(dataset, batch_size, workers=0, **options):
    """A torch dataset in lists of `batch_size` items, decoded in `workers` processes, at most one a core of
    this machine. Raises OSError where one of them is killed."""
    options |= {"num_workers": min(workers, files.cores()), "collate_fn": list, "worker_init_fn": _silent}
    try:
        yield from DataLoader(dataset, batch_size, **options)
    except (RuntimeError, ConnectionError, EOFError) as error:  # the last two in the middle of a batch
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise OSError(KILLED) from error


def _silent(worker):
    """What goes wrong in a worker, as where another one that it shares tensors with is killed, is told by the
    process that reads from it."""
    sys.excepthook = lambda *_: None


def _to_rgb(image):
    return image.convert("RGB")


class Clip:
    """A locked CLIP. Attributes: `network`, `pretrained` (a word for tables and titles), `preprocess` (PIL
    image -> float32 [3, S, S]), `image_size` S (or (H, W)), `statistics` (mean and std of the preprocessing),
    `projection` (CLIP's own pair), `is_vit` (open_clip's, pooling its class token), `pools` ("tokens" or
    "feature_map": what `pool` reads and a learned pair projects), `logit_scale` (float, the factor on
    cosines), `device`, `model` (open_clip's)."""

    def __init__(self, model, tokenizer, network, pretrained, device, precision="fp32"):
        self.model, self.tokenizer = model.eval().requires_grad_(False).to(device), tokenizer
        self.network, self.pretrained = network, pretrained
        self.device, self.precision = torch.device(device), precision
        config = open_clip.get_model_preprocess_cfg(model)
        self.size = (config["size"],) * 2 if isinstance(config["size"], int) else tuple(config["size"])
        self.image_size = self.size[0] if self.size[0] == self.size[1] else self.size
        self.statistics = (config["mean"], config["std"])
        # no crop, aspect ratio not kept
        resize = transforms.Resize(self.size, transforms.InterpolationMode.BICUBIC)
        normalize = transforms.Normalize(*self.statistics)
        self.preprocess = transforms.Compose([_to_rgb, resize, transforms.ToTensor(), normalize])
        self.is_vit = pools_class_token(model.visual)
        self.pools = "feature_map" if isinstance(model.visual, ModifiedResNet) else "tokens"
        if self.device.type == "cuda" and not self.is_vit:  # what cuDNN's convolutions are fastest on
            model.visual.to(memory_format=torch.channels_last)
        self.logit_scale = float(model.logit_scale.exp())
        if not self.logit_scale < 1e4:  # OpenAI's is 100, SigLIP's 117
            said = f"{network}: e to its logit_scale, {float(model.logit_scale):g}, is no factor on cosines"
            raise ValueError(f"{said}; save its logarithm there, or get the weights again")
        self.projection = Projection.of_state(own_weights(model, network)).requires_grad_(False).to(device)
        self.projection.metadata = {"network": network, "weights": pretrained}
        self.projection.require_sound(network)
        self.backbone = None  # another image encoder, see `with_image_encoder`

    @property
    def title(self):
        """The network's name for tables and figures; random weights say so."""
        return f"{self.network} (random weights)" if self.pretrained == "random" else self.network

    @cached_property
    def identity(self):
        """What decides this CLIP's features, as JSON's types: its weights' digest, whatever their file is
        called, its activation, input size, preprocessing and precision; network and weights by name."""
        about = {"network": self.network, "weights": self.pretrained, "model": files.digest(self.model)}
        quick = any(isinstance(module, open_clip.transformer.QuickGELU) for module in self.model.modules())
        about |= {"quick_gelu": quick, "input": list(self.size), "precision": self.precision}
        about["statistics"] = [list(values) for values in self.statistics]
        if (pool := getattr(self.model.visual, "pool_type", "tok")) != "tok":
            about["pool"] = pool  # decides the pooled feature, and is no weight
        return about if self.backbone is None else about | {"backbone": files.digest(self.backbone)}

    def to_rgb(self, images):
        """Prepared images [B, 3, H, W] -> RGB in [0, 1], as the self-supervised models read them."""
        mean, std = (torch.tensor(s, device=images.device).view(3, 1, 1) for s in self.statistics)
        return images * std + mean

    def encode_image(self, images: torch.Tensor) -> ImageFeatures:
        """[B, 3, H, W] -> `ImageFeatures` in float32. Differentiable in `images`; the weights stay locked."""
        if images.ndim != 4 or images.shape[1:] != (3, *self.size):
            expected = f"[B, 3, {self.size[0]}, {self.size[1]}]"
            raise ValueError(f"{self.network} reads images of shape {expected}, not {list(images.shape)}")
        images = images.to(self.device)
        if self.backbone is not None:
            return self.sound(self.backbone.features(self.to_rgb(images)))
        with self._autocast():
            return self.sound(_float32(image_features(self.model.visual, images)))

    def sound(self, features):
        """The same `ImageFeatures`, see `_require_size`."""
        self._require_size(features.class_token, features.tokens, features.feature_map)
        return features

    @torch.no_grad()
    def _require_size(self, whole, *cells):
        """Raise ValueError where cosines of features [..., C] would be nan, or 0 as they vanish or overflow
        in float32; a ResNet's cell may be 0."""
        found = [torch.linalg.vector_norm(x.float(), dim=-1) for x in (whole, *cells) if x is not None]
        low, high = found[0].min(), torch.stack([sizes.max() for sizes in found]).max()
        if not (low > 1e-6 and high < 1e12):  # false for nan as well
            said = f"{self.network}: features of size {low:.3g} to {high:.3g}, which no training gives"
            raise ValueError(f"{said}: its weights are damaged; get them again")

    def encode_depths(self, images: torch.Tensor) -> list[ImageFeatures]:
        """[B, 3, H, W] -> what a ViT's map would read right behind the patch embedding and behind each block,
        see `encoders.at_every_depth`."""
        with self._autocast():
            return [*map(_float32, at_every_depth(self.model.visual, images.to(self.device)))]

    def _autocast(self):
        half = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext()

    def encode_text(self, texts: str | Sequence[str], quote: bool = True) -> torch.Tensor:
        """A list of T prompts -> F_t [T, Ct]: the token that stands for the text (its end, mostly) after the
        final layer norm, before the projection.

        A demo network warns about words its captions never contained, every network about a prompt that it
        cuts; quote=False names none of them, so that a million captions say it once."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("no text to encode")
        self._warn_of(texts, quote)
        tower, tokens = _text_tower(self.model), self.tokenizer(texts).to(self.device)
        if tower is self.model:
            x, mask = tower.token_embedding(tokens) + tower.positional_embedding, tower.attn_mask
            kind, end = tower.text_pool_type, tower.text_eos_id
        else:
            x, mask = tower._embeds(tokens)
            kind, end = "last" if tower.cls_emb is not None else tower.pool_type, tower.eos_id
        x = tower.ln_final(tower.transformer(x, attn_mask=mask))
        text = text_global_pool(x, tokens, kind, eos_token_id=end)
        self._require_size(text)
        return text

    def _warn_of(self, texts, quote):
        if self.network in demo.NETWORKS | demo.ARMS:
            unknown = sorted({w for t in texts for w in re.findall(r"\w+", t.lower())} - set(demo.words()))
            if unknown:
                words = ", ".join(repr(w[:30]) for w in unknown[:3])
                words += f" and {len(unknown) - 3} more words" if unknown[3:] else ""
                said = f"never saw {words}" if quote else "never saw some words of these captions"
                known = "it knows the shapes, colours and patterns of rendered scenes alone"
                warnings.warn(f"{self.network} {said}; {known}", stacklevel=3)
        limit, theirs = self.tokenizer.context_length, getattr(self.tokenizer, "tokenizer", None)
        # transformers' counts a text's start and end, open_clip's does not
        length = (lambda x: len(theirs.encode(x))) if theirs else lambda x: len(self.tokenizer.encode(x)) + 2
        long = [text for text in texts if length(text) > limit]
        if long:
            which = f"{long[0][:30]!r}… is longer, its end" if quote else "a caption is longer, its end"
            warnings.warn(f"{self.network} reads {limit} tokens; {which} is not read", stacklevel=3)

    def with_image_encoder(self, backbone):
        """This CLIP's text encoder beside another image encoder (a `SelfAttention`), whose class token is the
        pooled feature (Fig. 2) -> `Clip`. Its `projection` stays CLIP's own, so a map needs a new pair."""
        other = copy.copy(self)
        other.__dict__.pop("identity", None)
        other.backbone, other.pools, other.is_vit = backbone, "tokens", False
        other.network = f"{self.network} with {backbone.name}"
        return other


def _float32(found):
    feature_map = None if found.feature_map is None else found.feature_map.float()
    return ImageFeatures(found.class_token.float(), found.tokens.float(), found.grid, feature_map)


def _text_tower(model):
    # open_clip's CLIP holds its text encoder itself, its CustomTextCLIP in `text`
    return getattr(model, "text", model)


def own_weights(model, network):
    """CLIP's own (φ_i, φ_t) as the state of a `Projection`; SigLIP's φ_t has a bias. Raises ValueError with
    the reason where an encoder has none."""
    weight, bias = image_projection(model.visual, network)
    tower = _text_tower(model)
    text = getattr(tower, "text_projection", None)
    if not (tower is model or isinstance(tower, TextTransformer)) or text is None:
        kind = type(tower).__name__
        said = f"{network}: its text encoder ({kind}) has no plain linear projection after one pooled token"
        raise ValueError(said)
    linear = isinstance(text, nn.Linear)
    state = {"image.weight": weight, "image.bias": bias, "text.weight": text.weight if linear else text.T}
    state["text.bias"] = text.bias if linear else None
    return {name: tensor for name, tensor in state.items() if tensor is not None}
