"""Killed, crowded and read-only: what is computed stays, what is rerun is equal. Same seed, same numbers."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from test_bad_input import run
from torch.utils.data import get_worker_info

import eclip_lib as eclip
from eclip_lib import feature_cache as caching
from eclip_lib import files, training
from eclip_lib.commands import bench, boundary, cluster
from eclip_lib.datasets.image_text import ScenePairs
from eclip_lib.datasets.scenes import Scenes
from eclip_lib.networks import clip

TRAIN = ["scenes:64", "--epochs", "60", "--batch-size", "16", "--pooling", "max", "--workers", "0"]
EVALUATE = ["evaluate", "clip", "--networks", "scenes-ViT-32", "--datasets", "scenes"]

SLOW = """import time
from eclip_lib import training
old = training.batches
def batches(*a):
    time.sleep(.05)
    yield from old(*a)
training.batches = batches
"""


def start(code):
    return subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )


def kill_when(job, ready):
    """SIGKILL a process once `ready()` holds; the process must still be at work then."""
    end = time.time() + 90
    while not ready():
        assert job.poll() is None and time.time() < end
        time.sleep(0.01)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()


def test_a_killed_training_runs_again_to_the_same_pair(tmp_path, monkeypatch):
    def command(folder):
        return [
            "train",
            *TRAIN[:1],
            str(folder / "pair.safetensors"),
            *TRAIN[1:],
            "--cache",
            str(folder / "cache"),
        ]

    cut, whole = tmp_path / "cut", tmp_path / "whole"
    cut.mkdir(), whole.mkdir()
    job = start(
        f"{SLOW}import sys\nsys.argv = ['eclip', *{command(cut)!r}]\nfrom eclip_lib.cli import main\nmain()"
    )
    kill_when(job, lambda: list(cut.glob("cache/*/manifest.json")))
    assert not (cut / "pair.safetensors").exists()
    for folder in (cut, whole):
        assert run(monkeypatch, *command(folder)) is None
    ours, theirs = (
        eclip.Projection.load(folder / "pair.safetensors").state_dict() for folder in (cut, whole)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    columns = ["epoch", "loss", "lr"]
    pd.testing.assert_frame_equal(*(pd.read_csv(folder / "pair.csv")[columns] for folder in (cut, whole)))


def notebook(path, source):
    cells = [
        nbformat.v4.new_code_cell("profile = 'demo'\nout = None", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(source),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


def test_a_killed_reproduction_goes_on_at_the_notebook_it_was_in(tmp_path):
    save = "import pathlib, time\npath = pathlib.Path(out, '{0}.csv')\npath.with_suffix('.begun').touch()\n"
    save += "time.sleep({1})\npath.write_text('{0}')"
    mine = tmp_path / "run" / "notebooks" / "01_part.partial.ipynb"
    files.write(mine, "mine"), files.write(tmp_path / "run" / ".lock", "mine")
    for number, wait in ((0, 0), (1, 6), (2, 0)):
        notebook(tmp_path / f"0{number}_part.ipynb", save.format(number, wait))
    code = "import pathlib\nfrom eclip_lib.commands import notebooks\n"
    code += f"notebooks.NOTEBOOKS = pathlib.Path({str(tmp_path)!r})\n"
    code += f"print(notebooks.reproduce(out={str(tmp_path / 'run')!r}))"
    note = tmp_path / "run" / "run.json"  # two run at once: until the first is complete
    kill_when(start(code), lambda: note.exists() and "complete" in note.read_text())
    assert (tmp_path / "run" / "0.csv").exists() and not (tmp_path / "run" / "1.csv").exists()
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "{'00_part': 'skipped', '01_part': 'done', '02_part':" in again
    assert [(tmp_path / "run" / f"{n}.csv").read_text() for n in range(3)] == ["0", "1", "2"]
    assert mine.read_text() == (tmp_path / "run" / ".lock").read_text() == "mine"


@pytest.mark.parametrize("views, shared", [(2, False), (2, True), (1, False)])
def test_a_training_on_fresh_views_needs_a_cache_of_its_own(tmp_path, monkeypatch, views, shared):
    command = ["train", "scenes:8", tmp_path / "pair.safetensors", "--cache", tmp_path, "--views", views]
    with files.alone(tmp_path / ".scenes-ViT-32.lock", shared=shared):
        said = run(monkeypatch, *map(str, command), "--pooling", "max", "--workers", "0")
    assert "another training is at work in" in said


WRITER = """import torch, eclip_lib as eclip
from eclip_lib.datasets.image_text import ScenePairs
torch.set_num_threads(1)
clip = eclip.load_clip("scenes-ViT-32", None)
assert len(eclip.cache_features(clip, ScenePairs(count=64, size=4), {!r}, batch_size=4)) == 64
"""


def test_two_processes_on_one_cache_do_not_disturb_each_other(tmp_path):
    jobs = [start(WRITER.format(str(tmp_path / name))) for name in ("both", "both", "alone")]
    assert [job.wait(120) for job in jobs] == [0, 0, 0]
    both, alone = (
        {p.name: p.read_bytes() for p in (tmp_path / name).glob("*/*")} for name in ("both", "alone")
    )
    assert both == alone


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    eclip.load_dataset("scenes", limit=1)[0].image.save(tmp_path / "scene.png")
    for command in (
        ["explain", tmp_path / "scene.png", "a circle", "--out", "/proc/eclip/out.png"],
        ["reproduce", "--out", "/proc/eclip"],
        ["train", *TRAIN[:1], tmp_path / "pair.safetensors", *TRAIN[1:], "--cache", "/proc/eclip"],
        [*EVALUATE, "--limit", "2", "--out", "/proc/eclip"],
    ):
        said = run(monkeypatch, *command)
        assert said and said.startswith("eclip: ") and "\n" not in said and "/proc/eclip" in said, said
    monkeypatch.setattr(os, "access", lambda *_: False)
    said = run(monkeypatch, "explain", tmp_path / "scene.png", "a circle", "--out", tmp_path / "out.png")
    assert "out.png cannot be written: it or its folder is read-only" in said


def test_a_killed_worker_is_one_sentence(tmp_path, monkeypatch):
    def die(*_):
        assert get_worker_info()
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ScenePairs, "open", die)
    monkeypatch.setattr(Scenes, "example", die)
    train = ["train", *TRAIN[:1], tmp_path / "pair.safetensors", *TRAIN[1:-1], 1, "--cache", tmp_path]
    for command in (train, [*EVALUATE, "--workers", 1]):
        assert "a process that decodes images was killed" in run(monkeypatch, *command)


@pytest.mark.parametrize(
    "error", [ConnectionResetError(), EOFError(), RuntimeError("DataLoader worker (pid 7)")]
)
def test_a_worker_killed_in_the_middle_of_a_batch_is_the_same_sentence(error, monkeypatch):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(clip, "DataLoader", broken)
    with pytest.raises(OSError, match=re.escape(clip.KILLED)):
        list(clip.loaded([1], 1))
    assert boundary.sentence(RuntimeError("DataLoader worker (pid 7) exited")) == clip.KILLED
    error = RuntimeError("of its own")
    with pytest.raises(RuntimeError, match="of its own"):
        list(clip.loaded([1], 1))


class Talkative(list):
    def __getitem__(self, index):
        sys.excepthook(EOFError, EOFError("told in a worker"), None)  # as multiprocessing's threads do
        return index


def test_a_worker_leaves_no_traceback_of_its_own(capfd):
    assert list(clip.loaded(Talkative([1]), 1, workers=1)) == [[0]]
    assert not capfd.readouterr().err


class Untold:
    def __del__(self):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")


def test_a_worker_killed_while_something_is_deleted_leaves_no_traceback(monkeypatch, capfd):
    monkeypatch.setattr("sys.unraisablehook", boundary.unraisable)
    Untold()
    assert not capfd.readouterr().err


def test_a_ray_that_does_not_start_is_one_sentence(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: 1 / 0)
    said = run(monkeypatch, *EVALUATE, "--limit", "2", "--ray", "2", "--out", tmp_path)
    assert "Ray did not start (division by zero); try again, run without --ray" in said


def test_a_part_that_could_not_be_evaluated_is_an_error(tmp_path, monkeypatch):
    """No number of fewer images than asked for; the parts that were made stay."""

    def load():
        clip = eclip.load_clip("scenes-ViT-32")
        return eclip.explainer("clip", clip), clip

    def only_the_first(setup, count, done, *_):
        assert count == 2 and not done(0)
        setup()(0)

    monkeypatch.setattr(cluster, "scatter", only_the_first)
    with pytest.raises(ValueError, match="1 of 2 parts of scenes could not be evaluated.*run again"):
        cluster.evaluate_parts(load, eclip.load_dataset("scenes", limit=4), tmp_path, size=2)
    assert (tmp_path / "00000.csv").exists()
    monkeypatch.setattr(cluster, "scatter", lambda setup, count, *_: list(map(setup(), range(count))))
    rows, note = (tmp_path / name for name in ("00000.csv", "about.json"))
    whole, part = note.read_text(), eclip.load_dataset("scenes", limit=4)
    for content in ("[]", "null", '{"mine": 1}', "mine"):  # a stranger's
        note.write_text(content)
        with pytest.raises(ValueError, match="about.json is there, is not of this command"):
            cluster.evaluate_parts(load, part, tmp_path, size=2)
        assert note.read_text() == content and rows.exists()
    for content in ("", whole[:40]):  # our own, half of it
        note.write_text(content), rows.write_text(rows.read_text().replace("scenes-ViT-32", "other"))
        assert set(cluster.evaluate_parts(load, part, tmp_path, size=2)["network"]) == {"scenes-ViT-32"}
        assert note.read_text() == whole


WRITE = """import os, signal
from eclip_lib import files
with files.replacing({!r}) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_goes_a_day_later_and_a_living_ones_stays(tmp_path):
    path = tmp_path / "a.txt"
    assert start(WRITE.format(str(path))).wait(60) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with files.replacing(path) as other:
        assert left != other and left.read_text() == "half"  # it may be a living writer's
        other.write_text("other")
    os.utime(left, (1, 1))
    with files.replacing(path) as first:
        first.write_text("first")
        with files.replacing(path) as second:
            second.write_text("second")
            assert left == first != second and first.read_text() == "first"
        assert path.read_text() == "second" and first.read_text() == "first"
        with pytest.raises(ZeroDivisionError), files.replacing(path):
            1 / 0  # noqa: B018
        assert first.read_text() == "first"
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_place_of_a_partial_is_not_written_through(tmp_path):
    with files.replacing(tmp_path / "a.txt") as partial:
        name = partial.name
    (tmp_path / name).unlink(missing_ok=True), (tmp_path / "mine").write_text("mine")
    (tmp_path / name).symlink_to(tmp_path / "mine")
    files.write(tmp_path / "a.txt", "a")
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "a.txt").read_text() == "a"


def test_a_name_is_set_aside_under_a_name_that_nobody_has(tmp_path):
    files.write(tmp_path / "a.replaced-1", "mine"), (tmp_path / "a.replaced-2").symlink_to("gone")
    for content in ("one", "two"):
        files.write(tmp_path / "a", content)
        files.set_aside(tmp_path / "a")
    kept = {path.name: path.read_text() for path in tmp_path.iterdir() if path.exists()}
    assert kept == {"a.replaced-1": "mine", "a.replaced-3": "one", "a.replaced-4": "two"}
    files.write(tmp_path / ("é" * 127), "long")
    assert files.set_aside(tmp_path / ("é" * 127)).name == "é" * 122 + ".replaced-1"


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    def numbers(folder):
        clip = eclip.load_clip("scenes-ViT-32")
        dataset = eclip.load_dataset("scenes", limit=20)
        rows = eclip.evaluate(eclip.explainer("clip", clip), dataset, clip, workers=2)
        cache = caching.cache_features(clip, ScenePairs(count=32), folder, augment="deit", workers=2)
        pair, history = training.train_pair(clip, cache, "max", epochs=3, batch_size=8, seed=1)
        return rows, history["loss"], pair.state_dict()

    (rows, loss, pair), (rows2, loss2, pair2) = (numbers(tmp_path / name) for name in "ab")
    assert rows.equals(rows2) and loss.equals(loss2) and all(torch.equal(pair[k], pair2[k]) for k in pair)


def test_what_differs_across_settings_is_small():
    table = bench.agreement(images=40).set_index("setting")
    assert (table.loc["1 thread", ["mIoU", "mSC"]] < 0.1).all()
    assert (table.loc["bf16", ["mIoU", "mSC"]] < 2).all()
    if torch.cuda.is_available():
        assert (table.loc["cuda", ["mIoU", "mSC"]] < 0.1).all()
