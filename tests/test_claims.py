"""Verdicts come from tables alone: a number changed in a table changes a verdict."""

import pytest

from eclip_lib.studies.claims import CLAIMS, HOLDS, NOT, UNKNOWN, judge, judge_all, report

GAINS = "dataset,network,mIoU,mIoU_low,mIoU_high"


def claim(says):
    return next(c for c in CLAIMS if says in c.says)


def write(folder, name, *lines):
    (folder / f"{name}.csv").write_text("\n".join(lines))


def test_without_tables_nothing_is_measured(tmp_path):
    verdicts = judge_all([tmp_path])
    assert set(verdicts["verdict"]) == {UNKNOWN} and len(verdicts) == len(CLAIMS) >= 25
    assert "0 holds, 0 does not hold" in report(verdicts, "here", [tmp_path])


@pytest.mark.parametrize("high, verdict", [(-1.0, HOLDS), (0.5, NOT)])
def test_a_sign_rests_on_the_whole_interval_of_every_case(tmp_path, high, verdict):
    rows = "a,x,-20,-22,-18", f"a,y,-3,-6,{high}"
    write(tmp_path, "table_1_clip", "dataset,network,mSC,mSC_low,mSC_high", *rows)
    found = judge(claim("CLIP's map is opposite on every network"), [tmp_path])
    assert found["verdict"] == verdict
    assert found["cases"] == ("2 of 2" if verdict == HOLDS else "1 of 2")
    assert found["exceptions"] == ("" if verdict == HOLDS else "a, y: 3.0 [-0.5, 6.0]")


@pytest.mark.parametrize("rclip, verdict", [(20.0, HOLDS), (20.5, NOT)])
def test_rclip_mirrors_clip(tmp_path, rclip, verdict):
    rows = "a,x,clip,-20,-21", f"a,x,rclip,{rclip},19"
    write(tmp_path, "table_2", "dataset,network,method,mSC,mSC_low", *rows)
    assert judge(claim("mSC of RCLIP is minus"), [tmp_path])["verdict"] == verdict


def test_the_first_folder_with_the_table_counts(tmp_path):
    ours, committed = tmp_path / "ours", tmp_path / "committed"
    for folder, low in ((ours, 1.0), (committed, -1.0)):
        folder.mkdir()
        write(folder, "table_1_gains", GAINS, f"a,x,2,{low},3")
    says = claim("ECLIP's mIoU is above CLIP's everywhere")
    assert judge(says, [ours, committed])["verdict"] == HOLDS
    assert judge(says, [tmp_path, committed])["verdict"] == NOT


@pytest.mark.parametrize("small, same, kept, dropped", [(85, True, HOLDS, NOT), (40, False, NOT, HOLDS)])
def test_recognition_and_its_drop(tmp_path, small, same, kept, dropped):  # 5 points are no serious drop
    rows = "a,x,CLIP,90,", f"a,x,ECLIP,90,{same}", f'a,x,"CLIP from random weights, scenes:3000",{small},'
    write(tmp_path, "table_4", "dataset,network,method,mAP,identical", *rows)
    assert judge(claim("recognition is unchanged"), [tmp_path])["verdict"] == kept
    assert judge(claim("training from random weights"), [tmp_path])["verdict"] == dropped


def test_the_report_shows_every_claim_and_existing_figures(tmp_path):
    write(tmp_path, "table_1_gains", GAINS, "a,x,2,1,3")
    (tmp_path / "table_1.png").touch()
    text = report(judge_all([tmp_path]), "in the demo world", [tmp_path])
    assert text.count("\n| ") == 2 + len(CLAIMS)
    assert "**holds in the demo world**" in text and "figures/table_1.png" in text
