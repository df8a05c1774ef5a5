"""What a command will write, looked at before any work; docs/using.md says what becomes of files that are
there."""

import mmap
import os
import re
import warnings
from pathlib import Path

from .. import files
from ..datasets.tars import PICTURES
from ..networks.checkpoints import SUFFIXES

# by what a file of ours is known again
ROWS = "image_id,class_name,"
CURVE = "epoch,loss,lr,seconds"
PAIR = r'"projection":"\{\\"reads'
OVERLAY = "eclip explain"
SCORES = r'\A\{\n "[^\n]*": \{\n  "[^\n]*": -?\d'
RUN = r'"(notebooks|partial)":\s*[\[{]'
MAPS = r"(?s)/grid\.npy.*texts\.npy"
ABOUT = r'\A\{\n "explainer": '  # of an evaluation in parts
BENCH, AGREEMENT, GROWTH = "what,unit,ours,reference", "setting,mIoU,mSC", "step,size,work"
# endings by which a person means a file
_OTHERS = "pdf svg eps csv tsv xlsx parquet json jsonl yaml yml npz npy ipynb py txt md html zip gz".split()
KNOWN = {*SUFFIXES, *(f".{kind}" for kind in (*PICTURES, *_OTHERS))}


def named(word, *kinds) -> Path:
    """The path of a file that a user wants written. Raises ValueError where its suffix is none of `kinds`."""
    path = files.place(word)
    if os.path.isdir(path):  # False for what no file can be called
        raise ValueError(f"{path} is a folder; name a file in it, like {path / f'out{kinds[0]}'}")
    if path.suffix.lower() not in kinds:
        raise ValueError(f"{path}: what is written there is a {kinds[0]} file; name it {path.stem}{kinds[0]}")
    return path


def folder(word) -> Path:
    """The path of a folder that a user wants filled. Raises ValueError where it ends like a file."""
    path = files.place(word)
    if not os.path.exists(path) and path.suffix.lower() in KNOWN:
        raise ValueError(f"{path} ends like a file, but is to be a folder; name it {path.stem}")
    return path


def replace(path, data, *beside):
    """Write what was long in the making: where another one is there, it and the files `beside` it stay under
    further names, which is said; files beside one that is gone as well."""
    old, data = Path(os.path.realpath(path)), data.encode() if isinstance(data, str) else data
    if not old.is_file() or old.read_bytes() not in (b"", data):
        for file in filter(Path.is_file, (old, *beside)):
            warnings.warn(
                f"another {file} was there; it is kept as {files.set_aside(file).name}", stacklevel=3
            )
    files.write(path, data)


def require_free(outputs, inputs=()):
    """What will be written takes no file's place that is read, nor each other's, nor a stranger's; folders
    are made.

    outputs: paths, or (path, a pattern that is in every earlier file of ours there). inputs: all files that
    are read. Raises ValueError where an output is an input, another output or of unknown origin, OSError
    where it cannot be written."""
    marked = [one if isinstance(one, tuple) else (one, "") for one in outputs]
    outputs, seen = [Path(path) for path, _ in marked], set()
    for output in outputs:
        if len(os.fsencode(output.name)) > 255:
            raise ValueError(f"{output.name[:40]}…: the name is too long for a file; give a shorter one")
        if output.is_dir():
            raise ValueError(f"{output} is a folder; give the file another name")
        if (real := os.path.realpath(output)) in seen:
            raise ValueError(f"{output} would be written twice; give each output a name of its own")
        if os.path.islink(real):
            raise ValueError(f"{output} is a link that leads to itself; name another output")
        seen.add(real)
    there = {node: output for output in outputs if (node := _node(output))}
    for path in inputs if there else ():
        if output := there.get(_node(path)):
            raise ValueError(f"{output} is an input and would be written over; name another output")
    for path, (_, mark) in zip(outputs, marked, strict=True):
        if path.is_file() and path.stat().st_size and not bears(path, mark):
            said = f"{path} is there, is not of this command and would be written over"
            raise ValueError(f"{said}; name another place")
    for output in outputs:
        folder = next(folder for folder in output.absolute().parents if folder.exists())
        if not folder.is_dir():
            raise OSError(f"{folder} is a file, so {output} cannot be written; name another place")
        output.parent.mkdir(parents=True, exist_ok=True)
        real = Path(os.path.realpath(output))
        if not all(os.access(path, os.W_OK) for path in (real.parent, real) if path.exists()):
            raise OSError(f"{output} cannot be written: it or its folder is read-only; name another place")


def require_run(folder, outputs):
    """Raise ValueError where one of the outputs is there, but no run.json in the folder: it is no run's."""
    foreign = [path for path in outputs if path.exists()]
    if foreign and not Path(folder, "run.json").exists():
        said = f"{foreign[0]} is there, but no run.json beside it: no run of ours"
        raise ValueError(f"{said}; name another --out")


def bears(path, mark):
    """Whether a file that is not empty bears a mark."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return bool(re.search(mark.encode(), content))


def _node(path):
    """The file behind a path, whatever leads to it (links, other spellings); None where there is none."""
    try:
        about = os.stat(path)
        return about.st_dev, about.st_ino
    except (OSError, ValueError):
        return None
