"""Checkpoint files: where they are looked for, and how they come; `state_dicts` reads them.

Files that `registry.yaml` names (OpenAI's CLIPs, DINO, MoCo v3) live in one folder, `ECLIP_WEIGHTS` or
`data/weights`."""

import os
from functools import cache
from pathlib import Path

import yaml

from .. import downloads, files

# what may lie beside weights and decides how they are read: open_clip's configuration, transformers'
BESIDE = ("open_clip_config.json", "config.json", "preprocessor_config.json")
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".tar")


@cache
def registry():
    """`registry.yaml`: datasets, pairs and weights of the paper profile with addresses, sizes, checksums and
    licences."""
    return yaml.safe_load((Path(__file__).parents[1] / "registry.yaml").read_text())


def folder():
    """Where registered weights lie: `ECLIP_WEIGHTS`, else `data/weights`."""
    return files.place(os.environ.get("ECLIP_WEIGHTS") or files.REPOSITORY / "data" / "weights")


def registered(network, tag):
    """The file name under which the registry has a network's weights, or None."""
    known = {(about["for"], about["tag"]): name for name, about in registry()["weights"].items()}
    return known.get((network, tag))


def obtain(name, check=False):
    """Path of a registered checkpoint; downloaded once, resumed where a transfer broke, and checked. check:
    also one that is there, which is fetched again where it differs. Raises ValueError that names the file,
    its size and the ways out."""
    about, path = registry()["weights"][name], folder() / name
    if path.is_file() and not check:
        return path
    checksum = about.get("sha256") and f"sha256:{about['sha256']}"
    try:
        return downloads.fetch(about["url"], path, about.get("bytes"), checksum)
    except OSError as error:
        raise ValueError(
            f"{name} ({downloads.size(about.get('bytes'))}) is not in {path.parent} and could not be "
            "downloaded; put the file there, set ECLIP_WEIGHTS to the folder that has it, or take random "
            f"weights (pretrained None): {error}"
        ) from error


def is_path(pretrained):
    """Whether a word for weights names a file, not a tag."""
    if isinstance(pretrained, Path) or "/" in pretrained or Path(pretrained).suffix in SUFFIXES:
        return True
    return os.path.isfile(pretrained)  # False for what no file can be called


def files_of(*words):
    """The files that decide weights which a user named, one by one or by their folders: with the shards of an
    index and the configuration beside them; a tag has none."""
    found = []
    for path in (files.place(word) for word in words if word):
        if os.path.isfile(path):  # False for what no file can be called
            beside = [path.with_name(name) for name in BESIDE]
            found += [path, *(file for file in beside if file.is_file())]
        whole = path if os.path.isdir(path) else path.parent if path.name.endswith(".index.json") else None
        if whole and whole.is_dir():
            found += [file for file in sorted(whole.iterdir()) if file.suffix in (*SUFFIXES, ".json")]
    return list(dict.fromkeys(found))
