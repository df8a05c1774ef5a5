"""Tests of the world: the same everywhere, exact masks, classes told by shape alone, sizes of every kind."""

import hashlib
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import world
from scipy.stats import chi2_contingency
from shapes import CLASSES, FILLS, OUTLINES

LAYOUTS = 3000


def _table(pairs):
    """Contingency table of pairs of words."""
    rows, columns = (sorted(set(words)) for words in zip(*pairs, strict=True))
    table = np.zeros((len(rows), len(columns)))
    for a, b in pairs:
        table[rows.index(a), columns.index(b)] += 1
    return table


def test_the_same_scenes_everywhere():
    digest = hashlib.sha256()
    for level, colours, index in product(world.LEVELS, world.COLOURINGS, range(8)):
        scene = world.sample(world.SEEDS["test"], index, level, colours)
        digest.update(scene.pixels.tobytes() + scene.labels.tobytes())
        digest.update(world.caption(scene, world.SEEDS["test"], index).encode())
    assert digest.hexdigest() == "71cbf4889881697e3a90ba602de18d8050a86e160a7b06e08df56f2feeb9162c"


@pytest.mark.parametrize("level", world.LEVELS)
def test_masks_are_the_pixels_that_an_object_covers(level):
    for index in range(10):
        layout = world.layout(5, index, level)
        black, white = (np.full((2, 3), shade, np.float32) for shade in (0, 255))
        dark, light = (
            world.render(replace(layout, objects=tuple(replace(o, colours=shade) for o in layout.objects)))
            for shade in (black, white)
        )
        change = light.pixels[..., 0].astype(int) - dark.pixels[..., 0]
        assert len(layout.objects) == len(dark.objects) and (dark.labels == light.labels).all()
        assert change[dark.labels > 0].min() > 255 / 2 - 17  # the noise is at most 8 either way
        assert change[dark.labels == 0].max() < 255 / 2 + 17


def test_a_mask_is_one_per_class_and_large_enough_to_see():
    for index in range(200):
        scene = world.sample(5, index, "cluttered")
        assert scene.masks.keys() == {o.name for o in scene.objects} != set()
        assert min(mask.sum() for mask in scene.masks.values()) >= world.SMALLEST
        assert set(np.unique(scene.labels)) == {0} | {1 + CLASSES.index(name) for name in scene.masks}


@pytest.mark.parametrize("attribute", ["fill", "colour"])
def test_a_class_has_any_fill_and_any_colour(attribute):
    objects = [o for index in range(LAYOUTS) for o in world.layout(6, index).objects]
    table = _table([(o.name, getattr(o, attribute)) for o in objects])
    assert table.shape == (len(CLASSES), len(FILLS if attribute == "fill" else world.COLOURS))
    assert chi2_contingency(table).pvalue > 0.001


@pytest.mark.parametrize("cooccurrence, share", [(0.7, 0.7 + 0.3 / 8), (0.4, 0.4 + 0.6 / 8), (0, 1 / 8)])
def test_classes_have_favourite_backgrounds(cooccurrence, share):
    layouts = [world.layout(7, index, cooccurrence=cooccurrence) for index in range(LAYOUTS)]
    favoured = np.mean([s.background.pattern == world.FAVOURITES[s.objects[0].name] for s in layouts])
    assert favoured == pytest.approx(share, abs=0.03)


def test_nothing_but_the_pattern_depends_on_the_cooccurrence():
    for index in range(50):
        a, b = (world.layout(7, index, "cluttered", cooccurrence=rho) for rho in (0.0, 1.0))
        as_b = replace(a, background=replace(a.background, pattern=b.background.pattern))
        assert (world.render(as_b).pixels == world.render(b).pixels).all()
        assert b.background.pattern == world.FAVOURITES[b.objects[0].name]


def test_gray_objects_have_no_hue():
    for index in range(50):
        for o in world.layout(8, index, colours="gray").objects:
            assert (o.colours == o.colours[:, :1]).all() and o.colour in world.COLOURINGS["gray"]


@pytest.mark.parametrize("level", ["plain", "cluttered"])
def test_sizes_of_every_kind(level):
    shares = np.array([(world.sample(world.SEEDS["test"], i, level).labels > 0).mean() for i in range(400)])
    assert 0.18 < (shares > 0.5).mean() < 0.3
    counts, _ = np.histogram(shares, [0, 0.25, 0.75, 1])
    assert counts.min() >= 45


def test_captions_name_what_is_there():
    colourful = backgrounds = 0
    for index in range(1000):
        scene = world.sample(9, index)
        words = world.caption(scene, 9, index, background=0.5).split()
        named = [w for w in words if w in OUTLINES]
        assert named and set(named) <= set(scene.masks)
        assert len(words) <= 30  # the text tower reads 32 tokens, two of which are start and end
        colourful += any(w in world.COLOURS for w in words)
        backgrounds += words[-1] == "background"
        if words[-1] == "background":
            assert words[-2] == scene.background.pattern
    assert 0.16 < colourful / 1000 < 0.24 and 0.45 < backgrounds / 1000 < 0.55
