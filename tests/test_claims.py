"""Verdicts come from tables alone: a number changed in a table changes a verdict."""

import pandas as pd
import pytest

from eclip_lib.claims import CLAIMS, HOLDS, NOT, UNKNOWN, judge, judge_all, report


def claim(says):
    return next(c for c in CLAIMS if says in c.says)


def write(folder, name, **columns):
    pd.DataFrame(columns).to_csv(folder / f"{name}.csv", index=False)


def test_without_tables_nothing_is_measured(tmp_path):
    verdicts = judge_all([tmp_path])
    assert set(verdicts["verdict"]) == {UNKNOWN} and len(verdicts) == len(CLAIMS) >= 25
    assert "0 holds, 0 does not hold" in report(verdicts, "here", [tmp_path])


@pytest.mark.parametrize("high, verdict", [(-1.0, HOLDS), (0.5, NOT)])
def test_a_sign_rests_on_the_whole_interval_of_every_case(tmp_path, high, verdict):
    write(
        tmp_path,
        "table_1_clip",
        dataset=["a", "a"],
        network=["x", "y"],
        mSC=[-20.0, -3.0],
        mSC_low=[-22.0, -6.0],
        mSC_high=[-18.0, high],
    )
    found = judge(claim("CLIP's map is opposite on every network"), [tmp_path])
    assert found["verdict"] == verdict
    assert found["cases"] == ("2 of 2" if verdict == HOLDS else "1 of 2")
    assert found["exceptions"] == ("" if verdict == HOLDS else "a, y: 3.0 [-0.5, 6.0]")


@pytest.mark.parametrize("rclip, verdict", [(20.0, HOLDS), (20.5, NOT)])
def test_rclip_mirrors_clip(tmp_path, rclip, verdict):
    columns = {
        "dataset": ["a", "a"],
        "network": ["x", "x"],
        "method": ["clip", "rclip"],
        "mSC": [-20.0, rclip],
        "mSC_low": [-21.0, 19.0],
    }
    write(tmp_path, "table_2", **columns)
    assert judge(claim("mSC of RCLIP is minus"), [tmp_path])["verdict"] == verdict


def test_the_first_folder_with_the_table_counts(tmp_path):
    ours, committed = tmp_path / "ours", tmp_path / "committed"
    for folder, low in ((ours, 1.0), (committed, -1.0)):
        folder.mkdir()
        write(folder, "table_1_gains", dataset=["a"], network=["x"], mIoU=[2.0], mIoU_low=[low], mIoU_high=[3.0])
    says = claim("ECLIP's mIoU is above CLIP's everywhere")
    assert judge(says, [ours, committed])["verdict"] == HOLDS
    assert judge(says, [tmp_path, committed])["verdict"] == NOT


def test_recognition_and_its_drop(tmp_path):
    small = "CLIP from random weights, scenes:3000"
    columns = {
        "dataset": ["a"] * 3,
        "network": ["x"] * 3,
        "method": ["CLIP", "ECLIP", small],
        "mAP": [90.0, 90.0, 85.0],
        "identical": ["", True, ""],
    }
    write(tmp_path, "table_4", **columns)
    assert judge(claim("recognition is unchanged"), [tmp_path])["verdict"] == HOLDS
    assert judge(claim("training from random weights"), [tmp_path])["verdict"] == NOT  # 5 points are no serious drop
    columns |= {"mAP": [90.0, 90.0, 40.0], "identical": ["", False, ""]}
    write(tmp_path, "table_4", **columns)
    assert judge(claim("recognition is unchanged"), [tmp_path])["verdict"] == NOT
    assert judge(claim("training from random weights"), [tmp_path])["verdict"] == HOLDS


def test_the_report_shows_every_claim_and_existing_figures(tmp_path):
    write(tmp_path, "table_1_gains", dataset=["a"], network=["x"], mIoU=[2.0], mIoU_low=[1.0], mIoU_high=[3.0])
    (tmp_path / "table_1.png").touch()
    text = report(judge_all([tmp_path]), "in the demo world", [tmp_path])
    assert text.count("\n| ") == 2 + len(CLAIMS) and "**holds in the demo world**" in text and "figures/table_1.png" in text
