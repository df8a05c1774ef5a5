"""Checkpoint files: where they are looked for, how they come, and how they are read without running code from them.

Files that `data/registry.yaml` names (OpenAI's CLIPs, DINO, MoCo v3) live in one folder, `ECLIP_WEIGHTS` or `data/weights`."""

import os
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

from . import download

REGISTRY = Path(__file__).parents[1] / "data" / "registry.yaml"


@cache
def registry():
    """`data/registry.yaml`: datasets, pairs and weights of the paper profile with addresses, sizes, checksums and licences."""
    return yaml.safe_load(REGISTRY.read_text())


def folder():
    """Where registered weights lie: `ECLIP_WEIGHTS`, else `data/weights`."""
    return Path(os.environ.get("ECLIP_WEIGHTS") or REGISTRY.parent / "weights")


def registered(network, tag):
    """The file name under which the registry has a network's weights, or None."""
    return next((name for name, about in registry()["weights"].items() if (about["for"], about["tag"]) == (network, tag)), None)


def obtain(name):
    """Path of a registered checkpoint; downloaded once, resumed where a transfer broke, and checked. Raises ValueError that names the file,
    its size and the ways out."""
    about, path = registry()["weights"][name], folder() / name
    if path.is_file():
        return path
    try:
        return download.fetch(about["url"], path, about.get("bytes"), about.get("sha256") and f"sha256:{about['sha256']}")
    except OSError as error:
        raise ValueError(
            f"{name} ({download.size(about.get('bytes'))}) is not in {path.parent} and could not be downloaded ({error}); put the file "
            "there, set ECLIP_WEIGHTS to the folder that has it, or take random weights (pretrained None)"
        ) from error


@contextmanager
def hub():
    """Other libraries' downloads from the Hugging Face hub: one short look whether it answers, else their cache alone, instead of a minute of
    retries."""
    before, offline = huggingface_hub.constants.HF_HUB_OFFLINE, False
    try:
        urllib.request.urlopen(urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError:
        offline = True
    huggingface_hub.constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def read_checkpoint(path):
    """-> (state dict, whether the file has OpenAI's format). Never runs code from the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(str(path))
        elif zipfile.is_zipfile(path) and any(n.endswith("/constants.pkl") for n in zipfile.ZipFile(path).namelist()):
            state = torch.jit.load(str(path), map_location="cpu").state_dict()  # OpenAI's files are TorchScript archives
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error
    state = state.get("state_dict", state)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items() if torch.is_tensor(tensor)}
    stamps = [state.pop(name, None) for name in ("input_resolution", "context_length", "vocab_size")]
    state.pop("attn_mask", None)
    return state, any(stamp is not None for stamp in stamps)
