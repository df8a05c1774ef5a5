"""The bench measures what it says: every row on tiny sizes; what must be equal there is."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.benchmark import set_torch_threads

from eclip_lib import files
from eclip_lib.commands import bench, bench_growth, bench_training, passes
from eclip_lib.commands.forecast import PASSES
from eclip_lib.commands.notebooks import notebooks
from eclip_lib.networks.loading import load_clip

DEMO = "scenes-ViT-32"
COLUMNS = ["what", "unit", "ours", "reference", "ratio", "target"]
ROWS = {
    "ITSM": lambda: bench.itsm_throughput(network=DEMO, batch=2, texts=2, rounds=1),
    "shift": lambda: bench.shift_overhead(network=DEMO, batch=2, texts=2, size=(48, 64), rounds=1),
    "Bi-Model": lambda: bench.bi_model_batches(network=DEMO, images=2, texts=2, rounds=1),
    "scoring": lambda: bench.scoring(size=(48, 64), rounds=1),
    "encoder": lambda: bench.encoder_share(network=DEMO, rounds=1),
    "pass": lambda: bench.dataset_pass(network=DEMO, workers=0, count=4, batch=2),
    "cache": lambda: bench_training.cached_epochs(network=DEMO, mask="scenes-DINO", epochs=2, count=40),
    "poolings": lambda: bench_training.all_poolings(network=DEMO, mask="scenes-DINO", count=4, rounds=1),
    "training": lambda: bench_training.training_rate(network=DEMO, batch=32, width=128, pairs=128),
    "learned": lambda: bench_training.learned_pair_cost(network=DEMO, batch=2, texts=2, rounds=1),
}

MEASURED = {"itsm_throughput", "shift_overhead", "bi_model_batches", "scoring"}
MEASURED |= {"cached_epochs", "all_poolings", "training_rate", "learned_pair_cost"}
MEASURED |= {"encoder_share", "dataset_pass"}


@pytest.fixture(autouse=True)
def one_thread():
    with set_torch_threads(1):
        yield


@pytest.mark.filterwarnings("ignore:.*never saw")
@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_measured(name):
    row = ROWS[name]()
    assert list(row) == COLUMNS
    rate = row["ours"] / row["reference"]
    assert row["ratio"] == pytest.approx(1 / rate if row["target"].startswith("<=") else rate)
    assert 0 < row["ratio"] < np.inf and "False" not in row["what"]


def test_memory_is_that_of_a_fresh_process(monkeypatch):
    monkeypatch.setattr(bench_growth, "NETWORK", DEMO)
    table = bench_growth.growth({allocate: (1, 100)})
    assert list(table) == ["step", "size", "work", "seconds", "MiB", "steepness"]
    small, large = table["MiB"]
    assert 350 < large - small < 450 and small < 3000  # 400 million bytes, and torch itself


def allocate(size):
    return size, lambda: torch.ones(size * 1_000_000)


@pytest.mark.parametrize("step", bench_growth.STEPS)
def test_every_step_does_its_work(step, monkeypatch):
    monkeypatch.setattr(bench_growth, "load_clip", lambda *_, **__: load_clip(DEMO))
    size = {bench_growth.classes: 17, bench_growth.argmax: 17, bench_growth.pairs: 600}.get(step, 2)
    work, run = step(size)
    assert work == size ** (1 + (step is bench_growth.grid)) and run() is not False


def test_nothing_grows_faster_than_its_work():
    """The committed table: time no steeper than work (tokens attend to tokens), memory of a stream flat."""
    table = pd.read_csv(files.REPOSITORY / "results" / "benchmarks" / "growth.csv")
    counted = {step.__name__: list(sizes) for step, sizes in bench_growth.STEPS.items()}
    assert table.groupby("step", sort=False)["size"].agg(list).to_dict() == counted
    bound = table["step"].map({"grid": 1.4}).fillna(1.1)
    assert (table["steepness"].fillna(0) <= bound).all()
    for step in ("images", "classes", "pairs"):
        memory = table.loc[table["step"] == step, "MiB"]
        assert memory.iloc[-1] <= 1.1 * memory.iloc[-2]


def test_the_table_has_the_rows_of_the_committed_one(monkeypatch, tmp_path):
    for module in (bench, bench_training):
        for name in (name for name in vars(module) if name in MEASURED):
            monkeypatch.setattr(module, name, lambda *_, name=name: bench.row(name, "s", 2.0, 1.0, "none"))
    for name in ("agreement", "growth"):
        monkeypatch.setattr(bench, name, pd.DataFrame)
    assert "itsm_throughput" in bench.run("cpu", tmp_path / "made" / "bench.csv")
    table = pd.read_csv(tmp_path / "made" / "bench.csv")
    committed = pd.read_csv(PASSES.with_name("foundation.csv"))
    assert list(table.columns) == list(committed.columns) and len(table) == len(committed)
    assert set(table["what"]) == MEASURED and (table["ratio"] == 2).all()


def test_settings_agree_on_a_few_scenes():
    table = bench.agreement(images=4, batch=2).set_index("setting")
    assert (table.loc[["1 thread", "batches of 1"], ["mIoU", "mSC"]] < 0.1).all(axis=None)


def test_a_picture_costs_bytes_and_seconds():
    size, seconds = bench_training.picture_cost("scenes:2", network=DEMO, count=2)
    assert 5e3 < size < 1e5 and 0 < seconds < 1


def test_passes_are_what_grows(monkeypatch):
    def counted(path, out, images):
        return {"coarse": 10 + 2 * images, "fine": 3, "others": images, "masks": 0}

    monkeypatch.setattr(passes, "counted", counted)
    found = passes.measure().set_index("notebook")
    assert list(found.index) == [path.stem for path in notebooks()]
    assert found.loc["06_benchmarks"].to_dict() == {"coarse": 2, "fine": 0, "others": 1, "masks": 0}


def test_seconds_are_those_of_every_picture_of_the_first_and_of_none(monkeypatch):
    monkeypatch.setattr(passes, "load_dataset", lambda *_: None)
    monkeypatch.setattr(
        passes, "_seconds", lambda path, dataset, count, few: 7 + 2 * count + 3 * min(few, count)
    )
    found = passes.photo_seconds("root").set_index("notebook")
    assert found.loc["06_benchmarks"].tolist() == pytest.approx([7, 2, 3])
    assert found.loc["04_semantic_shift"].tolist() == pytest.approx([19, 2, 0])
