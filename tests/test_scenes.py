"""The demo world: deterministic, exact masks, honest captions."""

import hashlib
import re

import numpy as np
import pytest

import eclip_lib as eclip
from eclip_lib.datasets import captions, scenes


def digest(level, colours):
    sample = [scenes.sample(7, i, level, colours) for i in range(3)]
    return hashlib.sha256(b"".join(s.image.tobytes() + s.labels.tobytes() for s in sample)).hexdigest()[:16]


def test_scenes_are_the_same_on_every_machine():  # digests written down on x86-64 with NumPy 2.4 and Pillow 13
    assert {
        f"{level}, {colours}": digest(level, colours) for level in scenes.LEVELS for colours in scenes.COLOURINGS
    } == DIGESTS


def test_splits_are_disjoint_and_any_order_gives_the_same_scene():
    sets = {split: eclip.load_dataset("scenes", split=split, limit=5) for split in scenes.SEEDS}
    seen = {name: {e.image.tobytes() for e in part} for name, part in sets.items()}
    assert not seen["train"] & seen["test"] and not seen["validation"] & seen["test"] and not seen["train"] & seen["validation"]
    assert sets["test"][3].image.tobytes() == sets["test"][3].image.tobytes() == [*sets["test"]][3].image.tobytes()


def test_masks_are_disjoint_named_and_large_enough():
    for name in ("scenes", "scenes-cluttered"):
        for example in eclip.load_dataset(name, limit=40):
            total = sum(mask.astype(int) for mask in example.masks.values())
            assert total.max() == 1 and example.masks and set(example.masks) <= set(scenes.CLASSES)
            assert all(mask.shape == (224, 224) and mask.sum() >= scenes.SMALLEST for mask in example.masks.values())


def test_a_mask_is_where_the_object_was_painted():
    layout = next(x for x in (scenes.layout(1, i) for i in range(99)) if len(x.objects) == 1)
    from dataclasses import replace

    with_object, without = scenes.render(layout), scenes.render(replace(layout, objects=()))
    changed = (np.asarray(with_object.image).astype(int) - np.asarray(without.image)).any(-1)
    assert not changed[~next(iter(with_object.masks.values()))].sum() > 0.1 * changed.sum()  # only antialiased edges
    assert without.masks == {}


def test_colourings_change_colours_and_nothing_else():
    for i in range(5):
        typical, swapped = scenes.layout(3, i, "cluttered"), scenes.layout(3, i, "cluttered", "swapped")
        assert [(o.name, o.x, o.radius) for o in typical.objects] == [(o.name, o.x, o.radius) for o in swapped.objects]
        assert any((a.colours != b.colours).any() for a, b in zip(typical.objects, swapped.objects, strict=True))
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
    from eclip_lib import demo

    known = set(demo.words())
    for i in range(200):
        assert set(re.findall(r"\w+", scenes.caption(scenes.sample(2, i), 2, i, background=0.5))) <= known


def test_shards_resume_and_repeat(tmp_path):
    paths = captions.write_scenes(tmp_path, 6, shard=3, workers=1)
    before = [p.read_bytes() for p in paths]
    paths[1].unlink()
    assert [p.read_bytes() for p in captions.write_scenes(tmp_path, 6, shard=3, workers=1)] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.tar", "00001.tar"]


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
