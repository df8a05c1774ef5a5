"""`eclip explain`: maps of your own pictures for your own texts."""

import itertools
import os
import warnings
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import ExifTags, Image
from tqdm.auto import tqdm

from .. import files, plots
from ..datasets import scenes
from ..datasets.base import read_image
from ..datasets.tars import PICTURES
from ..explainers import explainer, scored
from ..method import itsm
from ..networks import demo
from ..networks.checkpoints import files_of
from ..networks.loading import load_clip
from ..projection import Projection
from . import outputs

DEFAULT = Path("heat.png")  # the overlay that nobody named
MARK = "eclip explain"  # what overlays are known by
WRITABLE = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")


def pictures(photo):
    """A file, a folder or a glob -> sorted list of image files. Warns of files in it that are none; raises
    FileNotFoundError."""
    path = files.place(photo)
    if path.is_file():
        return [path]
    found = path.iterdir() if path.is_dir() else itertools.chain(*files.matching(photo).values())
    found = sorted(p for p in found if not p.is_dir() and not p.name.startswith("."))
    good = [p for p in found if p.suffix.lower().lstrip(".") in PICTURES and p.is_file()]
    others = [p.name for p in found if p not in good]
    if others:
        warnings.warn(
            f"left out, no pictures by their names or what they lead to: {len(others)} files "
            f"({files.few(others)})",
            stacklevel=2,
        )
    if not good:
        raise FileNotFoundError(
            f"no picture at {photo} (a file, a folder or a glob of {', '.join(PICTURES)})"
        )
    return good


def targets(paths, out):
    """Where each picture's overlay goes -> ({picture: target}, whether the user named it). `out`: a file, or
    a folder for several."""
    out = files.place(out)
    if not out.is_dir() and out.suffix.lower().lstrip(".") in (*PICTURES, "json", "npz"):
        out = outputs.named(out, *WRITABLE)
    is_file = out.suffix.lower() in WRITABLE and not out.is_dir()
    if is_file and len(paths) == 1 and out != DEFAULT:
        return {paths[0]: out}, True
    stem, folder, suffix = (f"{out.stem}-", out.parent, out.suffix) if is_file else ("", out, ".png")
    names = [folder / f"{stem}{word}{suffix}" for word in _words(paths)]
    names = [out] if is_file and len(paths) == 1 else names
    return dict(zip(paths, names, strict=True)), False


def _words(paths):
    """A word for each picture: its stem; where two share one, all that tells the paths apart, and where that
    does not, a number."""
    base = os.path.commonpath([path.absolute().parent for path in paths])
    whole = ["-".join(path.absolute().relative_to(base).parts).replace(".", "-") for path in paths]
    numbered = [f"{number}-{word}" for number, word in enumerate(whole, 1)]
    kinds = ([path.stem for path in paths], whole, numbered)
    return next(words for words in kinds if len({word.casefold() for word in words}) == len(paths))


def open_method(network, method, pretrained="default", projection=None, device="cpu", size=None):
    """-> (`Clip`, explainer). `projection`: a trained pair, for "eclip"; a demo network has its own. Raises
    ValueError where method and projection do not fit each other or the network."""
    if method == "eclip" and projection is None and network in demo.NETWORKS and pretrained == "default":
        projection = files.REPOSITORY / "results" / "demo" / "pairs" / f"{network}-ECLIP.safetensors"
    if (method == "eclip") != (projection is not None):
        raise ValueError("method eclip needs --projection, a trained pair; no other method takes one")
    clip = load_clip(network, pretrained, device, size)
    options = {"projection": Projection.find(projection, clip)} if projection else {}
    return clip, explainer(method, clip, **options)


def explain(paths, texts, clip, explain_method, batch_size=16):
    """Yields (path, image, scores [T], maps [T, H, W]) for every picture, or (path, the error) for one that
    cannot be read.

    scores: CLIP's own cosines (Eq. 3), the same for every method; maps: Eq. 5, at the picture's own size."""
    text = clip.encode_text(texts)
    with tqdm(total=len(paths), desc="explaining", unit="picture", disable=len(paths) == 1 or None) as bar:
        for start in range(0, len(paths), batch_size):
            batch = []
            for path in paths[start : start + batch_size]:
                try:
                    batch.append((path, read_image(path)))
                except (ValueError, OSError) as error:
                    yield path, error
            if batch:
                scores, cells = scored(clip, explain_method, [image for _, image in batch], text)
                for k, (path, image) in enumerate(batch):
                    yield path, image, scores[k], itsm(cells[k : k + 1], image.size[::-1])[0].cpu()
            bar.update(min(batch_size, len(paths) - start))


def limits(network):
    """One sentence for a demo network on what it can and cannot know; None for the others."""
    if network not in demo.NETWORKS:
        return None
    return (
        f"{network} is a mini model of this repository's rendered scenes: it knows "
        f"{', '.join(scenes.CLASSES)} there, mostly by "
        "their colours, and nothing of photographs; --network ViT-B-16 loads OpenAI's CLIP"
    )


def _require_texts(texts):
    if not texts or any(not text.strip() for text in texts):
        raise ValueError("give at least one text, and none that is empty")
    for number, text in enumerate(texts, 1):
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # bytes that the terminal could not read
            raise ValueError(f"text {number} is not UTF-8: {ascii(text)[:80]}")
        if os.path.splitext(text)[1] and os.path.isfile(text):
            raise ValueError(f"{text} is a file, not a text; quote a glob of pictures, or give their folder")


def run(photo, texts, out, json=None, npz=None, **options):
    """What the command does: one overlay sheet a picture, scores as JSON, maps as npz -> the overlays' paths.

    A picture that cannot be read does not cost the others: it is named in a ValueError at the end, when all
    else is written."""
    _require_texts(texts)
    paths = pictures(photo)
    places, typed = targets(paths, out)
    json, npz = json and outputs.named(json, ".json"), npz and outputs.named(npz, ".npz")
    weights = files_of(options.get("pretrained"), options.get("projection"))
    sheets = dict.fromkeys(places.values(), MARK)
    wanted = [*(sheets if typed else ()), *filter(None, (json, npz))]
    outputs.require_free(wanted, [*paths, *weights], {} if typed else sheets)
    clip, method = open_method(**options)
    made, scores, arrays, broken = [], {}, {}, []
    for path, image, *found in explain(paths, texts, clip, method):
        if not found:
            broken.append(image)
            continue
        cosines, heat = found
        titles = ["picture", *(f"{plots.literally(t)}\n{c:.3f}" for t, c in zip(texts, cosines, strict=True))]
        figure = plots.sheet([(image, [None, *heat])], titles, size=3)
        with files.replacing(places[path]) as partial:
            kind = places[path].suffix.lstrip(".").lower()
            figure.savefig(partial, dpi=110, bbox_inches="tight", format=kind, **_marked(kind))
        plt.close(figure)
        made.append(places[path])
        scores[str(path)] = {
            text: round(float(cosine), 6) for text, cosine in zip(texts, cosines, strict=True)
        }
        name = os.fsencode(path).decode("utf-8", "replace")
        arrays["./texts" if name == "texts" else name] = heat.numpy().astype(np.float16)
    if json:
        files.write(json, files.as_json(scores))
    if npz:
        write_npz(npz, {**arrays, "texts": np.array(texts)})
    if broken:
        rest = f" (and {len(broken) - 1} more of {len(paths)})" if len(broken) > 1 else ""
        raise ValueError(f"{broken[0]}{rest}")
    return made


def _marked(kind):
    """Options of a figure's `savefig` by which it bears the mark of overlays."""
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = MARK
    return {"metadata": {"Creator": MARK}} if kind in ("pdf", "svg") else {"pil_kwargs": {"exif": exif}}


def write_npz(path, arrays):
    """np.savez_compressed, which takes no array called "file"."""
    with files.replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array)
