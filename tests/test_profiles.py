"""Profiles: parameters, mistakes, and the regression cell."""

import pandas as pd
import pytest

import eclip_lib as eclip
from eclip_lib import profiles


def test_parameters_replace_settings_and_are_remembered(tmp_path):
    run = eclip.load_profile(
        "demo", networks="RN50, ViT-B-32", datasets="coco2017", root="/a", pretrained=None, limit=3, out=str(tmp_path)
    )
    assert run.networks == ["RN50", "ViT-B-32"] and run.pretrained is None and run.out == tmp_path and run.replicates == {}
    assert set(run.changed) == {"networks", "datasets", "root", "pretrained", "limit"}
    assert run.title("RN50") == "RN50 (random weights)"
    assert eclip.load_profile("demo", networks=None, pretrained="profile", limit=400).changed == []


def test_a_profile_may_be_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((profiles.REPOSITORY / "eclip_lib/profiles/demo.yaml").read_text().replace("seed: 0", "seed: 7"))
    run = eclip.load_profile(path)
    assert (run.name, run.seed) == ("mine", 7) and run.out.name == "mine"


@pytest.mark.parametrize(
    "line, message",
    [
        ("colour: red", "unknown or missing keys .'colour'"),
        ("networks: []", "at least one network"),
        ("batch_size: 0", "batch_size must be"),
        ("batch_size: many", "batch_size must be"),
        ("datasets: [imagenet]", "no dataset 'imagenet'"),
        ("networks: [", "not readable YAML"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, line, message):
    path = tmp_path / "bad.yaml"
    key = line.split(":")[0]
    kept = [
        x
        for x in (profiles.REPOSITORY / "eclip_lib/profiles/demo.yaml").read_text().splitlines()
        if not x.startswith(f"{key}:")
    ]
    path.write_text("\n".join([*kept, line]))
    with pytest.raises(ValueError, match=message) as error:
        eclip.load_profile(path)
    assert "bad.yaml" in str(error.value)


def test_other_mistakes_are_named(monkeypatch):
    with pytest.raises(FileNotFoundError, match="no profile 'papr'"):
        eclip.load_profile("papr")
    with pytest.raises(ValueError, match="no parameter 'network'"):
        eclip.load_profile("demo", network="RN50")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        eclip.load_profile("paper")
    with pytest.raises(FileNotFoundError, match="VOCdevkit|root/"):
        eclip.load_profile("paper", device="cpu", root="voc2012=/nowhere").load_dataset("voc2012")


def test_the_regression_cell_sees_every_changed_number(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "REPOSITORY", tmp_path)
    run = eclip.load_profile("demo", out=str(tmp_path / "run"))
    table = pd.DataFrame({"network": ["a", "b"], "mIoU": [10.0, 20.0], "mSC": [-5.0, float("nan")]})
    run.save_table(table, "t")
    assert "no committed table" in run.check("t", 0.1)
    committed = tmp_path / "results" / "demo" / "tables" / "t.csv"
    committed.parent.mkdir(parents=True)

    def commit(t):
        t.to_csv(committed, index=False)

    commit(table.assign(mIoU=[10.05, 20]))
    assert run.check("t", 0.1) == "t: 2 rows agree with results/demo within 0.1"
    for other in (table.assign(mIoU=[10.2, 20]), table.assign(mSC=[-5, 1]), table.assign(network=["a", "c"]), table.iloc[:1]):
        commit(other)
        with pytest.raises(AssertionError, match="^t: "):
            run.check("t", 0.1)
    assert "not compared" in eclip.load_profile("demo", limit=5, out=str(tmp_path / "run")).check("t", 0.1)


def test_a_profiles_own_paths_start_at_the_repository(monkeypatch):
    monkeypatch.setattr(profiles.torch.cuda, "is_available", lambda: True)
    run = profiles.load_profile("paper")
    assert run.pairs == f"web:{profiles.REPOSITORY}/data/gcc3m/*.tar"
    assert run.masks["MoCo v3"] == "vit_base_patch16_224=vit-b-300ep.pth.tar"  # registered: found by its name
    assert run.masks["DINO"] == "vit_base_patch16_224.dino"
    assert profiles.load_profile("demo").pairs == "scenes:3000"
    assert profiles.load_profile("paper", pairs="csv:here.csv").pairs == "csv:here.csv"
