"""Notebook 00: one picture and one text, and an explorer: choose an image, type a text, choose method and
network; the map follows."""

import io
import warnings
from functools import cache

import ipywidgets as widgets
import matplotlib.pyplot as plt
from PIL import Image
from skimage import data as photos

from .. import plots
from ..datasets import examples
from ..explainers import REGISTRY, about, explainer, named, scored
from ..method import itsm
from ..networks import checkpoints, demo
from ..networks.clip import PROMPT

PHOTOS = {
    "astronaut": "a photo of the astronaut",
    "chelsea": "a photo of the cat",
    "coffee": "a photo of the cup",
    "rocket": "a photo of the rocket",
}


def pictures(run, count=3):
    """{name: PIL image}: a few of each dataset of the run, and scikit-image's photos where a network may know
    photographs."""
    found = {}
    for name in run.datasets:
        found |= {f"{name}, {e.image_id}": e.image for e in examples(run.load_dataset(name), count)}
    if set(run.networks) - set(demo.NETWORKS):
        found |= {name: photograph(name) for name in PHOTOS}
    return found


def typical(run, clip, name, percentiles=(25, 50, 75)):
    """What CLIP's map usually looks like: the (image, class) pairs at percentiles of the contrast of CLIP's
    map over a dataset of the run -> (shown: [(`Example`, class)], DataFrame of percentile, image, class and
    contrast in %)."""
    rows = run.evaluate(clip, name, {"clip": explainer("clip", clip)}).dropna(subset="score_contrast")
    rows = rows.sort_values("score_contrast", kind="stable")
    chosen = rows.iloc[[round(p / 100 * (len(rows) - 1)) for p in percentiles]]
    found = {e.image_id: e for e in run.load_dataset(name) if e.image_id in set(chosen["image_id"])}
    pairs = [
        (found[image], text) for image, text in zip(chosen["image_id"], chosen["class_name"], strict=True)
    ]
    said = chosen[["image_id", "class_name"]].assign(contrast=100 * chosen["score_contrast"])
    said.insert(0, "percentile", percentiles)
    return pairs, said.reset_index(drop=True)


def photo_networks(run):
    """Networks that know photographs: the run's own, else those of the paper whose weights are at hand ->
    [(network, pretrained tag)]."""
    own = [(network, run.pretrained) for network in run.networks if network not in demo.NETWORKS]
    files = {n: checkpoints.registered(n, "openai") for n in ("ViT-B-16", "ViT-B-32", "RN50")}
    here = [(n, "openai") for n, file in files.items() if file and (checkpoints.folder() / file).exists()]
    return (own or here)[:2]


def photograph(name):
    return Image.fromarray(getattr(photos, name)())


def explain_one(clip, image, text, method, projection=None):
    """One image and text -> (CLIP's cosine, map [H, W]). Raises ValueError for an empty text."""
    if not text.strip():
        raise ValueError("type a text")
    explain = explainer(method, clip, **({"projection": projection} if method == "eclip" else {}))
    cosines, cells = scored(clip, explain, [image], clip.encode_text([text]))
    return float(cosines), itsm(cells, image.size[::-1])[0, 0].cpu()


def draw(run, clip, image, text, method):
    """The image, and beside it the map of a text over it, as JPEG bytes. Raises ValueError where the method
    does not fit the network."""
    pair = run.load_pair(clip) if method == "eclip" else None
    cosine, heat = explain_one(clip, image, text, method, pair)
    figure = plots.sheet(
        [(image, [None, heat])],
        ["", f"{named(method)}: {plots.literally(text)} (cosine {cosine:.2f})"],
        size=3,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=90, bbox_inches="tight", pil_kwargs={"quality": 85})
    plt.close(figure)
    return buffer.getvalue()


def explorer(run, text=None):
    """The widget (`ipywidgets.VBox`): image, text, method and network, the map, and a line for what went
    wrong. Without a live kernel it shows nothing; `draw` gives the same picture."""
    images, load = pictures(run), cache(run.load_clip)
    text = text or PROMPT.format(run.load_dataset(run.datasets[0]).classes[0])
    image = widgets.Dropdown(options=list(images), description="image")
    words = widgets.Text(value=text, description="text", continuous_update=False)
    titles = [(about(name).title, name) for name in REGISTRY]
    method = widgets.Dropdown(options=titles, value="rclip", description="method")
    network = widgets.Dropdown(options=run.networks, description="network")
    shown, said = widgets.Image(format="jpeg"), widgets.Label()

    def follow(_=None):
        said.value = "…"
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                shown.value = draw(run, load(network.value), images[image.value], words.value, method.value)
            notes = [str(w.message) for w in caught if w.category is UserWarning]
            said.value = "; ".join([f"{network.value}, {method.value}: “{words.value}”", *notes])
        except (ValueError, FileNotFoundError) as error:
            said.value = str(error)

    for control in (image, words, method, network):
        control.observe(follow, "value")
    follow()
    return widgets.VBox([widgets.HBox([image, network]), widgets.HBox([words, method]), shown, said])
