"""A run as a whole: parts of it side by side, its limits, and what is looked at before it."""

import io
import json
import tarfile
from contextlib import nullcontext

import pandas as pd
import pytest
import yaml

import eclip_lib as eclip
from eclip_lib import files
from eclip_lib.commands import forecast, notebooks, preflight
from eclip_lib.datasets.image_text import load_pairs
from eclip_lib.networks import checkpoints
from eclip_lib.networks.attention import noise
from eclip_lib.recipe import new_pair
from eclip_lib.studies import (
    attention_quality,
    benchmarks,
    controlled_scenes,
    controls,
    itsm_discovery,
    mmp_training,
    semantic_shift,
)

DEMO = yaml.safe_load((files.REPOSITORY / "eclip_lib" / "profiles" / "demo.yaml").read_text())


def written(folder, **settings):
    """A profile of one's own: the demo's with other settings."""
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(DEMO | settings, sort_keys=False))
    return path


# ------------------------------------------------------------------------------------------- parts


def saved(run):
    """What notebooks 01, 02, 04, 05 and 06 measure, in short -> {table: as saved}."""
    models, clips, rows, shift = run.load_masks(), run.load_clips(), [], []
    for network, clip in clips.items():
        found = mmp_training.recognition(run, clip)
        features = run.features(clip, models)
        pair = run.train(clip, features, run.chosen_mask).pair
        run.save_pair(pair, network)
        assert mmp_training.recognition(run, clip, pair) == found
        rows.append(run.evaluate(clip, "scenes", benchmarks.explainers_of(run, clip, benchmarks.TABLE_1)))
        quality = attention_quality.measured(run, models | {"noise": noise}, clip, "scenes")
        run.save_table(attention_quality.mask_table({"scenes": quality}), f"attention_{network}")
        run.save_table(pd.DataFrame(itsm_discovery.histogram(run, clip, "scenes")), f"histogram_{network}")
        shift.append(semantic_shift.measured(run, clip, "scenes"))
    run.save_table(benchmarks.table(run, pd.concat(rows), benchmarks.TABLE_1), "table_1")
    run.save_table(pd.concat(shift, ignore_index=True), "shift")
    run.save_table(controlled_scenes.controlled_table(run, 2), "controlled")
    controlled = [pd.DataFrame()]
    for network in benchmarks.vits(run):
        methods = benchmarks.explainers_of(run, clips[network], benchmarks.TABLE_2)
        controlled.append(controls.measured(run, clips[network], "scenes", methods))
    run.save_table(pd.concat(controlled), "controls")
    run.save_table(controls.baseline_table(run, clip), "text_free")
    run.save_table(benchmarks.map_statistics(run, ["clip", "eclip"]), "map_statistics")
    found = run.save_table(benchmarks.table_4(run), "table_4")
    assert all(found["identical"].dropna().map(lambda same: same is True)) and len(found) > 2
    return {path.name: path.read_text() for path in sorted((run.place / "tables").glob("*.csv"))}


def test_nothing_is_identical_where_no_pair_was_trained(tmp_path):
    given = {"networks": "scenes-ViT-32", "pretrained": "default", "datasets": "scenes", "limit": 3}
    run = eclip.load_profile("photos", **given, out=tmp_path)
    assert benchmarks.table_4(run)["identical"].isna().all()


def test_networks_side_by_side_add_up_to_the_whole_run(tmp_path, monkeypatch):
    networks = ["scenes-ViT-32", "scenes-RN"]
    small = {"limit": 6, "limit_pairs": 40, "trainings": 1, "workers": 0, "datasets": ["scenes"]}
    training = DEMO["training"] | {"epochs": 2, "batch_size": 16}
    profile = written(tmp_path, networks=networks, training=training, **small)
    whole = saved(eclip.load_profile(profile, out=tmp_path / "whole"))
    assert all(network in whole["table_1.csv"] for network in networks)
    parts = [eclip.load_profile(profile, networks=network, out=tmp_path / "joined") for network in networks]
    with pytest.raises(FileNotFoundError, match="no trained pair for scenes-ViT-32: run notebook 05 first"):
        benchmarks.table_4(parts[0])
    for part, network in zip(parts, networks, strict=True):
        assert network in saved(part)["table_1.csv"] and part.place == part.out / "parts" / network
    joined = eclip.load_profile(profile, out=tmp_path / "joined")
    assert joined.place == joined.out and not (joined.out / "tables").exists()
    for place in ("evaluation.annotated.loaded", "experiment.train_pairs", "feature_cache.CacheJob.make"):
        monkeypatch.setattr(f"eclip_lib.{place}", None)  # nothing is measured again
    assert saved(joined) == whole


def test_a_part_keeps_its_pairs_to_itself(tmp_path):
    clip, settings = eclip.load_clip("scenes-ViT-32"), {"networks": "scenes-ViT-32", "limit_pairs": 9}
    runs = [eclip.load_profile("demo", out=tmp_path, **given) for given in ({}, settings)]
    for number, run in enumerate(runs):
        pair = new_pair(clip, 128, "tokens", seed=number)
        pair.metadata = clip.projection.metadata
        run.save_pair(pair, clip.network)
    assert len({files.digest(run.load_pair(clip)) for run in runs}) == 2


@pytest.mark.parametrize("given, found", [({}, True), ({"limit_pairs": 9}, False)])
def test_a_whole_run_takes_the_pair_of_a_part_that_trains_as_it_does(tmp_path, given, found):
    clip = eclip.load_clip("scenes-ViT-32")
    part = eclip.load_profile("demo", out=tmp_path, networks="scenes-ViT-32", **given)
    part.begin("05_mmp_training")
    part.save_pair(new_pair(clip, 128, "tokens"), clip.network)
    place = eclip.load_profile("demo", out=tmp_path).pair_of(clip.network)
    assert place.is_relative_to(part.place) == found


def test_any_table_is_measured_once(tmp_path):
    run, clip = eclip.load_profile("demo", out=tmp_path, limit=3), eclip.load_clip("scenes-ViT-32")
    dataset, table, calls = run.load_dataset("scenes"), pd.DataFrame({"image_id": ["07"], "x": [1 / 3]}), []

    def measured(*about):
        pd.testing.assert_frame_equal(run.once("shift", about, lambda: calls.append(about) or table), table)
        return len(calls)

    assert [measured(clip, dataset, 1), measured(clip, dataset, 1), measured(clip, dataset, 2)] == [1, 1, 2]
    assert measured(clip, dataset.first(2), 2) == 3
    assert measured(clip, Untold(), 2) == 4 and measured(clip, Untold(), 2) == 5


class Untold(eclip.datasets.Dataset):
    name, classes, items = "untold", ["square"], range(2)


# ------------------------------------------------------------------------------------------- limits


def tar(path, count):
    with tarfile.open(path, "w") as file:
        for number in range(count):
            for suffix, data in (("jpg", b"picture"), ("txt", b"words")):
                member = tarfile.TarInfo(f"{path.stem}{number}.{suffix}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("count, parts", [(1, 1), (3, 1), (4, 2), (5, 3), (99, 3)])
def test_the_first_pairs_of_shards_are_whole_parts_and_a_cut_one(tmp_path, count, parts):
    tar(tmp_path / "a.tar", 3)
    (tmp_path / "b.tar").write_bytes(b"no tar")  # named when it is read; it holds nothing
    tar(tmp_path / "c.tar", 4)
    whole = load_pairs(f"web:{tmp_path}/*.tar")
    source = whole.first(count)
    assert len(source.parts) == (parts if parts < 2 else 3) and source.about != whole.about
    keys = [pair[0] for part in source.parts if "b.tar" not in part for pair in source.read(part)]
    assert keys == ["a0", "a1", "a2", "c0", "c1", "c2", "c3"][:count]
    assert load_pairs(f"web:{tmp_path}/a.tar").first(2).state(whole.parts[0]) != whole.state(whole.parts[0])


@pytest.mark.parametrize("count", [1, 1000, 1500, 9000])
def test_the_first_of_numbered_pairs(count, tmp_path):
    run = eclip.load_profile("demo", out=tmp_path, limit_pairs=count)
    whole, source = load_pairs(run.pairs), run.load_pairs()
    numbers = [index for part in source.parts for index in part]
    assert numbers == [index for part in whole.parts for index in part][:count]
    assert len(source.names) == -(-min(count, 3000) // 1000)
    assert run.compared_by == ["limit_pairs"] and "limit_pairs" in run.check()


# ------------------------------------------------------------------------------------------- preflight


@pytest.fixture
def book(tmp_path, monkeypatch):
    """One notebook that prints what it runs -> its text after `reproduce`, and what was said before."""
    from test_notebooks import write

    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(notebooks, "NOTEBOOKS", folder)
    shown = "import eclip_lib\nrun = eclip_lib.open_run(globals())\nprint(run.networks, run.datasets, [*run.masks])"
    write(folder, "01_shown.ipynb", shown)
    write(folder, "02_trains.ipynb", "run.features(clip, masks)")
    return folder


def test_what_is_missing_is_named_before_any_work(book, tmp_path, capsys):
    given = {"datasets": "scenes,coco2017", "root": str(tmp_path / "data"), "out": tmp_path / "run"}
    profile = written(tmp_path, masks=DEMO["masks"] | {"mine": f"vit_base_patch16_224={tmp_path}/no.pt"})
    with pytest.raises(ValueError, match="needs 2 things not found .* --go-on to leave out mine, coco2017"):
        notebooks.reproduce(profile, **given)
    said = capsys.readouterr().out
    assert f"looked for in {tmp_path}/no.pt" in said and not (tmp_path / "run").exists()
    assert f"missing: coco2017, looked for in {tmp_path}/data; eclip data fetch coco2017 --root" in said
    assert notebooks.reproduce(profile, go_on=True, **given)["01_shown"] == "done"
    text = (tmp_path / "run" / "notebooks" / "01_shown.ipynb").read_text()
    assert "['scenes'] ['MoCo v3', 'DINO']" in text and "not there and left out: mine, coco2017" in text
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["dropped"] == facts["notebooks"]["01_shown"]["dropped"] == ["mine", "coco2017"]
    with pytest.raises(ValueError, match="nothing is left to run without"):
        notebooks.reproduce(profile, go_on=True, **given | {"datasets": "coco2017"})


NOTHING = [  # settings that name nothing, and what is said
    ({"networks": ["ViT-B-61"]}, "ViT-B-61"),
    ({"masks": {}}, "masks: a training needs one"),
    ({"masks": {"DINO": "nonsense"}}, "masks: DINO: neither timm nor the demo has a model 'nonsense'"),
    ({"masks": {"ground truth": "scenes-DINO"}}, "masks: ground truth is another mask's name"),
    ({"replicates": {"scenes-ViT-32": ["seed9"]}}, "no bundled checkpoint 'seed9'"),
    ({"replicates": {"nope": ["seed1"]}}, "replicates: nope is none of the run's networks"),
    ({"pretrained": "seed9"}, "no bundled checkpoint 'seed9'"),
    ({"projection": "nope"}, "projection: no pair at nope"),
    ({"device": "tpu"}, "no device 'tpu'"),
    ({"out": "picture.jpg"}, "picture.jpg ends like a file"),
]


@pytest.mark.parametrize("own, said", NOTHING)
@pytest.mark.parametrize("command", [forecast.dry_run, notebooks.reproduce])
def test_a_setting_that_names_nothing_is_named_before_any_work(book, tmp_path, own, said, command):
    given = {"out": tmp_path / "run"} | {name: own[name] for name in own if name == "out"}
    profile = written(tmp_path, **{name: own[name] for name in own if name != "out"})
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        command(profile, **given)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_names_the_files_that_are_not_there(tmp_path):
    text = forecast.dry_run(written(tmp_path, scratch={"scenes-ViT-32": "nope.pt"}, pairs=None))
    assert "nope.pt" in text and "nothing is missing" not in text


def test_without_pairs_what_trains_is_left_out(book, tmp_path):
    given = {"pairs": f"web:{tmp_path}/*.tar", "out": tmp_path / "run"}
    outcome = notebooks.reproduce(go_on=True, **given)
    assert outcome == {"01_shown": "done"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["dropped"] == ["pairs"]
    assert notebooks.reproduce(only=notebooks.notebooks()[:1], **given) == {"01_shown": "done"}  # needs none


def test_weights_that_come_by_themselves_are_fetched_first(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ECLIP_WEIGHTS", str(tmp_path))
    asked = []
    monkeypatch.setattr(checkpoints, "obtain", lambda name: asked.append(name) or name)
    given = {"pretrained": "openai", "networks": "RN50,RN101", "out": tmp_path / "run"}
    run = eclip.load_profile("demo", **given)
    assert preflight.left_out(run) == [] and asked == ["RN50.pt", "RN101.pt"]

    def offline(name):
        raise ValueError(f"{name} could not be downloaded")

    monkeypatch.setattr(checkpoints, "obtain", offline)
    with pytest.raises(ValueError, match="leave out RN50, RN101"):
        preflight.left_out(run)
    (tmp_path / "RN50.pt").write_bytes(b"half")  # there, but not as it should be
    with pytest.raises(ValueError, match="leave out RN50$"):
        preflight.left_out(run)
    assert "RN101.pt, looked for in" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    "state, enough", {"partial: 79 of 5000 images": 1, "present: 3 files": 1, "partial: cut": 0}.items()
)
def test_a_dataset_with_some_of_its_images_can_be_run(monkeypatch, state, enough):
    found = pd.DataFrame([{"part": "coco2017", "state": state, "where": "here", "how": ""}])
    monkeypatch.setattr("eclip_lib.commands.resources.status", lambda run: found)
    assert len(preflight.lacks(eclip.load_profile("paper", device="cpu"))) == 1 - enough


def test_weights_of_a_network_that_is_not_run_are_not_missing(tmp_path):
    given = {"scratch": {"scenes-ViT-32": str(tmp_path / "no.pt")}, "out": tmp_path}
    for networks, lacking in (("scenes-ViT-32", 1), ("scenes-RN", 0)):
        assert len(preflight.lacks(eclip.load_profile("demo", networks=networks, **given))) == lacking


@pytest.mark.parametrize("name, refused", {"mmp_losses": 1, "figure_10_scenes": 1, "figure_mine": 0}.items())
def test_a_figure_of_nobody_knows_whom_is_kept(tmp_path, name, refused):
    run = eclip.load_profile("demo", out=tmp_path)
    run.path("figures", name).parent.mkdir()
    run.path("figures", name).touch()
    with pytest.raises(ValueError, match=f"{name}.png is there, but no run") if refused else nullcontext():
        preflight.require_free(run, notebooks.notebooks(), True)


def test_an_own_pair_is_eclips_everywhere(tmp_path):
    clip = eclip.load_clip("scenes-ViT-32")
    pair = eclip.load_profile("demo").load_pair(clip)
    pair.save(tmp_path / "own" / "scenes-ViT-32-ECLIP.safetensors")
    run = eclip.load_profile("demo", out=tmp_path / "run", projection=str(tmp_path / "own"), seed=5)
    assert files.digest(run.load_pair(clip)) == files.digest(pair) and "projection" in run.compared_by
    assert run.out != eclip.load_profile("demo", seed=5).out
    with pytest.raises(FileNotFoundError, match="no projection pair at .*gone.safetensors"):
        eclip.load_profile("demo", projection=f"{tmp_path}/gone.safetensors").load_pair(clip)
