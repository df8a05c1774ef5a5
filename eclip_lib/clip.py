"""Locked CLIP: image features, text features and the projection pair between them (paper §3.1, Eq. 1 to 3).

Together with `encoders.py` the only place that knows open_clip's insides. Everything it returns is *before* the projection, because
CLIP, ECLIP and RCLIP differ only in the `Projection` that follows.
"""

import logging
import re
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from torchvision import transforms

from . import demo
from .encoders import ImageFeatures, image_features, image_projection, resize_input
from .projection import Projection
from .weights import hub, obtain, read_checkpoint, registered

PROMPT = "a photo of the {}"


def stacked(images, device):
    """Prepared images [3, S, S] -> [B, 3, S, S] on the device; onto a GPU through pinned memory, so that the copy does not wait."""
    batch = torch.stack(list(images))
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)


def _to_rgb(image):
    return image.convert("RGB")


class Clip:
    """A locked CLIP. Attributes: `network`, `pretrained` (a word for tables and titles), `preprocess` (PIL image ->
    float32 [3, S, S]), `image_size` S (or (H, W)), `statistics` (mean and std of the preprocessing), `projection` (CLIP's own pair),
    `is_vit`, `pools` ("tokens" or "feature_map": what `pool` reads and a learned pair projects), `logit_scale` (float, the
    factor on cosines), `device`, `model` (open_clip's)."""

    def __init__(self, model, tokenizer, network, pretrained, device, precision="fp32"):
        self.model, self.tokenizer = model.eval().requires_grad_(False).to(device), tokenizer
        self.network, self.pretrained, self.device, self.precision = network, pretrained, torch.device(device), precision
        config = open_clip.get_model_preprocess_cfg(model)
        self.size = (config["size"],) * 2 if isinstance(config["size"], int) else tuple(config["size"])
        self.image_size = self.size[0] if self.size[0] == self.size[1] else self.size
        self.statistics = (config["mean"], config["std"])
        self.preprocess = transforms.Compose(
            [
                _to_rgb,
                transforms.Resize(self.size, transforms.InterpolationMode.BICUBIC),  # no crop, aspect ratio not kept
                transforms.ToTensor(),
                transforms.Normalize(config["mean"], config["std"]),
            ]
        )
        self.is_vit = isinstance(model.visual, VisionTransformer)
        self.pools = "feature_map" if isinstance(model.visual, ModifiedResNet) else "tokens"
        if self.device.type == "cuda" and not self.is_vit:  # what cuDNN's convolutions are fastest on
            model.visual.to(memory_format=torch.channels_last)
        self.logit_scale = float(model.logit_scale.exp())
        self.projection = _own_projection(model, network).requires_grad_(False).to(device)
        self.projection.metadata = {"network": network, "weights": pretrained}

    def encode_image(self, images: torch.Tensor) -> ImageFeatures:
        """[B, 3, H, W] -> `ImageFeatures` in float32. Differentiable in `images`; the weights stay locked."""
        if images.ndim != 4 or images.shape[1:] != (3, *self.size):
            raise ValueError(
                f"{self.network} reads images of shape [B, 3, {self.size[0]}, {self.size[1]}], not {list(images.shape)}"
            )
        images = images.to(self.device)
        if self.precision == "fp32":
            return image_features(self.model.visual, images)
        with torch.autocast(self.device.type, torch.bfloat16):
            features = image_features(self.model.visual, images)
        feature_map = None if features.feature_map is None else features.feature_map.float()
        return ImageFeatures(features.class_token.float(), features.tokens.float(), features.grid, feature_map)

    def encode_text(self, texts: str | Sequence[str]) -> torch.Tensor:
        """A list of T prompts -> F_t [T, Ct]: the end-of-text token after the final layer norm, before the projection.

        A demo network warns about words its captions never contained."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if self.network in demo.NETWORKS:
            unknown = sorted({w for t in texts for w in re.findall(r"\w+", t.lower())} - set(demo.words()))
            if unknown:
                warnings.warn(f"{self.network} never saw the words {unknown}; it knows {demo.words()}", stacklevel=2)
        limit, encode = self.tokenizer.context_length, getattr(self.tokenizer, "encode", None)
        long = [text for text in texts if encode and len(encode(text)) + 2 > limit]  # and a token each for start and end
        if long:
            warnings.warn(
                f"{self.network} reads {limit} tokens; {long[0][:30]!r}… is longer, its end is not read", stacklevel=2
            )
        text, tokens = _text_tower(self.model), self.tokenizer(texts).to(self.device)
        x = text.token_embedding(tokens) + text.positional_embedding
        x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask))
        kind, end = (text.pool_type, text.eos_id) if text is not self.model else (text.text_pool_type, text.text_eos_id)
        return text_global_pool(x, tokens, kind, eos_token_id=end)


def _text_tower(model):
    return getattr(model, "text", model)  # open_clip's CLIP holds its text encoder itself, its CustomTextCLIP in `text`


def own_weights(model, network):
    """CLIP's own (φ_i, φ_t) -> (weight [D, C], its bias or None, text weight [D, Ct]). Raises ValueError with the reason where an encoder
    has none."""
    weight, bias = image_projection(model.visual, network)
    tower = _text_tower(model)
    usual = tower is model or (isinstance(tower, TextTransformer) and tower.cls_emb is None and not tower.use_pad_mask)
    text = getattr(tower, "text_projection", None)
    if not usual or not isinstance(text, torch.Tensor):
        raise ValueError(
            f"{network}: its text encoder ({type(tower).__name__}) has no plain linear projection after one pooled token"
        )
    return weight, bias, text.T


def _own_projection(model, network):
    weight, bias, text = own_weights(model, network)
    pair = Projection(weight.shape[1], text.shape[1], weight.shape[0], image_bias=bias is not None)
    pair.load_state_dict({"image.weight": weight, "text.weight": text} | ({} if bias is None else {"image.bias": bias}))
    return pair


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


def load_clip(
    network: str, pretrained: str | Path | None = "default", device: str = "cpu", size: tuple[int, int] | None = None,
    precision: str = "fp32",
) -> Clip:  # fmt: skip
    """Load a locked CLIP.

    network: an open_clip model name ("ViT-B-16", "RN50", …) or a demo network (`demo.NETWORKS`). pretrained: "default"
    (OpenAI's weights; for a demo network its bundled checkpoint), an open_clip tag (for a demo network "seed0" to
    "seed4"), a path to a local checkpoint (OpenAI's format, open_clip .pt or .safetensors), or None for random weights
    (the same ones every time). OpenAI weights always get QuickGELU. size: (H, W) of the input in place of the network's own square;
    position embeddings are interpolated. precision: "fp32", or "bf16" for autocast in the image encoder.

    Raises ValueError for an unknown network or tag and for a file that does not fit, FileNotFoundError for a missing one.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision is 'fp32' or 'bf16', not {precision!r}")
    _require_device(device)
    demo.register()
    if network not in open_clip.list_models():
        near = get_close_matches(network, open_clip.list_models(), 3) or list(demo.NETWORKS)
        raise ValueError(f"no network {network!r}; near: {', '.join(near)} (open_clip.list_models() has them all)")
    if pretrained in ("default", "openai") and network not in demo.NETWORKS:
        pretrained = "openai"
    elif network in demo.NETWORKS and pretrained is not None and not _is_path(pretrained):
        pretrained = demo.checkpoint(network, pretrained)
    with _quiet(), torch.random.fork_rng(devices=[]):
        if network not in demo.NETWORKS:
            empty_clip(network)  # one that cannot be used is refused before any weight is downloaded
        torch.manual_seed(0)
        if pretrained is None:
            model, label = open_clip.create_model(network), "random"
        elif _is_path(pretrained):
            model, label = _from_file(network, Path(pretrained)), Path(pretrained).stem
        else:
            model, label = _from_tag(network, pretrained), str(pretrained)
        if size is not None:
            resize_input(model.visual, size)
        tokenizer = open_clip.get_tokenizer(network)
    return Clip(model, tokenizer, network, label, device, precision)


def _require_device(device):
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"no device {device!r}; write cpu, or cuda (cuda:0, …) for a GPU") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}, but torch sees no CUDA device here; write cpu")


def empty_clip(network):
    """open_clip's model without memory or weights (on torch's meta device), in a moment. Raises ValueError for a network without tokens or
    projections."""
    demo.register()
    try:
        with _quiet(), torch.device("meta"):
            model = open_clip.create_model(network, device="meta")
    except RuntimeError as error:  # a text encoder of Hugging Face's
        raise ValueError(f"{network}: it cannot be built here ({str(error).splitlines()[0]})") from error
    own_weights(model, network)
    return model


def is_vit(network):
    """Whether a network is a ViT, by its entry in the registry; nothing is loaded."""
    demo.register()
    return isinstance(open_clip.get_model_config(network)["vision_cfg"].get("layers"), int)


def _is_path(pretrained):
    return (
        isinstance(pretrained, Path) or Path(pretrained).suffix in (".pt", ".pth", ".bin", ".safetensors") or "/" in pretrained
    )


def _from_tag(network, tag):
    if name := registered(network.removesuffix("-quickgelu"), tag):
        return _from_file(network, obtain(name), quick_gelu=tag == "openai")
    config = open_clip.get_pretrained_cfg(network, tag)
    if not config:
        raise ValueError(f"{network} has no weights {tag!r}; it has {open_clip.list_pretrained_tags_by_model(network)}")
    try:
        with hub():
            return open_clip.create_model(network, tag, force_quick_gelu=tag == "openai" or bool(config.get("quick_gelu")))
    except Exception as error:
        raise ValueError(
            f"the weights {tag!r} of {network} are neither in the cache nor could they be downloaded; give `pretrained` the "
            f"path of a local checkpoint, or None for random weights ({str(error).splitlines()[0]})"
        ) from error


def _from_file(network, path, quick_gelu=False):
    state, from_openai = read_checkpoint(path)
    model = open_clip.create_model(network, force_quick_gelu=from_openai or quick_gelu)
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
