"""What a command will write, looked at before any work."""

import os
from pathlib import Path

from .. import files

ROWS = "image_id,class_name,"  # what rows of an evaluation begin with


def named(word, *kinds) -> Path:
    """The path of a file that a user wants written. Raises ValueError where its suffix is none of `kinds`."""
    path = files.place(word)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it, like {path / f'out{kinds[0]}'}")
    if path.suffix.lower() not in kinds:
        raise ValueError(f"{path}: what is written there is a {kinds[0]} file; name it {path.stem}{kinds[0]}")
    return path


def require_free(outputs, inputs=(), unnamed=None):
    """What will be written takes no file's place that is read, nor each other's, nor a stranger's; folders
    are made.

    outputs: paths of files. inputs: all files that are read. unnamed: further outputs, which the command
    names, not its user: {path: a text that is in every earlier one}. Raises ValueError where an output is an
    input, another output or of unknown origin, OSError where it cannot be written."""
    outputs, seen = [Path(output) for output in (*outputs, *(unnamed or ()))], set()
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
    for path, mark in (unnamed or {}).items():
        if path.is_file() and mark.encode() not in path.read_bytes():
            said = f"{path} is there, is not of this command and would be written over"
            raise ValueError(f"{said}; name another --out")
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


def _node(path):
    """The file behind a path, whatever leads to it (links, other spellings); None where there is none."""
    try:
        about = os.stat(path)
        return about.st_dev, about.st_ino
    except (OSError, ValueError):
        return None
