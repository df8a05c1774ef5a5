"""How a CLIP is loaded: by open_clip's name or a folder's, with a tag, a checkpoint, or random weights."""

import logging
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path

import open_clip
import torch

from .. import files
from ..downloads import hub
from . import demo
from .checkpoints import is_path, obtain, registered
from .clip import Clip, own_weights
from .encoders import built, resize_input
from .hugging_face import WEIGHTS, folder_of, has_scheme, hint, inside, reason, source, statistics_beside
from .state_dicts import load_into, read_checkpoint


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
    network: str,
    pretrained: str | Path | None = "default",
    device: str = "cpu",
    size: tuple[int, int] | None = None,
    precision: str = "fp32",
) -> Clip:
    """Load a locked CLIP.

    network: an open_clip model name ("ViT-B-16", "RN50", …), a folder with open_clip's configuration
    ("hf-hub:org/model", "local-dir:path"), or a demo network (`demo.NETWORKS`). pretrained: "default"
    (OpenAI's weights; a folder's own; for a demo network its bundled checkpoint), an open_clip tag (for a
    demo network "seed0" to "seed4"), a local checkpoint (OpenAI's format, open_clip's, transformers'),
    "hf-hub:org/model" for the weights of a repository, or None for random weights (the same ones every
    time). OpenAI weights always get QuickGELU. size: (H, W) of the input in place of the network's own
    square; position embeddings are interpolated. precision: "fp32", or "bf16" for autocast in the image
    encoder.

    Raises ValueError for an unknown network or tag and for a file that does not fit, FileNotFoundError for a
    missing one."""
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision is 'fp32' or 'bf16', not {precision!r}")
    pretrained = None if str(pretrained).lower() in ("none", "null", "random") else pretrained
    require_device(device)
    require_network(network)
    own = network in demo.NETWORKS
    if pretrained == "default" and not own:
        pretrained = network if has_scheme(network) else "openai"
    elif own and pretrained is not None and not (is_path(pretrained) or has_scheme(pretrained)):
        pretrained = demo.checkpoint(network, pretrained)
    with _quiet(), torch.random.fork_rng(devices=[]):
        empty_clip(network)  # one that cannot be used is refused before any weight is downloaded
        tokenizer = _tokenizer(network)
        torch.manual_seed(0)
        if pretrained is None:
            model, label = _empty(network), "random"
        elif has_scheme(pretrained):
            path, label = folder_of(pretrained, weights=True), Path(str(pretrained).partition(":")[2]).name
            model = _from_file(network, path, size=size)
        elif is_path(pretrained):
            path = files.place(pretrained)
            model = _from_file(network, path, size=size)
            label = path.name if path.stem == "random" else path.stem
        else:
            model, label = _from_tag(network, pretrained), str(pretrained)
        if size is not None and tuple(size) != tuple(_input_size(model)):
            resize_input(model.visual, size)
    return Clip(model, tokenizer, network, label, device, precision)


def require_network(network):
    """Raise ValueError for no network, with the nearest, FileNotFoundError for the demo's without a clone."""
    demo.require(network)
    demo.register()
    if not has_scheme(network):
        known = dict.fromkeys([*demo.NETWORKS, *open_clip.list_models()])
        files.require_known(network, known, "no network", hint(network[:200]))


def _input_size(model):
    size = model.visual.image_size
    return (size, size) if isinstance(size, int) else size


def require_device(device):
    """Raise ValueError where torch has no such device here."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        said = f"no device {files.few([device])!r}"
        raise ValueError(f"{said}; write cpu, or cuda (cuda:0, …) for a GPU") from error
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(kind):
        name = {"cuda": "CUDA", "mps": "Metal"}.get(kind, kind)
        raise ValueError(f"device {files.few([device])!r}, but torch sees no {name} device here; write cpu")


def empty_clip(network):
    """open_clip's model without memory or weights (on torch's meta device), in a moment. Raises ValueError
    for one that is unknown or without tokens or projections."""
    require_network(network)
    name = source(network)
    try:
        with _quiet(), torch.device("meta"):
            model = built(name, device="meta")
    except Exception as error:  # a text encoder of Hugging Face's, or a configuration that fits no class
        raise ValueError(f"{files.few([network])}: it cannot be built here ({reason(error)})") from error
    own_weights(model, network)
    return model


def _vision(network):
    demo.register()
    return open_clip.get_model_config(source(network))["vision_cfg"]


def is_vit(network):
    """Whether a network is a ViT of open_clip's that pools its class token (`Clip.is_vit`), by its
    configuration; nothing is loaded."""
    about = _vision(network)
    own = isinstance(about.get("layers"), int) and not about.get("timm_model_name")
    return own and not about.get("attentional_pool") and about.get("pool_type", "tok") == "tok"


def pools(network):
    """What a learned pair of a network reads (`Clip.pools`), by its configuration; nothing is loaded."""
    about = _vision(network)
    resnet = isinstance(about.get("layers"), list) and not about.get("timm_model_name")
    return "feature_map" if resnet else "tokens"


def _tokenizer(network):
    """open_clip's tokenizer. Raises ValueError where it is transformers' and cannot be had."""
    name = source(network)
    theirs = open_clip.get_model_config(name)["text_cfg"].get("hf_tokenizer_name")
    try:
        with hub() if theirs else nullcontext():
            return open_clip.get_tokenizer(network if theirs else name)
    except Exception as error:
        raise ValueError(
            f"{files.few([network])} reads texts by {theirs or 'SigLIP'}'s tokenizer, which needs `pip "
            f"install transformers` and the hub once ({reason(error)})"
        ) from error


def _empty(network, quick_gelu=False, beside=None):
    """open_clip's model with random weights and the preprocessing of the weights to come: as the files beside
    them say, else as all of open_clip's weights for this network have it, else OpenAI's."""
    statistics = statistics_beside(beside) if beside else {}
    if not statistics and not has_scheme(network):
        tags = open_clip.list_pretrained_tags_by_model(network)
        known = [open_clip.get_pretrained_cfg(network, tag) for tag in tags]
        every = {(tuple(about["mean"]), tuple(about["std"])) for about in known}
        statistics = dict(zip(("mean", "std"), *every, strict=True)) if len(every) == 1 else {}
    options = {"force_quick_gelu": quick_gelu, "force_preprocess_cfg": statistics}
    return built(source(network), **options)


def _from_tag(network, tag):
    if has_scheme(network):
        said = f"{files.few([network])} brings its own weights"
        raise ValueError(f"{said}; give a path or None in place of {files.few([tag])!r}")
    if name := registered(network.removesuffix("-quickgelu"), tag):
        return _from_file(network, obtain(name), quick_gelu=tag == "openai")
    if not (config := open_clip.get_pretrained_cfg(network, tag)):  # which takes - for _
        known = open_clip.list_pretrained_tags_by_model(network)
        files.require_known(tag, known, f"{network} has no weights")
    quick = tag == "openai" or bool(config.get("quick_gelu"))
    try:
        with hub():
            return open_clip.create_model(network, tag, force_quick_gelu=quick)
    except Exception as error:
        raise ValueError(
            f"the weights {tag!r} of {network} are neither in the cache nor could they be downloaded; "
            f"give `pretrained` the path of a local checkpoint, or None for random weights ({reason(error)})"
        ) from error


def _from_file(network, path, quick_gelu=None, size=None):
    state, from_openai = read_checkpoint(path)
    if quick_gelu is None:
        quick_gelu = from_openai or _quick_gelu_of(path, network, state)
    model = _empty(network, quick_gelu, path)
    if "text.token_embedding.weight" in model.state_dict() and "token_embedding.weight" in state:
        names = {name: "" if name.startswith(("visual.", "logit_")) else "text." for name in state}
        state = {names[name] + name: tensor for name, tensor in state.items()}
    _fit_positions(model, state, path, size)
    load_into(model, state, path, network)
    return model


def _quick_gelu_of(path, network, state):
    """Whether weights without OpenAI's stamps were trained with QuickGELU: by the configuration that Hugging
    Face's layout keeps beside them, where it is of these sizes, else said aloud."""
    folder = path if path.is_dir() else path.parent
    for name in ("config.json", "open_clip_config.json") if path.is_dir() or path.name in WEIGHTS else ():
        about = files.read_json(folder / name)
        marks = [inside(about, "hidden_act"), inside(about, "vision_config", "hidden_act")]
        quick = True in (inside(about, "quick_gelu"), inside(about, "model_cfg", "quick_gelu"))
        if (quick or any(marks)) and _is_of(about, state):
            return quick or "quick_gelu" in marks
    if f"{network}-quickgelu" in open_clip.list_models():
        inner = (tensor for name, tensor in state.items() if name.endswith("attn.in_proj_weight"))
        half = all(torch.equal(tensor, tensor.half().float()) for tensor in inner)
        likely = "they are of half precision, as OpenAI's are: " if half else ""
        warnings.warn(
            f"{path.name} does not say which activation its weights were trained with; GELU is taken, as "
            f"{network} has it. {likely}OpenAI's and DFN's need QuickGELU: --network {network}-quickgelu",
            stacklevel=2,
        )
    return False


def _is_of(about, state):
    """Whether no size in a configuration is another than the weights'."""
    own = {"class_embedding": [("vision_config", "hidden_size"), ("model_cfg", "vision_cfg", "width")]}
    own["text_projection"] = [("projection_dim",), ("model_cfg", "embed_dim")]
    sizes = {name.rpartition(".")[2]: tensor.shape[-1] for name, tensor in state.items() if tensor.ndim}
    said = ((inside(about, *place), sizes.get(name)) for name, places in own.items() for place in places)
    return all(None in pair or pair[0] == pair[1] for pair in said)


def _fit_positions(model, state, path, size):
    """Let a ViT read the input size that its weights were saved with, if that is the size asked for."""
    name, patches, own = "visual.positional_embedding", "visual.conv1.weight", model.state_dict()
    if not {name, patches} <= own.keys() & state.keys() or not hasattr(model.visual, "patch_size"):
        return
    if own[patches].shape != state[patches].shape or len(own[name]) == len(state[name]):
        return
    height, width = model.visual.patch_size
    cells = len(state[name]) - 1
    if size is not None and (size[0] // height) * (size[1] // width) == cells:
        return resize_input(model.visual, size)
    side = round(cells**0.5)
    if side * side == cells:
        raise ValueError(
            f"{path} was saved for images of {side * height}x{side * width}, this network reads "
            f"{'x'.join(map(str, _input_size(model)))}: add --size {side * height}"
        )
