"""Experiments that only a rendered world allows: the same objects, one thing changed at a time (notebook 04)."""

from dataclasses import replace

from .datasets import scenes
from .datasets.base import Dataset, Example

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
    """Scene `index` of the test split with `count` of its own and its neighbours' objects at fixed spots, on its own background."""
    layout = scenes.layout(scenes.SEEDS["test"], index, level)
    objects, at = [], index
    while len(objects) < count:
        for thing in scenes.layout(scenes.SEEDS["test"], at).objects:
            if thing.name not in [o.name for o in objects] and len(objects) < count:
                objects.append(thing)
        at += 1
    placed = [replace(o, x=float(x), y=float(y), radius=float(radius)) for o, (x, y) in zip(objects, SPOTS[count], strict=True)]
    scene = scenes.render(replace(layout, objects=tuple(placed)))
    return Example(f"{index:06d}", scene.image, scene.masks)


def conditions(count=100):
    """{experiment: {condition: dataset of `count` scenes}}, the same objects in every condition of an experiment.

    background: one object on its plain level's background, or on the cluttered one's (two patterns, distractors). size: its radius.
    objects: one or three of the same radius."""

    def made(objects, radius, level):
        return Listed([_scene(index, objects, radius, level) for index in range(count)])

    medium = RADII["medium"]
    return {
        "background": {"plain": made(1, medium, "plain"), "busy": made(1, medium, "cluttered")},
        "size": {name: made(1, radius, "plain") for name, radius in RADII.items()},
        "objects": {"one": made(1, 38, "plain"), "three": made(3, 38, "plain")},
    }
