"""`eclip explain`: maps of your own pictures for your own texts."""

import io
import itertools
import os
import warnings
import zipfile
from json import dumps, loads
from unicodedata import category

import matplotlib.pyplot as plt
import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from tqdm.auto import tqdm

from .. import files, plots, viewer
from ..datasets.base import read_image
from ..explainers import require
from ..networks import demo
from ..networks.checkpoints import files_of
from ..networks.loading import load_clip
from . import outputs
from .pictures import PIXELS, WRITABLE, parts, pictures, targets

MARK, NOTE = outputs.OVERLAY, "eclip"  # what a PNG says of itself: that it is an overlay, and what made it
MAPPED_BY = ("datasets/base.py", "method.py", "projection.py", "networks", "explainers")
DRAWN_BY = (*MAPPED_BY, "plots.py", "viewer.py", "commands/explain.py")


def write_npz(path, arrays):
    """np.savez_compressed, which takes no array called "file"."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array)
    files.write(path, whole.getvalue())


# ---------------------------------------------------------------------- overlays


def _note_of(path):
    """What a PNG overlay says of what made it; {} of any other file, or of one that is cut off."""
    try:
        with Image.open(path) as image:
            image.load()
            return loads(image.info[NOTE])
    except Exception:
        return {}


def _marked(kind, about):
    """Options of matplotlib's `savefig` by which an overlay is known again, a PNG by all that it is
    `about`."""
    if kind in ("pdf", "svg"):
        return {"metadata": {"Creator": MARK}}
    exif, note = Image.Exif(), PngInfo()
    exif[ExifTags.Base.Software] = MARK
    for name, said in about.items():
        note.add_text(name, said)
    return {"pil_kwargs": {"exif": exif, "pnginfo": note}}


def _draw(view, places, about, bare, colormap, alpha):
    """Write a picture's overlays: one sheet, or with `bare` one of the picture's own size for each method and
    text."""
    about = {"Software": MARK, NOTE: dumps(about)}
    for place, heat in zip(places, itertools.chain(*view.maps.values()) if bare else [None], strict=True):
        kind = place.suffix.lstrip(".").lower().replace("jpg", "jpeg")
        marked, drawn = _marked(kind, about), io.BytesIO()  # Pillow takes a full disk for a written file
        try:
            if bare:
                blended = plots.blended(view.image, heat, colormap, alpha)
                blended.save(drawn, kind, quality=95, **marked["pil_kwargs"])
            else:
                view.save(drawn, kind, colormap, alpha, **marked)
        except (ValueError, OSError) as error:  # a WebP's sides end at 16383 pixels, a JPEG's at 65500
            raise ValueError(f"{place} cannot be drawn ({error}); name a .png") from error
        files.write(place, drawn.getvalue())


def require_texts(texts):
    """Raise ValueError where there is none, or one that is empty, no plain text or a file."""
    if not texts or any(not text.strip() for text in texts):
        raise ValueError("give at least one text, and none that is empty")
    for number, text in enumerate(texts, 1):
        # control characters, and bytes that the terminal could not read
        if any(category(letter) in ("Cc", "Cs") and letter not in "\t\n\r" for letter in text):
            raise ValueError(f"text {number} is not plain UTF-8: {ascii(text)[:80]}; write it again")
        if os.path.splitext(text)[1] and os.path.isfile(text):
            raise ValueError(f"{text} is a file, not a text; quote a glob of pictures, or give their folder")


def _require_look(alpha, colormap, batch_size):
    if not 0 <= alpha <= 1:
        raise ValueError(f"--alpha is 0 (the picture alone) to 1 (the map alone), not {alpha}")
    files.require_known(colormap, plt.colormaps(), "no colormap", " (matplotlib's, like coolwarm, cividis)")
    if batch_size < 1:
        raise ValueError(f"--batch-size is at least 1 picture, not {batch_size}")


def open_methods(network, methods, pretrained="default", projection=None, **options):
    """-> (`Clip`, {method: explainer}). `projection`: a trained pair, for "eclip"; a demo network has its
    own. options: of `load_clip`. Raises ValueError where a method and the pair do not fit each other or the
    network."""
    own = network in demo.NETWORKS and pretrained == "default"
    if ("eclip" in methods) < bool(projection) or ("eclip" in methods and not (own or projection)):
        raise ValueError("method eclip needs --projection, a trained pair; no other method takes one")
    for method in methods:
        require(method)
    clip = load_clip(network, pretrained, **options)
    pair = viewer.pair_of(clip, projection) if "eclip" in methods else None
    if clip.pretrained == "random":
        warnings.warn("random weights: a map of theirs tests the program and means nothing", stacklevel=2)
    explainers, refused = viewer.fitting(clip, methods, pair)
    if refused:
        raise ValueError("; ".join(refused.values()))
    return clip, explainers


def explain(paths, texts, clip, explainers, batch_size=16):
    """Yields (path, `View`) of every picture, or (path, the error) of one that cannot be read."""
    with tqdm(total=len(paths), desc="explaining", unit="picture", disable=len(paths) < 2 or None) as bar:
        for start in range(0, len(paths), batch_size):
            batch = []
            for path in paths[start : start + batch_size]:
                try:
                    batch.append((path, read_image(path)))
                except (ValueError, OSError) as error:
                    yield path, error
            if batch:
                paths_of, images = zip(*batch, strict=True)
                yield from zip(paths_of, viewer.views(clip, explainers, images, texts), strict=True)
            bar.update(min(batch_size, len(paths) - start))


def run(
    photo,
    texts,
    out,
    json=None,
    npz=None,
    method="rclip",
    bare=False,
    alpha=plots.ALPHA,
    colormap=plots.CMAP,
    batch_size=16,
    **options,
):
    """What the command does: overlays of every picture, scores as JSON, maps as npz -> the overlays' paths.

    method: one or several, separated by commas. A PNG that the same picture, texts, weights, methods and look
    made is not made again (with `npz` its maps are). A picture that cannot be read or drawn does not cost the
    others: it is named in a ValueError at the end, when all else is written."""
    require_texts(texts)
    _require_look(alpha, colormap, batch_size)
    paths, methods = pictures(photo), files.names(method, "--method")
    kinds, ends = (PIXELS, parts(methods, texts)) if bare else (WRITABLE, ("",))
    places = targets(paths, out, kinds, ends)
    json, npz = json and outputs.named(json, ".json"), npz and outputs.named(npz, ".npz")
    weights = files_of(options.get("pretrained"), options.get("projection"))
    wanted = [(place, MARK) for place in itertools.chain(*places.values())]
    wanted += [(json, outputs.SCORES)] * bool(json) + [(npz, outputs.MAPS)] * bool(npz)
    outputs.require_free(wanted, [*paths, *weights])
    if said := viewer.limits(options["network"]):
        warnings.warn(said, stacklevel=2)
    clip, explainers = open_methods(methods=methods, **options)
    identities = [getattr(explainer, "identity", None) for explainer in explainers.values()]
    settings = [texts, clip.identity, identities, bare, alpha, colormap, files.code_digest(*DRAWN_BY)]
    made, scores, arrays, broken = {}, {}, {}, {}
    keys = {path: files.digest([files.digest(path), settings]) for path in paths if os.access(path, os.R_OK)}
    for path, key in keys.items() if all(identities) else ():
        notes = [_note_of(place) for place in places[path]]
        if all(note.get("key") == key for note in notes):
            made[path], scores[path] = places[path], notes[0]["cosines"]
    if made:
        said = f"{len(made)} of {len(paths)} pictures have their overlays already, of the same settings"
        warnings.warn(said, stacklevel=2)
    todo = [path for path in paths if npz or path not in made]
    for path, view in explain(todo, texts, clip, explainers, batch_size):
        if isinstance(view, Exception):
            broken[path] = view
            continue
        scores[path] = [round(float(cosine), 6) for cosine in view.cosines]
        if npz:
            arrays |= view.arrays(os.fsencode(path).decode("utf-8", "backslashreplace"))
        if path not in made:
            about = {"key": keys[path], "cosines": scores[path]}
            try:
                _draw(view, places[path], about, bare, colormap, alpha)
                made[path] = places[path]
            except ValueError as error:
                broken[path] = error
    if json and scores:
        every = {str(path): dict(zip(texts, scores[path], strict=True)) for path in paths if path in scores}
        files.write(json, files.as_json(every))
    if arrays:
        write_npz(npz, {**arrays, "texts": np.array(texts)})
    if broken:
        first, *others = broken.values()
        names = files.few([path.name for path in broken][1:])
        raise ValueError(f"{first}" + (f"; nor can {names}, of {len(paths)} pictures" if others else ""))
    return [place for path in paths if path in made for place in made[path]]
