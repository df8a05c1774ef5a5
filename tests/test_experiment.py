"""Runs: a profile's parameters and mistakes, and the net: no committed number can move unseen."""

import ast

import pandas as pd
import pytest

import eclip_lib as eclip
from eclip_lib import experiment, results
from eclip_lib.commands import notebooks, options
from eclip_lib.commands.options import SETTINGS
from eclip_lib.files import REPOSITORY

DEMO = REPOSITORY / "eclip_lib" / "profiles" / "demo.yaml"
TABLES = {path.stem: path for path in sorted((REPOSITORY / "results/demo/tables").glob("*.csv"))}


def test_parameters_replace_settings_and_are_remembered(tmp_path):
    given = {
        "networks": "RN50, ViT-B-32",
        "datasets": "coco2017",
        "root": "/a",
        "pretrained": None,
        "limit": 3,
    }
    run = eclip.load_profile("demo", **given, out=str(tmp_path))
    assert run.networks == ["RN50", "ViT-B-32"] and run.pretrained is None
    assert run.out == tmp_path and run.replicates == {}
    assert set(run.changed) == set(given)
    assert run.title("RN50") == "RN50 (random weights)"
    assert eclip.load_profile("demo", networks=None, pretrained="profile", limit=400).changed == []


def test_a_profile_may_be_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(DEMO.read_text().replace("seed: 0", "seed: 7"))
    run = eclip.load_profile(path)
    assert (run.name, run.seed) == ("mine", 7) and run.out.name == "mine"
    with pytest.raises(ValueError, match="a profile of your own needs a name of its own; Demo is the"):
        eclip.load_profile(path.rename(tmp_path / "Demo.yaml"))  # on many a disk runs/Demo is runs/demo


MISTAKES = {
    "colour: red": "unknown or missing keys colour",
    "networks: []": "at least one network",
    "batch_size: 0": "batch_size must be",
    "batch_size: many": "batch_size must be",
    "datasets: [imagenet]": "no dataset 'imagenet'",
    "networks: [": "not readable YAML",
    "yes: 1": "unknown or missing keys True;",
    "1: a": "unknown or missing keys 1;",
    "~: a": "unknown or missing keys None;",
    "seed: 1\nlimit: 2\nseed: 2": "not readable YAML: limit, seed given twice",
    "masks: {DINO: scenes-DINO, DINO: scenes-MoCo}": "not readable YAML: DINO given twice",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_in_a_file_are_named(tmp_path, line):
    path, key = tmp_path / "bad.yaml", line.split(":")[0]
    path.write_text(
        "\n".join([x for x in DEMO.read_text().splitlines() if not x.startswith(f"{key}:")] + [line])
    )
    with pytest.raises(ValueError, match=MISTAKES[line]) as error:
        eclip.load_profile(path)
    assert "bad.yaml" in str(error.value) and "\n" not in str(error.value)


def test_other_mistakes_are_named(monkeypatch):
    with pytest.raises(FileNotFoundError, match="no profile 'papr'"):
        eclip.load_profile("papr")
    with pytest.raises(ValueError, match="no parameter 'network'"):
        eclip.load_profile("demo", network="RN50")
    with pytest.raises(FileNotFoundError, match="VOCdevkit|root/"):
        eclip.load_profile("paper", device="cpu", root="voc2012=/nowhere").load_dataset("voc2012")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        eclip.load_profile("paper")


def test_a_profiles_own_paths_start_at_the_repository(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    run = eclip.load_profile("paper")
    assert run.pairs == f"web:{REPOSITORY}/data/gcc3m/*.tar"
    assert run.masks["MoCo v3"] == "vit_base_patch16_224=vit-b-300ep.pth.tar"  # registered: found by its name
    assert run.masks["DINO"] == "vit_base_patch16_224.dino"
    assert eclip.load_profile("demo").pairs == "scenes:3000"
    assert eclip.load_profile("paper", pairs="csv:here.csv").pairs == "csv:here.csv"


# ------------------------------------------------------------------------------------------- the net


def checked(out, tables, **parameters):
    run = eclip.load_profile("demo", out=out, **parameters)
    for name, table in tables.items():
        run.save_table(table, name)
    return run.check()


def moved(table, column):
    """A copy of a table with its first value in a column another one -> (copy, row): a number by three
    tolerances of its column."""
    row = table[column].first_valid_index() or 0
    value = table[column][row]
    number = isinstance(value, float) or pd.api.types.is_integer_dtype(table[column])
    other = table.astype({column: object})
    step = 3 * max(1e-4, min(results.TOLERANCE, 0.01 * table[column].abs().max())) if number else 0
    other.loc[row, column] = value + step if number else f"{value}, not"
    return other, row


@pytest.mark.parametrize("name", TABLES)
def test_a_number_or_word_moved_in_a_committed_table_is_caught(name, tmp_path):
    table = pd.read_csv(TABLES[name])
    assert checked(tmp_path, {name: table}).startswith(f"{name}: {len(table)} rows agree with results/demo")
    for column in table.dropna(axis=1, how="all"):
        other, row = moved(table, column)
        with pytest.raises(AssertionError) as error:
            checked(tmp_path, {name: other})
        assert error.value.args[0].splitlines()[1].startswith(f"{name}: row {row}, {column}: ")
    for other in (table.iloc[1:], table.iloc[:, 1:]):
        with pytest.raises(AssertionError, match=f"{name}: other rows or columns"):
            checked(tmp_path, {name: other})


def test_all_that_differs_is_named_in_one_error_and_other_experiments_are_not_compared(tmp_path):
    tables = {name: pd.read_csv(path) for name, path in TABLES.items()}
    tables |= {
        name: moved(tables[name], column)[0] for name, column in (("table_1", "mIoU"), ("views", "loss"))
    }
    tables["claims"].loc[2, "cases"] = "7 of 8"
    with pytest.raises(AssertionError) as error:
        checked(tmp_path, tables)
    said = [line.split(": ")[0] for line in str(error.value).splitlines()]
    assert said == ["3 differences from results/demo:", "claims", "table_1", "views"]
    assert "not compared" in checked(tmp_path, tables, limit=5)
    assert checked(tmp_path, {"new": tables["views"]}) == "new: nothing committed to compare with"
    blank = tables["table_2"].astype({"mSC": float})
    blank.loc[3, "mSC"] = float("nan")
    with pytest.raises(AssertionError, match="table_2: row 3, mSC: nan here"):
        checked(tmp_path, {"table_2": blank})


def test_what_moves_no_number_does_not_switch_the_check_off():
    given = {"device": "cpu:0", "root": "/data", "workers": 5, "batch_size": 7, "limit": 400}
    run = eclip.load_profile("demo", **given)
    assert run.compared_by == [] and run.out == eclip.load_profile("demo").out
    for name, value in {"limit_pairs": 5, "projection": "a", "training": {"epochs": 3}, "seed": 1}.items():
        other = eclip.load_profile("demo", **given, **{name: value})
        assert other.compared_by == [name] and other.out != run.out


def test_every_setting_of_a_profile_is_an_option():
    structured = {"replicates", "scratch", "masks", "training"}  # by --set
    assert {*SETTINGS, *structured} == {*experiment.Profile.model_fields}
    assert options._set(["training.lr=1e-3", "training.epochs=3", "masks={}"]) == {
        "training": {"lr": "1e-3", "epochs": 3},
        "masks": {},
    }
    for words in (["training"], ["masks={"]):
        with pytest.raises(ValueError, match="--set"):
            options._set(words)


def test_every_committed_table_is_saved_by_a_notebook_that_ends_with_the_check():
    saved = {}
    for path in notebooks.notebooks():
        tree = ast.parse(notebooks.source(path))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = [ast.literal_eval(c.args[1]) for c in calls if ast.unparse(c.func) == "run.save_table"]
        saved |= dict.fromkeys(names, path.stem)
        assert not names or ast.unparse(tree.body[-1]) == "print(run.check())", path.name
    assert set(saved) == set(TABLES)


@pytest.mark.parametrize("threads, given, workers", [(1, None, 0), (1, 1, 1), (2, None, 2)])
def test_a_notebook_of_one_thread_decodes_by_itself(threads, given, workers, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    assert eclip.open_run({"profile": "demo", "out": tmp_path, "workers": given}).workers == workers
