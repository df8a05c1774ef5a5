"""Checkpoint files: where they are looked for, how they come, and how they are read without running code from
them.

Files that `registry.yaml` names (OpenAI's CLIPs, DINO, MoCo v3) live in one folder, `ECLIP_WEIGHTS` or
`data/weights`."""

import argparse
import os
import re
import urllib.error
import urllib.request
import zipfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import huggingface_hub
import torch
import yaml
from safetensors.torch import load_file

from .. import downloads, files

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".tar")
# where programs keep a model's weights inside a checkpoint, and what they put before the names
CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "teacher",
    "state_dict_ema",
    "model_ema",
    "ema",
    "module",
    "net",
)
PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.", "clip_model.")
STAMPS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's files carry these three


@cache
def registry():
    """`registry.yaml`: datasets, pairs and weights of the paper profile with addresses, sizes, checksums and
    licences."""
    return yaml.safe_load((Path(__file__).parents[1] / "registry.yaml").read_text())


def folder():
    """Where registered weights lie: `ECLIP_WEIGHTS`, else `data/weights`."""
    return Path(os.environ.get("ECLIP_WEIGHTS") or files.REPOSITORY / "data" / "weights")


def registered(network, tag):
    """The file name under which the registry has a network's weights, or None."""
    return next(
        (
            name
            for name, about in registry()["weights"].items()
            if (about["for"], about["tag"]) == (network, tag)
        ),
        None,
    )


def obtain(name, check=False):
    """Path of a registered checkpoint; downloaded once, resumed where a transfer broke, and checked. check:
    also one that is there, which is fetched again where it differs. Raises ValueError that names the file, its
    size and the ways out."""
    about, path = registry()["weights"][name], folder() / name
    if path.is_file() and not check:
        return path
    try:
        return downloads.fetch(
            about["url"], path, about.get("bytes"), about.get("sha256") and f"sha256:{about['sha256']}"
        )
    except OSError as error:
        raise ValueError(
            f"{name} ({downloads.size(about.get('bytes'))}) is not in {path.parent} and could not be "
            "downloaded; put the file there, set ECLIP_WEIGHTS to the folder that has it, or take random "
            f"weights (pretrained None): {error}"
        ) from error


@contextmanager
def hub():
    """Other libraries' downloads from the Hugging Face hub: one short look whether it answers, else their
    cache alone, instead of a minute of retries."""
    before, offline = huggingface_hub.constants.HF_HUB_OFFLINE, False
    try:
        urllib.request.urlopen(
            urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD"), timeout=5
        ).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError:
        offline = True
    huggingface_hub.constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def is_path(pretrained):
    """Whether a word for weights names a file, not a tag."""
    return (
        isinstance(pretrained, Path)
        or Path(pretrained).suffix in SUFFIXES
        or "/" in pretrained
        or Path(pretrained).is_file()
    )


# ---------------------------------------------------------------------- reading


def read_checkpoint(path):
    """-> (state dict of float32 tensors, whether the file has OpenAI's format). Never runs code from the
    file.

    Takes the forms that training programs write: bare weights, or inside `CONTAINERS`, behind `PREFIXES`;
    transformers' names of a CLIP become open_clip's. Raises FileNotFoundError, or ValueError that says what
    the file holds."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    state = _without_prefixes(_weights_of(_document(path), path))
    stamps = [state.pop(name, None) for name in STAMPS]
    state.pop("attn_mask", None)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    bad = sorted(name for name, tensor in state.items() if not tensor.isfinite().all())
    if bad:
        raise ValueError(f"{path}: weights that are not finite numbers in {', '.join(bad[:3])}")
    if any(name.startswith("vision_model.") for name in state):
        state = _from_transformers(state)
    return state, any(stamp is not None for stamp in stamps)


def _document(path):
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        if zipfile.is_zipfile(path) and any(
            n.endswith("/constants.pkl") for n in zipfile.ZipFile(path).namelist()
        ):
            return torch.jit.load(
                str(path), map_location="cpu"
            ).state_dict()  # OpenAI's files are TorchScript archives
        with torch.serialization.safe_globals(
            [argparse.Namespace]
        ):  # a program's arguments lie beside many a checkpoint
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        unsafe = re.search(
            r"Unsupported (?:global|class|operand)[^\n]*?(?:GLOBAL |class )([\w.]+)", str(error)
        )
        reason = (
            f"it holds Python objects beside its weights ({unsafe[1]}), which would run code"
            if unsafe
            else _first_line(error)
        )
        raise ValueError(
            f"{path} is not a readable checkpoint: {reason}; save its state_dict alone"
        ) from error


def _first_line(error):
    return next(iter(str(error).splitlines()), type(error).__name__)[:120]


def _weights_of(document, path):
    """The state dict in a checkpoint, wherever its program keeps it."""
    for _ in range(3):  # a container in a container
        if not isinstance(document, dict):
            raise ValueError(
                f"{path} holds a {type(document).__name__}, not a state dict (names and tensors); save "
                "the model's state_dict"
            )
        inside = next((document[name] for name in CONTAINERS if isinstance(document.get(name), dict)), None)
        if inside is None:
            break
        document = inside
    state = {name: tensor for name, tensor in document.items() if torch.is_tensor(tensor)}
    if not state:
        held = ", ".join(map(str, list(document)[:4]))
        raise ValueError(
            f"{path} holds no weights by name, but: {held or 'nothing'}; save the model's state_dict"
        )
    return state


def _without_prefixes(state):
    """Names as the model has them: a prefix that most of them share is taken off, and what does not share it
    is no part of it."""
    while prefix := next(
        (p for p in PREFIXES if sum(name.startswith(p) for name in state) > len(state) / 2), None
    ):
        state = {
            name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)
        }
    return state


# transformers' CLIP -> open_clip's, in the order in which they are replaced
RENAMED = [
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.embeddings\.token_embedding\.weight$", "token_embedding.weight"),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]


def _from_transformers(state):
    """A CLIP with the names of Hugging Face's transformers in open_clip's: queries, keys and values in one,
    projections turned."""
    found = {}
    for name, tensor in state.items():
        if name.endswith("position_ids"):
            continue
        if name in ("visual_projection.weight", "text_projection.weight"):
            found["visual.proj" if name.startswith("visual") else "text_projection"] = tensor.T.contiguous()
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if match := re.fullmatch(r"(.*)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [state.get(_original(match[1], letter, match[2])) for letter in "qkv"]
            if all(part is not None for part in parts):
                found[f"{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"\.self_attn\.[kv]_proj\.", name):
            found[name] = tensor
    return found


def _original(block, letter, kind):
    block = block.replace("visual.transformer.resblocks.", "vision_model.encoder.layers.")
    block = re.sub(r"^transformer\.resblocks\.", "text_model.encoder.layers.", block)
    return f"{block}.self_attn.{letter}_proj.{kind}"


def load_into(model, state, path, network):
    """Load a state dict into a model, all of it. Raises ValueError with one sentence on what the file holds
    and what was expected."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    other = [name for name in expected if name in state and expected[name].shape != state[name].shape]
    if not (missing or extra or other):
        model.load_state_dict(state)
        return
    if other:
        name = other[0]
        problem = f"{name} is {_shape(state[name])} there and {_shape(expected[name])} here"
    else:
        problem = f"{len(missing)} of {len(expected)} weights are missing" + (
            f" (first {missing[0]})" if missing else ""
        )
        problem += f", {len(extra)} are not its own (first {extra[0]})" if extra else ""
    raise ValueError(f"{path} does not fit {network}: {problem}; is it of another network, or a part of one?")


def _shape(tensor):
    return "x".join(map(str, tensor.shape)) or "a number"
