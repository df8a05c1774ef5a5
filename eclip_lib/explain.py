"""`eclip explain`: maps of your own pictures for your own texts."""

import glob
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm.auto import tqdm

from . import demo, plots
from .clip import Projection, load_clip, stacked
from .datasets import scenes
from .datasets.base import read_image
from .explainers import explainer
from .itsm import itsm, score
from .profiles import REPOSITORY

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def pictures(photo):
    """A file, a folder or a glob -> sorted list of image files. Raises FileNotFoundError."""
    path = Path(photo)
    found = [path] if path.is_file() else path.iterdir() if path.is_dir() else map(Path, glob.glob(str(photo), recursive=True))
    found = sorted(p for p in found if p == path or p.suffix.lower() in SUFFIXES)
    if not found:
        raise FileNotFoundError(f"no picture at {photo} (a file, a folder or a glob of {', '.join(SUFFIXES)})")
    return found


def scored(clip, method, images, text):
    """Prepared images [B, 3, H, W] and F_t [T, Ct] -> (CLIP's cosines [B, T], maps before Eq. 5 [B, T, h, w]), in one forward pass where the
    method needs nothing but CLIP's features."""
    with torch.no_grad():
        features = clip.encode_image(images)
        cosines = score(features.class_token, text, clip.projection).cpu()
        if hasattr(method, "of_features"):
            return cosines, method.of_features(features, text)
    return cosines, method(images, text).detach()


def explain(
    photo,
    texts,
    network="scenes-ViT-32",
    method="rclip",
    pretrained="default",
    projection=None,
    device="cpu",
    batch_size=16,
    size=None,
):
    """Yields (path, image, scores [T], maps [T, H, W]) for every picture of a file, folder or glob.

    scores: CLIP's own cosines (Eq. 3), the same for every method; maps: Eq. 5, at the picture's own size. `size`: (H, W) of the
    network's input, see `load_clip`. `projection`: a trained pair, for "eclip"; a demo network has its own. Raises ValueError where method and
    projection do not fit each other or the network."""
    if not texts or any(not text.strip() for text in texts):
        raise ValueError("give at least one text, and none that is empty")
    if method == "eclip" and projection is None and network in demo.NETWORKS and pretrained == "default":
        projection = REPOSITORY / "results" / "demo" / "pairs" / f"{network}-ECLIP.safetensors"
    if (method == "eclip") != (projection is not None):
        raise ValueError("method eclip needs --projection, a trained pair; no other method takes one")
    files, clip = pictures(photo), load_clip(network, pretrained, device, size)
    options = {"projection": Projection.load(projection, clip)} if projection else {}
    method, text = explainer(method, clip, **options), clip.encode_text(texts)
    bar = tqdm(total=len(files), desc="explaining", unit="picture", disable=len(files) == 1 or None)
    for start in range(0, len(files), batch_size):
        batch = [(path, read_image(path, upright=True)) for path in files[start : start + batch_size]]
        images = stacked([clip.preprocess(image) for _, image in batch], clip.device)
        scores, cells = scored(clip, method, images, text)
        for k, (path, image) in enumerate(batch):
            yield path, image, scores[k], itsm(cells[k : k + 1], image.size[::-1])[0].cpu()
            bar.update()
    bar.close()


def limits(network):
    """One sentence for a demo network on what it can and cannot know; None for the others."""
    if network in demo.NETWORKS:
        return (
            f"{network} is a mini model of this repository's rendered scenes: it knows {', '.join(scenes.CLASSES)} there, mostly by "
            "their colours, and nothing of photographs; --network ViT-B-16 loads OpenAI's CLIP"
        )


def write(results, texts, out, json_path=None, npz_path=None):
    """Save what `explain` yields: one overlay sheet a picture (`out`: a file, or a folder for several), scores as JSON, maps as npz.
    Returns the overlays' paths."""
    paths, scores, arrays = [], {}, {}
    for path, image, cosines, maps in results:
        target = Path(out) if Path(out).suffix else Path(out, f"{path.stem}.png")
        target = target.with_name(f"{target.stem}-{path.stem}{target.suffix}") if target in paths else target
        target.parent.mkdir(parents=True, exist_ok=True)
        titles = ["picture", *(f"{text}\n{cosine:.3f}" for text, cosine in zip(texts, cosines, strict=True))]
        figure = plots.sheet([(image, [None, *maps])], titles, size=3)
        figure.savefig(target, dpi=110, bbox_inches="tight")
        plt.close(figure)
        paths.append(target)
        scores[str(path)] = {text: round(float(cosine), 6) for text, cosine in zip(texts, cosines, strict=True)}
        if npz_path:
            arrays[str(path)] = maps.numpy().astype(np.float16)
    if json_path:
        Path(json_path).write_text(json.dumps(scores, indent=1) + "\n")
    if npz_path:
        np.savez_compressed(npz_path, texts=np.array(texts), **arrays)
    return paths
