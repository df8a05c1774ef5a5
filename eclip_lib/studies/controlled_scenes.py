"""Notebook 04, what only a rendered world allows: the same objects, one thing changed at a time."""

from dataclasses import replace
from functools import cache, partial

import pandas as pd

from ..datasets import Dataset, Example, scenes
from ..evaluation import mean_interval, spread
from ..networks import demo
from .semantic_shift import shift_rows, shifted_share

SPOTS = {1: [(112, 112)], 3: [(62, 66), (162, 76), (106, 164)]}  # centres in pixels
RADII = {"small": 30, "medium": 50, "large": 80}


class Listed(Dataset):
    """Examples in memory as a dataset."""

    name, classes = "controlled", scenes.CLASSES

    def __init__(self, items):
        self.items = items

    def example(self, item):
        return item


def _scene(index, count, radius, level):
    """Scene `index` of the test split with `count` of its own and its neighbours' objects at fixed spots, on
    its own background."""
    layout = scenes.layout(scenes.SEEDS["test"], index, level)
    objects, at = [], index
    while len(objects) < count:
        for thing in scenes.layout(scenes.SEEDS["test"], at).objects:
            if thing.name not in [o.name for o in objects] and len(objects) < count:
                objects.append(thing)
        at += 1
    spots = zip(objects, SPOTS[count], strict=True)
    placed = [replace(thing, x=float(x), y=float(y), radius=float(radius)) for thing, (x, y) in spots]
    scene = scenes.render(replace(layout, objects=tuple(placed)))
    return Example(f"{index:06d}", scene.image, scene.masks)


@cache
def conditions(count=100):
    """{experiment: {condition: dataset of `count` scenes}}, the same objects in every condition of an
    experiment.

    background: one object on its plain level's background, or on the cluttered one's (two patterns,
    distractors). size: its radius. objects: one or three of the same radius."""

    def made(objects, radius, level="plain"):
        return Listed([_scene(index, objects, radius, level) for index in range(count)])

    medium = RADII["medium"]
    return {
        "background": {"plain": made(1, medium), "busy": made(1, medium, "cluttered")},
        "size": {name: made(1, radius) for name, radius in RADII.items()},
        "objects": {"one": made(1, 38), "three": made(3, 38)},
    }


def controlled_table(run, count=100):
    """Shifted channels (%) and mSC (%) in every one of the `conditions`, with 95 % intervals over scenes, for
    the run's demo networks: rendered scenes say nothing about a network of photographs."""
    parts = []
    for network in filter(demo.NETWORKS.__contains__, run.networks):
        clip = run.load_clip(network)
        measure = partial(_controlled, clip, count, run.batch_size)
        parts.append(run.once("controlled", [clip, count], measure).assign(network=clip.title))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _controlled(clip, count, batch_size):
    lines = []
    for experiment, datasets in conditions(count).items():
        for condition, dataset in datasets.items():
            rows = shift_rows(dataset, clip, batch_size=batch_size, ablate=False)
            line = {"experiment": experiment, "condition": condition, "network": clip.title}
            for value, column in (("shifted", shifted_share(rows)), ("mSC", 100 * rows["mSC"])):
                line |= spread(value, mean_interval(column))
            lines.append(line)
    return pd.DataFrame(lines)
