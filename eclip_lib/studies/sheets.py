"""Notebook 06's sheets of maps: Figs. 1, 7, 8, 11, 12 and 13."""

import textwrap

from .. import plots
from ..datasets import examples
from ..explainers import map_of, named
from ..networks.clip import PROMPT
from .benchmarks import LATER, TABLE_2, explainers_of, has_pair, vits


def figure_1(run, name):
    """Fig. 1: ground truth, CLIP and ECLIP, one network and image a column. Returns the figure."""
    shown = examples(run.load_dataset(name), len(run.networks))
    images, titles, rows = [], [], {"ground truth": []}
    for k, network in enumerate(run.networks):
        clip, example = run.load_clip(network), shown[k % len(shown)]
        images.append(example.image)
        titles.append(f"{clip.title}\n{example.largest}")
        rows["ground truth"].append(example.masks[example.largest])
        for method, explain in explainers_of(run, clip, ["clip", "eclip"]).items():
            heat = map_of(clip, explain, example.image, PROMPT.format(example.largest))
            rows.setdefault(named(method), []).append(plots.judged(example, example.largest, heat))
    figure = plots.sheet([(images, panels) for panels in rows.values()], titles, list(rows), size=1.7)
    figure.suptitle(f"{name}; {run.weights}", fontsize=8)
    return figure


def later(dataset, count, start):
    """`count` examples from `start` on, not Fig. 1's; earlier where there are few."""
    return examples(dataset, count, start=max(0, min(start, len(dataset) - count)))


def figure_7(run, count=6):
    """Fig. 7: ECLIP (RCLIP where nothing is trained) of the finest ViT (else the last network), images of
    every dataset, ground truth beside the map."""
    clip = run.load_clip((vits(run) or run.networks)[-1])
    (method, explain), rows, titles = list(explainers_of(run, clip, ["rclip", "eclip"]).items())[-1], [], []
    shown = [later(run.load_dataset(name), count // 2, start=20) for name in run.datasets]
    for part in shown:
        images, panels, above = [], [], []
        for example in part[: min(map(len, shown))]:
            name = example.largest
            images += [example.image] * 2
            heat = map_of(clip, explain, example.image, PROMPT.format(name))
            panels += [example.masks[name], plots.judged(example, name, heat)]
            above += [f"ground truth: {name}", f"{named(method)}: {name}"]
        rows.append((images, panels)), titles.append([textwrap.fill(words, 14) for words in above])
    figure = plots.sheet(rows, titles, run.datasets, size=1.3)
    figure.suptitle(f"{named(method)} of {clip.title}; {run.weights}", fontsize=8)
    return figure


def methods_sheet(run, network):
    """Figs. 8, 12 and 13: one object a row, one method a column, on the last dataset. Returns the figure."""
    clip = run.load_clip(network)
    found = explainers_of(run, clip, TABLE_2 + LATER[:5])
    shown = {named(method): (clip, explain) for method, explain in found.items()}
    return plots.map_sheet(later(run.load_dataset(run.datasets[-1]), 4, start=5), shown, size=1.1)


def figure_11(run, count=2):
    """Fig. 11: Bi-Model and ECLIP on the coarse and the fine ViT, for both classes of images that hold two,
    on the last dataset. Returns the figure, or None where the run has no two ViTs or no such image."""
    dataset, shown, networks = run.load_dataset(run.datasets[-1]), {}, vits(run)
    found = [example for example in examples(dataset, min(len(dataset), 40)) if len(example.masks) > 1]
    found = found[:count]
    if len(networks) < 2 or not found:
        return None
    for method in ("bi_model", "eclip") if has_pair(run) else ("bi_model",):
        for network in networks:
            clip = run.load_clip(network)
            height, width = clip.model.visual.grid_size
            title = f"{named(method)},\n{height}×{width}"
            shown[title] = clip, explainers_of(run, clip, [method])[method]
    pairs = [(example, name) for example in found for name in list(example.masks)[:2]]
    figure = plots.map_sheet(pairs, shown, size=1.3)
    titles = " and ".join(map(run.title, networks))
    figure.suptitle(f"{titles} on {run.datasets[-1]}, by their grids; {run.weights}", fontsize=8)
    return figure
