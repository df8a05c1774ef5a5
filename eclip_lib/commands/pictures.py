"""Which pictures `eclip explain` reads, and what their overlays are called."""

import itertools
import os
import warnings
from pathlib import Path

from .. import files
from ..datasets.tars import PICTURES
from . import outputs

DEFAULT = Path("heat.png")  # the overlay that nobody named
PIXELS = (".png", ".jpg", ".jpeg", ".webp")
WRITABLE = (*PIXELS, ".pdf", ".svg")


def pictures(photo):
    """A file, a folder or a glob -> sorted list of image files. Warns of files in it that are none, or
    overlays of this command; raises FileNotFoundError."""
    path = files.place(photo)
    if path.is_file():
        return [path]
    found = path.iterdir() if path.is_dir() else itertools.chain(*files.matching(photo).values())
    found = sorted(p for p in found if not p.name.startswith("."))
    named = [p for p in found if p.suffix.lower().lstrip(".") in PICTURES and p.is_file()]
    own = [p for p in named if _is_overlay(p)]
    folders = [p for p in found if p.is_dir()]
    for what, left in (
        ("no pictures by their names or what they lead to: {} files", {*found} - {*named, *folders}),
        ("a glob with ** looks into them: {} folders", [] if "**" in str(photo) else folders),
        ("overlays of an earlier run: {} files", own),
    ):
        if left:
            first = files.few([p.name for p in sorted(left)])
            warnings.warn(f"left out, {what.format(len(left))} ({first})", stacklevel=2)
    if not (good := [p for p in named if p not in own]):
        kinds = ", ".join(PICTURES)
        raise FileNotFoundError(f"no picture at {photo} (a file, a folder or a glob of {kinds})")
    return good


def _is_overlay(path):
    try:
        return path.stat().st_size > 0 and outputs.bears(path, outputs.OVERLAY)
    except OSError:  # whoever reads it says so
        return False


def targets(paths, out, kinds=WRITABLE, parts=("",)):
    """Where each picture's overlays go -> {picture: [a target for each of `parts`, the ends of their
    names]}. `out`: a file, or a folder for several."""
    out = files.place(out)
    if not os.path.isdir(out) and out.suffix.lower() in outputs.KNOWN:
        out = outputs.named(out, *kinds)
    is_file = out.suffix.lower() in WRITABLE and not os.path.isdir(out)
    if is_file and len(paths) == 1 == len(parts) and out != DEFAULT:
        return {paths[0]: [out]}
    stem, folder, suffix = (f"{out.stem}-", out.parent, out.suffix) if is_file else ("", out, ".png")
    words = [out.stem] if is_file and len(paths) == 1 else [f"{stem}{word}" for word in _words(paths)]
    places = [[folder / _name(word, f"{part}{suffix}") for part in parts] for word in words]
    return dict(zip(paths, places, strict=True))


def _name(word, end):
    """A file's name of at most 255 bytes; a long word is cut and told by its digest."""
    room, whole = 255 - len(os.fsencode(end)), os.fsencode(word)
    if len(whole) > room:
        word = f"{whole[: room - 17].decode('utf-8', 'ignore')}-{files.digest(whole)}"
    return word + end


def _words(paths):
    """A word for each picture: its stem; where two share one, all that tells the paths apart, and where that
    does not, a number."""
    base = os.path.commonpath([path.absolute().parent for path in paths])
    whole = ["-".join(path.absolute().relative_to(base).parts).replace(".", "-") for path in paths]
    numbered = [f"{number}-{word}" for number, word in enumerate(whole, 1)]
    kinds = ([path.stem for path in paths], whole, numbered)
    return next(words for words in kinds if len({word.casefold() for word in words}) == len(paths))


def parts(methods, texts):
    """The end of a bare overlay's name, for each method and text: what tells it from the others."""
    of_method = [f"-{method}" if len(methods) > 1 else "" for method in methods]
    of_text = [f"-{k}" if len(texts) > 1 else "" for k in range(1, len(texts) + 1)]
    return ["".join(both) for both in itertools.product(of_method, of_text)]
