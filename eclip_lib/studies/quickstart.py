"""Notebook 00: one picture and one text, and an explorer: choose an image, type a text, choose method and
network; the map follows."""

import io
from functools import cache

import ipywidgets as widgets

from .. import viewer
from ..explainers import REGISTRY, about, explainer, named
from ..networks import checkpoints, demo
from ..networks.clip import PROMPT

PHOTOS = {name: PROMPT.format(names[0]) for name, names in viewer.PHOTOS.items()}


def pictures(run, count=3):
    """{what it is: (PIL image, texts that are in it)}: a few of each dataset of the run, and scikit-image's
    photos where a network may know photographs."""
    found = {}
    for name in run.datasets:
        found |= viewer.several(run.load_dataset(name), count)
    return found | (viewer.photographs() if set(run.networks) - set(demo.NETWORKS) else {})


def typical(run, clip, name, percentiles=(25, 50, 75)):
    """What CLIP's map usually looks like: the (image, class) pairs at percentiles of the contrast of CLIP's
    map over a dataset of the run -> (shown: [(`Example`, class)], DataFrame of percentile, image, class and
    contrast in %)."""
    rows = run.evaluate(clip, name, {"clip": explainer("clip", clip)}).dropna(subset="score_contrast")
    rows = rows.sort_values("score_contrast", kind="stable")
    chosen = rows.iloc[[round(p / 100 * (len(rows) - 1)) for p in percentiles]]
    found = {e.image_id: e for e in run.load_dataset(name) if e.image_id in set(chosen["image_id"])}
    pairs = [(found[row["image_id"]], row["class_name"]) for _, row in chosen.iterrows()]
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
    return viewer.photographs()[name][0]


def explain_one(clip, image, text, method):
    """One image and text -> (CLIP's cosine, map [H, W]). Raises ValueError for an empty text."""
    view = _view(clip, image, text, method)
    return float(view.cosines), view.maps[method][0]


def _view(clip, image, text, method, pair=None):
    if not text.strip():
        raise ValueError("type a text")
    made, refused = viewer.fitting(clip, [method], pair)
    if refused:
        raise ValueError(refused[method])
    return viewer.views(clip, made, [image], [text])[0]


def draw(run, clip, image, text, method):
    """The image, and beside it the map of a text over it, as JPEG bytes. Raises ValueError where the method
    does not fit the network."""
    pair, buffer = run.load_pair(clip) if method == "eclip" else None, io.BytesIO()
    _view(clip, image, text, method, pair).save(buffer, "jpeg", dpi=90, pil_kwargs={"quality": 85})
    return buffer.getvalue()


def explorer(run):
    """The widget (`ipywidgets.VBox`): image, text, method and network, the map, and a line for what went
    wrong. It opens on a text that is in the first image. Without a live kernel it shows nothing; `draw` gives
    the same picture."""
    images, load = pictures(run), cache(run.load_clip)
    first, (_, texts) = next(iter(images.items()))
    image = widgets.Dropdown(options=list(images), value=first, description="image")
    words = widgets.Text(value=texts[0], description="text", continuous_update=False)
    titles = [(about(name).title, name) for name in REGISTRY]
    method = widgets.Dropdown(options=titles, value="rclip", description="method")
    networks = [(run.title(name), name) for name in run.networks]
    network = widgets.Dropdown(options=networks, description="network")
    shown, said = widgets.Image(format="jpeg"), widgets.Label()

    def follow(_=None):
        shown.value, said.value = b"", "…"  # no map of what was asked before
        try:
            with viewer.noted() as notes:
                picture = images[image.value][0]
                shown.value = draw(run, load(network.value), picture, words.value, method.value)
            asked = f"{run.title(network.value)}, {named(method.value)}: “{words.value}”"
            said.value = "; ".join([asked, *notes])
        except (ValueError, FileNotFoundError) as error:
            said.value = str(error)

    for control in (image, words, method, network):
        control.observe(follow, "value")
    follow()
    return widgets.VBox([widgets.HBox([image, network]), widgets.HBox([words, method]), shown, said])
