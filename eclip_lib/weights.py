"""Checkpoint files of every kind, read without running code from them."""

import zipfile

import torch
from safetensors.torch import load_file


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
