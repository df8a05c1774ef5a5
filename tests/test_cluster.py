"""Ray Data on two workers of this machine: equal to one process, workers killed, parts that always fail."""

import os
import signal
import sys
import warnings

import pandas as pd
import pytest
import torch

import eclip_lib as eclip
from eclip_lib import feature_cache as caching
from eclip_lib.commands import cluster
from eclip_lib.datasets.image_text import ScenePairs

ray = pytest.importorskip("ray", reason="the extra eclip-lib[cluster] is not installed")


@pytest.fixture(scope="module", autouse=True)
def local_cluster():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file
    ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    yield
    ray.shutdown()


def load():
    return eclip.load_clip("scenes-ViT-32"), {"saliency": eclip.load_attention("vit_tiny_patch16_224", None)}


class Fatal(ScenePairs):
    """Pairs whose part 1 kills its worker: once (`marker` is then there), or, where `broken`, each
    time, and its part 2 fails each time."""

    def __init__(self, marker=None, broken=False, **options):
        super().__init__(**options)
        self.marker, self.broken = marker, broken

    def read(self, part):
        number, me = self.parts.index(part), os.getpid()
        if self.broken and number == 2:
            raise ValueError("part 2 cannot be read")
        if number == 1 and me != self.driver and (self.broken or not os.path.exists(self.marker)):
            if not self.broken:
                open(self.marker, "w").close()
            os.kill(me, signal.SIGKILL)
        return super().read(part)

    driver = os.getpid()


def content(cache):
    return {path.name: path.read_bytes() for path in cache.view().shards}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The cache of one process with one thread, which is what a Ray worker has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    clip, masks = load()
    made = caching.cache_features(
        clip, ScenePairs(count=32, size=8), tmp_path_factory.mktemp("alone"), masks, batch_size=8
    )
    torch.set_num_threads(threads)
    return made


def test_two_workers_write_the_same_bytes_as_one_process(alone, tmp_path):
    made = cluster.cache_features(load, ScenePairs(count=32, size=8), tmp_path, workers=1, batch_size=8)
    assert made.view().folder.name == alone.view().folder.name and content(made) == content(alone)
    stamps = [path.stat().st_mtime_ns for path in made.view().shards]
    again = cluster.cache_features(load, ScenePairs(count=32, size=8), tmp_path, batch_size=8)
    assert [path.stat().st_mtime_ns for path in again.view().shards] == stamps


def test_a_worker_killed_in_the_middle_costs_one_part(alone, tmp_path):
    source = Fatal(str(tmp_path / "killed"), count=32, size=8)
    made = cluster.cache_features(load, source, tmp_path, batch_size=8)
    assert (tmp_path / "killed").exists() and content(made) == content(alone)


def test_parts_that_always_fail_are_named_and_stop_nothing(alone, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = cluster.cache_features(load, Fatal(broken=True, count=32, size=8), tmp_path, batch_size=8)
    said = [str(w.message) for w in caught if "was not made" in str(w.message)]
    assert len(said) == 2
    assert "part 1 was not made: its worker died" in said[0]
    assert "part 2 was not made: ValueError: part 2 cannot" in said[1]
    assert content(made) == {
        name: data
        for name, data in content(alone).items()
        if name in ("00000.safetensors", "00003.safetensors")
    }


def test_where_no_part_could_be_made_the_reason_of_the_first_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "scatter", lambda *_: ["part 0 was not made: why"])
    with pytest.raises(ValueError, match="part 0 was not made: why"):
        cluster.cache_features(load, ScenePairs(count=8, size=8), tmp_path)


def test_evaluation_in_parts_equals_one_pass(tmp_path):
    def load(method="clip", **options):
        clip = eclip.load_clip("scenes-ViT-32", **options)
        return eclip.explainer(method, clip), clip

    dataset, (explain, clip) = eclip.load_dataset("scenes", limit=20), load()
    options = {"batch_size": 4, "measures": ["argmax"]}
    rows = cluster.evaluate_parts(load, dataset, tmp_path, size=8, **options)
    whole = eclip.evaluate({"clip": explain}, dataset, clip, **options)
    rows, whole = (table.fillna({"seed": ""}) for table in (rows, whole))  # a CSV has no None
    pd.testing.assert_frame_equal(rows, whole, atol=1e-5, check_dtype=False)
    with pytest.raises(ValueError, match="another evaluation"):
        cluster.evaluate_parts(load, dataset, tmp_path, size=8, batch_size=4)
    others = [(lambda: load("rclip"), dataset), (load, dataset.part(1, 20))]
    for other, images in [*others, (lambda: load(precision="bf16"), dataset)]:
        with pytest.raises(ValueError, match="another evaluation"):
            cluster.evaluate_parts(other, images, tmp_path, size=8, **options)
