"""The demo world: deterministic, exact masks, honest captions."""

import hashlib
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import eclip_lib as eclip
from eclip_lib.datasets import scenes
from eclip_lib.networks import demo


def digest(level, colours):
    sample = [scenes.sample(7, i, level, colours) for i in range(3)]
    return hashlib.sha256(b"".join(s.image.tobytes() + s.labels.tobytes() for s in sample)).hexdigest()[:16]


def test_scenes_are_the_same_on_every_machine():  # digests of x86-64, NumPy 2.4, Pillow 13
    kinds = product(scenes.LEVELS, scenes.COLOURINGS)
    assert {f"{level}, {colours}": digest(level, colours) for level, colours in kinds} == DIGESTS


def test_splits_are_disjoint_and_any_order_gives_the_same_scene():
    sets = {split: eclip.load_dataset("scenes", split=split, limit=5) for split in scenes.SEEDS}
    seen = {name: {e.image.tobytes() for e in part} for name, part in sets.items()}
    assert len(set.union(*seen.values())) == sum(map(len, seen.values())) == 15
    third = [sets["test"][3], sets["test"][3], [*sets["test"]][3]]
    assert len({example.image.tobytes() for example in third}) == 1


def test_masks_are_disjoint_named_and_large_enough():
    for name in ("scenes", "scenes-cluttered"):
        for example in eclip.load_dataset(name, limit=40):
            total = sum(mask.astype(int) for mask in example.masks.values())
            assert total.max() == 1 and example.masks and set(example.masks) <= set(scenes.CLASSES)
            masks = np.stack([*example.masks.values()])
            assert masks.shape[1:] == (224, 224) and (masks.sum((1, 2)) >= scenes.SMALLEST).all()


def test_a_mask_is_where_the_object_was_painted():
    layout = next(x for x in (scenes.layout(1, i) for i in range(99)) if len(x.objects) == 1)
    with_object, without = scenes.render(layout), scenes.render(replace(layout, objects=()))
    changed = (np.asarray(with_object.image).astype(int) - np.asarray(without.image)).any(-1)
    (mask,) = with_object.masks.values()
    assert changed[~mask].sum() <= 0.1 * changed.sum()  # only antialiased edges
    assert without.masks == {}


def test_colourings_change_colours_and_nothing_else():
    for i in range(5):
        typical, swapped = scenes.layout(3, i, "cluttered"), scenes.layout(3, i, "cluttered", "swapped")
        places = [[(o.name, o.x, o.radius) for o in scene.objects] for scene in (typical, swapped)]
        assert places[0] == places[1]
        both = zip(typical.objects, swapped.objects, strict=True)
        assert any((a.colours != b.colours).any() for a, b in both)
        assert (scenes.render(typical).labels == scenes.render(swapped).labels).all()


def test_captions_name_only_what_is_there():
    left_out = 0
    for i in range(60):
        scene = scenes.sample(1, i, "cluttered")
        words = scenes.caption(scene, 1, i, background=1.0).split()
        present = {o.name for o in scene.objects}
        named = set(words) & set(scenes.CLASSES)
        assert named and named <= present and scene.background.pattern in words
        left_out += named < present
        assert scenes.caption(scene, 1, i) == scenes.caption(scene, 1, i)
    assert 0 < left_out < 30


def test_every_caption_word_is_in_the_vocabulary():
    known = set(demo.words())
    for i in range(200):
        assert set(re.findall(r"\w+", scenes.caption(scenes.sample(2, i), 2, i, background=0.5))) <= known


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="no split 'tset'"):
        eclip.load_dataset("scenes", split="tset")


DIGESTS = {
    "plain, typical": "6176b6a2c9a588c9",
    "plain, mixed": "dd8e84dac8eb8138",
    "plain, swapped": "ac9bcca18c3f6d54",
    "cluttered, typical": "d767d86142df0dc8",
    "cluttered, mixed": "d57ca870a27bb054",
    "cluttered, swapped": "787027fcd22db01f",
}
