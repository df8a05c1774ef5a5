"""Files, once for everybody: what a user names, atomic writes, and digests that stand for contents."""

import ast
import errno
import fcntl
import glob
import hashlib
import io
import itertools
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

_CLONE = Path(__file__).parents[1]
# a clone; an installed wheel has no notebooks, results or demo models, and writes where one stands
REPOSITORY = _CLONE if (_CLONE / "notebooks").is_dir() else Path.cwd()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------------- what a user names


def place(word) -> Path:
    """The path that a user wrote: "~" is the home folder, unless something is called so."""
    if not str(word):
        raise ValueError("a path is empty; name a file or a folder")
    return Path(word if os.path.lexists(word) else os.path.expanduser(word))


def matching(pattern, expand=lambda rest: [rest]):
    """A glob -> {each of its parts: sorted paths}. expand: what makes several parts of it (braces).

    What exists is meant as it is written: a path, and the folders at the beginning of a pattern."""
    path = place(pattern)
    if path.exists():
        return {str(path): [path]}
    root = next(folder for folder in [*path.parents, Path()] if folder.is_dir())
    found = {}
    for part in expand(str(path.relative_to(root))):
        found[part] = sorted({root / name for name in glob.glob(part, root_dir=root, recursive=True)})
    return found


def names(words, what) -> list[str]:
    """Names that are separated by commas, each once. what: the argument. Raises ValueError where one is
    empty."""
    found = [word.strip() for word in words.split(",")]
    if "" in found:
        raise ValueError(f"{what}: a name in {few([words])!r} is empty; write one, or several like a,b")
    return list(dict.fromkeys(found))


def few(names, total=None) -> str:
    """The first three of a list in words: "a, b, c and 7 more"."""
    first = [str(name) if len(str(name)) < 50 else f"{str(name)[:47]}…" for name in list(names)[:3]]
    more = (len(names) if total is None else total) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def require_known(word, names, what, more=""):
    """Raise ValueError where a word is none of the names: with all, or of many with the nearest. what: how
    the sentence begins; more: how it ends."""
    if word not in names:
        every, near = ", ".join(names), ", ".join(get_close_matches(str(word), names, 3))
        listed = f"there are {every}" if len(every) < 220 else f"near: {near or few(names)}"
        raise ValueError(f"{what} {few([word])!r}; {listed}{more}")


# ---------------------------------------------------------------------- reading and writing


def read_text(path) -> str:
    """A user's text file, with or without a byte order mark. Raises ValueError where it is not UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        said = f"{path} is not UTF-8 ({error.reason} at byte {error.start})"
        raise ValueError(f"{said}; convert it first, e.g. with iconv") from error


@contextmanager
def replacing(path):
    """A path beside `path` to write to, which takes its place (through links, which stay) when the block ends
    well and is removed when it does not; the folder is made. What a killed process left there a day ago or
    longer goes when the same file is written again. Raises OSError that says so where the disk is full."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    name = digest(os.fsencode(path.name))  # short: names end at 255 bytes
    partial = path.with_name(f".{name}.partial")
    with suppress(OSError):
        if time.time() - partial.lstat().st_mtime > 24 * 3600:  # a living writer's is younger, on any machine
            partial.unlink()
    try:
        open(partial, "x").close()
    except FileExistsError:  # of another writer
        partial = path.with_name(f".{name}-{uuid4().hex[:16]}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            said = f"no room for {path.name} in {path.parent}"
            raise OSError(f"{said}: free some space and run again, it resumes") from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def write(path, data: bytes | str):
    """Write bytes or text atomically, on disk when this returns."""
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())


def set_aside(path) -> Path:
    """Rename a file to the first free `path`.replaced-1, -2, … (a long name is cut) -> where it lies."""
    for number in itertools.count(1):
        end = f".replaced-{number}"
        kept = path.with_name(os.fsencode(path.name)[: 255 - len(end)].decode("utf-8", "ignore") + end)
        with suppress(FileExistsError):
            open(kept, "x").close()  # no other process takes this name
            return path.replace(kept)
    raise AssertionError


@contextmanager
def alone(path, otherwise=None, shared=False):
    """No other process is in this block for the same path (but others that share it, where this one does):
    it waits, or raises ValueError(otherwise). Raises OSError where the disk has no locks."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:  # whatever has that name keeps what it holds
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(file, kind | (fcntl.LOCK_NB if otherwise else 0))
        except BlockingIOError as error:
            raise ValueError(otherwise) from error
        except OSError as error:
            said = f"{path}: this disk knows no locks ({error.strerror}); name a folder on another one"
            raise OSError(said) from error
        yield


def read_json(path) -> dict:
    """A JSON file of names and values -> its content, {} where it is missing, half-written or another
    thing: then the work is done again."""
    try:
        return parsed(Path(path).read_bytes())
    except OSError:
        return {}


def parsed(text) -> dict:
    """What JSON says by name, of any Unicode encoding; {} where it is none that Python can hold."""
    try:
        found = json.loads(text)
        return found if isinstance(found, dict) else {}
    except (ValueError, RecursionError):
        return {}


def as_json(about) -> str:
    return json.dumps(about, indent=1, default=list) + "\n"


def as_csv(table, **options) -> str:
    text = io.StringIO()
    table.to_csv(text, **options)
    return text.getvalue()


# ---------------------------------------------------------------------- contents


def digest(thing) -> str:
    """Sixteen hexadecimal digits that stand for what a thing contains, whatever it is called.

    A torch module or a dictionary of tensors: the weights. A path: the file's bytes. Bytes: themselves. Else
    what JSON can say. Raises TypeError for anything else, whose text might leave out what matters."""
    thing = thing.state_dict() if hasattr(thing, "state_dict") else thing
    if isinstance(thing, Path):
        with open(thing, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    sha = hashlib.sha256()
    if isinstance(thing, Mapping) and thing and all(hasattr(value, "detach") for value in thing.values()):
        for name, tensor in sorted(thing.items()):
            raw = tensor.detach().cpu().contiguous().flatten().view(sys.modules["torch"].uint8)
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + raw.numpy().tobytes())
    else:
        sha.update(thing if isinstance(thing, bytes) else json.dumps(thing, sort_keys=True).encode())
    return sha.hexdigest()[:16]


# what decides a number below our own code
DECIDING = ("torch", "torchvision", "open_clip_torch", "timm", "grad-cam", "pycocotools", "numpy", "pillow")


@cache
def code_digest(*places) -> str:
    """Digest of the library's code in these files and folders, without its words (comments, docstrings), and
    of the versions of the libraries below it."""
    package, sha = Path(__file__).parent, hashlib.sha256()
    for place in places:
        for path in sorted((package / place).rglob("*.py")) or [package / place]:
            sha.update(ast.dump(_without_docstrings(ast.parse(path.read_text()))).encode())
    sha.update(" ".join(version_of(name) for name in DECIDING).encode())
    return sha.hexdigest()[:16]


def version_of(name) -> str:
    """A package's version; "none" of an extra that is not installed, and of a clone that is on the path."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _without_docstrings(tree):
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                body[0] = ast.Pass()
    return tree


def stamp(path):
    """What tells in a moment that a file has not changed: its bytes, and when its contents and its entry last
    changed (`cp -p` restores the first time, not the second); None where there is none."""
    try:
        about = os.stat(path)
        return [about.st_size, about.st_mtime_ns, about.st_ctime_ns]
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
