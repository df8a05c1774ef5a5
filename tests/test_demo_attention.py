"""The demo's models: what they are trained on, that what is shipped loads and says how it was made."""

import gzip
import json
import shutil
import sys
from importlib import import_module

import numpy as np
import pytest
import torch

import eclip_lib as eclip
from eclip_lib.datasets import load_dataset
from eclip_lib.files import REPOSITORY
from eclip_lib.networks import demo

# scripts beside the checkpoints, no package
sys.path.insert(0, str(REPOSITORY / "data" / "demo" / "training"))
names = ("clips", "self_supervised", "shards", "views", "vocabulary")
clips, self_supervised, shards, views, vocabulary = map(import_module, names)


@pytest.fixture(scope="module")
def array():
    """Scenes as the training's array holds them, levels in turn."""
    levels = [load_dataset("scenes", level=level, length=4) for level in ("plain", "cluttered")]
    return np.stack([np.asarray(levels[k % 2][k // 2].image) for k in range(8)])


def test_the_salient_mask_is_near_the_objects():
    dataset = load_dataset("scenes", length=20)
    images = torch.stack([torch.from_numpy(np.array(e.image)).permute(2, 0, 1) / 255 for e in dataset])
    truth = np.stack([np.any(list(e.masks.values()), 0) for e in dataset])
    found = views.salient(images)[:, 0].numpy() > 0.5
    iou = (found & truth).sum((1, 2)) / (found | truth).sum((1, 2))
    assert iou.mean() > 0.5


@pytest.mark.parametrize("as_it_is", [0.0, 1.0])
def test_views_keep_the_salient_pixels_and_change_the_rest(array, as_it_is):
    torch.manual_seed(0)
    made = views.Views(array, 4, as_it_is, seed=0)
    sources = made.scenes()
    assert sources.shape == (4, 4, 224, 224)
    one, two = (made.view(sources, 1.0, 1.0) for _ in range(2))
    assert one.shape == (4, 3, 128, 128) and one.isfinite().all() and not torch.equal(one, two)


@pytest.mark.parametrize("network", list(self_supervised.OBJECTIVES))
def test_training_learns_resumes_and_is_repeatable(network, array, tmp_path, monkeypatch):
    pytest.importorskip("lightly", reason="the extra demo-models is not installed")
    monkeypatch.setattr(self_supervised, "load_images", lambda folder: array)
    small = self_supervised.OBJECTIVES[network] | {"batch": 4}
    monkeypatch.setitem(self_supervised.OBJECTIVES, network, small)
    whole, curve, _, _ = self_supervised.train(network, folder=tmp_path, steps=4, every=2)
    (tmp_path / f"{network}-seed0.pt").unlink()
    assert len(curve) == 2 and not whole.training
    self_supervised.train(network, folder=tmp_path / ".", steps=4, every=2)
    # finished: goes on from its own file
    again, same, _, _ = self_supervised.train(network, folder=tmp_path, steps=4, every=2)
    assert same == curve
    torch.testing.assert_close(whole.state_dict(), again.state_dict())


def test_the_vocabulary_is_made_by_its_script():
    assert vocabulary.merges() == gzip.open(demo.MERGES).read()


def test_shards_resume_and_repeat(tmp_path):
    paths = shards.write_scenes(tmp_path, 6, shard=3, workers=1)
    before = [p.read_bytes() for p in paths]
    paths[1].unlink()
    assert [p.read_bytes() for p in shards.write_scenes(tmp_path, 6, shard=3, workers=1)] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.tar", "00001.tar"]


@pytest.mark.parametrize("network", demo.ATTENTIONS)
def test_the_shipped_models_attend_to_objects_more_than_chance(network):
    model = eclip.load_attention(network)
    dataset = load_dataset("scenes", length=20)
    images = torch.stack([torch.from_numpy(np.array(e.image)).permute(2, 0, 1) / 255 for e in dataset])
    share = torch.stack([torch.from_numpy(np.any(list(e.masks.values()), 0)).float() for e in dataset])
    cells = torch.nn.functional.avg_pool2d(share[:, None], 16).flatten(1)
    attention = model(images)
    assert attention.shape == (20, 196) and model.grid == (14, 14)
    mass = (attention * cells).sum(1) / attention.sum(1)
    assert mass.mean() > 1.5 * cells.mean()


def test_the_overview_is_that_of_the_cards_and_cards_name_their_script(tmp_path, monkeypatch):
    for path in [*demo.FOLDER.glob("*.json"), demo.FOLDER / "tried.md"]:
        shutil.copy(path, tmp_path)
    written = (demo.FOLDER / "README.md").read_text()
    for path in tmp_path.glob("*.json"):
        python, script, network, *_ = json.loads(path.read_text())["command"].split()
        assert python == "python" and (REPOSITORY / script).is_file() and network.split("-")[-1] in path.stem
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    assert clips.overview() == written == (tmp_path / "README.md").read_text()
