"""How a checkpoint is read, without running code from it and in whatever form its program gave it, and loaded
into a model."""

import argparse
import re
import warnings
import zipfile
from collections import Counter
from itertools import groupby

import torch
from safetensors.torch import load_file

from .. import files
from .hugging_face import WEIGHTS, from_transformers, hint, inside

# where programs keep a model's weights inside a checkpoint, the best first; of others, where most of them are
CONTAINERS = "state_dict model_state_dict model teacher state_dict_ema model_ema ema module net".split()
# what they put before all names, and what torch's wrappers put before some
PREFIXES = ("module.", "model.", "backbone.", "clip_model.", "clip.", "net.")
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
STAMPS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's files carry these three


def read_checkpoint(path):
    """A checkpoint -> (state dict in float32 with the model's own names, whether it is OpenAI's). `path`: a
    file of safetensors, torch or TorchScript, or a folder of Hugging Face's.

    Unwrapped are the containers, prefixes and wrappers above, names of transformers' CLIP and SigLIP, and
    weights of 8 or 16 bits. Raises FileNotFoundError, or ValueError with one sentence on what the file
    holds."""
    path = files.place(path)
    state = {}
    for part in _parts(path):
        state |= _weights_of(_document(part), part)
    bare = [WRAPPERS.sub("", name) for name in state]
    if twice := [name for name, count in Counter(bare).items() if count > 1]:
        said = f"{path} holds {len(twice)} weights twice, with and without a wrapper of torch's"
        raise ValueError(f"{said} ({files.few(twice)}); save the model's state_dict again")
    state = _without_prefixes(dict(zip(bare, state.values(), strict=True)), path)
    stamps = [state.pop(name, None) for name in STAMPS]
    state.pop("attn_mask", None)
    plain = {name: _is_plain(tensor) for name, tensor in state.items()}
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    bad = sorted(name for name, tensor in state.items() if not (plain[name] and tensor.isfinite().all()))
    if bad:
        raise ValueError(
            f"{path}: weights that are not finite, plain numbers in {files.few(bad)}; save them again in "
            "float32"
        )
    if any(name.startswith("vision_model.") for name in state):
        state = from_transformers(state)
    return state, any(stamp is not None for stamp in stamps)


def _is_plain(tensor):
    special = tensor.is_quantized or tensor.is_meta or tensor.is_complex()
    return not special and tensor.layout == torch.strided


def _parts(path):
    """The files of a checkpoint: it, or those of a folder of Hugging Face's; a large one is in shards."""
    if path.is_dir():
        known = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if known is None:
            raise FileNotFoundError(
                f"no checkpoint in the folder {path}: none of {', '.join(WEIGHTS[::2])} is there; get it, "
                "or name the file"
            )
        path = known
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}{hint(str(path))}")
    if not path.name.endswith(".index.json"):
        return [path]
    shards = inside(files.read_json(path), "weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{path} is no index of a checkpoint's shards; get it again")
    parts = [path.parent / name for name in sorted(set(shards.values()))]
    below = [part.resolve().is_relative_to(path.parent.resolve()) for part in parts]
    if gone := [part.name for part, ours in zip(parts, below, strict=True) if not (ours and part.is_file())]:
        raise FileNotFoundError(
            f"{path} names {len(parts)} files; not there: {files.few(gone)}; get the folder again"
        )
    return parts


def _document(path):
    """What a file holds, by its first bytes, whatever it is called."""
    with open(path, "rb") as file:
        head = file.read(16)
    try:
        if head[8:9] == b"{" or (path.suffix == ".safetensors" and head[:2] != b"PK"):
            return load_file(str(path))
        if zipfile.is_zipfile(path) and any(
            name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()
        ):
            # OpenAI's files are TorchScript archives
            return torch.jit.load(str(path), map_location="cpu").state_dict()
        # a program's arguments lie beside many a checkpoint; of a path torch would go by its suffix
        with torch.serialization.safe_globals([argparse.Namespace]), open(path, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a readable checkpoint: {_reason(head, error)}") from error


def _reason(head, error):
    """Why a file cannot be read, and the way out."""
    text = str(error)
    unsafe = re.search(r"Unsupported (?:global|class|operand)[^\n]*?(?:GLOBAL |class )([\w.]+)", text)
    if unsafe:
        return (
            f"it holds Python objects beside its weights ({unsafe[1]}), which would run code; save its "
            "state_dict alone"
        )
    if head.startswith(b"version https://"):
        return "it is a pointer of Git LFS, not the weights; run git lfs pull"
    if not head:
        return "it is empty; get the file again"
    if "not in a subdirectory" in text or "legacy .tar" in text:
        return "it is an archive of other files; unpack it and name the one of the weights"
    if head[:1] in b"<{[#" or text.startswith("Weights only load failed"):
        return f"it begins with {head!r}, no format of weights; get the file again"
    first = re.sub(r"^\[[^]]*\][ .]*", "", next(iter(text.splitlines()), type(error).__name__))
    return f"{re.split(r'[.;] ', first)[0][:100]}; get the file again, it may be cut off"


def _weights_of(document, path):
    """The state dict in a checkpoint, wherever its program keeps it; says which where there are several."""
    if not isinstance(document, dict):
        raise ValueError(
            f"{path} holds a {type(document).__name__}, not a state dict (names and tensors); save the "
            "model's state_dict"
        )
    found = dict(reversed([*_states(document)]))  # of one container the first
    if not found:
        while len(document) == 1 and isinstance(inner := next(iter(document.values())), dict):
            document = inner
        held = files.few(document) or "nothing"
        raise ValueError(f"{path} holds no weights by name, but: {held}; save the model's state_dict")
    rank = {name: k for k, name in enumerate([*CONTAINERS, ""])}
    best = min(found, key=lambda place: (rank.get(place, len(rank)), -len(found[place])))
    alike = [place for place in found if place not in rank and len(found[place]) == len(found[best])]
    if best in alike and len(alike) > 1:
        said = f"{path} holds several sets of weights alike: {files.few(sorted(alike))}"
        raise ValueError(f"{said}; save the one that is meant alone")
    if others := [place for place in found if place and place != best]:
        warnings.warn(
            f"{path.name} holds several sets of weights: {best or 'those outside'} are read, not "
            f"{files.few(others)}",
            stacklevel=2,
        )
    return found[best]


def _states(document, place="", depth=4):
    """(the outermost container, weights by name) of every dictionary in a checkpoint that holds some."""
    own = {k: v for k, v in document.items() if isinstance(k, str) and torch.is_tensor(v)}
    if any("." in name for name in own):
        yield place, own
    for name, value in document.items() if depth else ():
        if isinstance(value, dict):
            yield from _states(value, place or str(name), depth - 1)


def _without_prefixes(state, path):
    """Names as the model has them: a prefix that as many of them share as any other is taken off, and what
    does not share it is no part of it, which is said."""
    others = []

    def most(prefix):
        shared = Counter(name.partition(".")[0] + "." for name in state)
        # an average of the weights counts its steps beside them
        return shared[prefix] > 1 and shared[prefix] >= 0.9 * max(shared.values())

    while prefix := next(filter(most, PREFIXES), None):
        others += [name for name in state if not name.startswith(prefix)]
        state = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    if others:
        said = f"{len(others)} weights lie outside the model and are left out ({files.few(others)})"
        warnings.warn(f"{path.name}: {said}", stacklevel=3)
    return state


def load_into(model, state, path, network):
    """Load a state dict into a model, all of it. Raises ValueError with one sentence on what the file holds
    and what was expected."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    other = [name for name in expected if name in state and _kind(state[name]) != _kind(expected[name])]
    if not (missing or extra or other):
        if empty := [name for name, tensor in state.items() if _has_hole(name, tensor)]:
            said = f"{path}: all numbers are 0 in long parts of {len(empty)} of its {len(state)} weights"
            raise ValueError(f"{said} ({files.few(empty)}); get the file again")
        model.load_state_dict(state)
        return
    problems = [
        f"{name} is {_kind(state[name])} there and {_kind(expected[name])} here" for name in other[:1]
    ]
    if missing and not other:
        problems.append(f"{len(missing)} of {len(expected)} weights are missing (first {missing[0]})")
    if extra and not other:
        problems.append(f"it has {len(extra)} more (first {extra[0]})")
    raise ValueError(
        f"{path} does not fit {network}: {', '.join(problems)}; is it of another network, or a part of one?"
    )


def _has_hole(name, tensor):
    """Whether all is 0 in a whole matrix, or in an eighth of its rows one behind the other, as a broken
    transfer leaves it. A training leaves single rows, and maybe a token, a bias, positions or what is not
    trained (CoCa's decoder of captions, which no map reads)."""
    if sum(side > 1 for side in tensor.shape) < 2 or re.search("bias|pos|token$|^text_decoder", name):
        return False
    rows = tensor.flatten(1).any(1).tolist()
    longest = max((len([*run]) for filled, run in groupby(rows) if not filled), default=0)
    return longest >= min(len(rows), max(8, len(rows) / 8))


def _kind(tensor):
    """A tensor's shape, and whether it holds floats, in words."""
    shape = "x".join(map(str, tensor.shape)) or "a number"
    return shape if tensor.is_floating_point() else f"{shape} of whole numbers"
