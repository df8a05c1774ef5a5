"""Verdicts come from tables alone: hand-made tables whose right verdict is obvious."""

import pandas as pd
import pytest

from eclip_lib.studies import claims
from eclip_lib.studies.claims import CLAIMS, VERDICTS, judge, judge_all
from eclip_lib.studies.report import report

GAINS = "dataset,network,better,than,mIoU,mIoU_low,mIoU_high"
FACTS = {"profile": "demo", "commit": "0123456789abcdef", "tree": "as committed", "device": "cpu"}
FACTS |= {"datasets": {"scenes": 8}, "changed": ["limit"], "dropped": []}
SEEDS = "dataset,network,pooling,seed,mIoU,mSC"


def write(folder, name, *lines):
    (folder / f"{name}.csv").write_text("\n".join(lines))


@pytest.fixture
def verdict(tmp_path):
    """The judgement of the claim that says so, on what was written to `tmp_path`."""
    return lambda says: judge(next(c for c in CLAIMS if says in c.says), [tmp_path])


def counts(found):
    return found["above"], found["undecided"], found["below"]


def test_without_tables_nothing_is_measured(tmp_path):
    verdicts = judge_all([tmp_path])
    assert set(verdicts["verdict"]) == {"not measured"} and len(verdicts) == len(CLAIMS) >= 30
    assert len({claim.says for claim in CLAIMS}) == len(CLAIMS)
    assert "- supported: 0" in report(verdicts, "here", [tmp_path], {})


UP, OPEN, DOWN = "5,4,6", "1,-1,3", "-5,-6,-4"


@pytest.mark.parametrize(
    "cases, word",
    [
        ([UP], "supported"),
        ([UP, UP, OPEN], "mostly"),
        ([UP, OPEN], "undecided"),
        ([OPEN], "undecided"),
        ([UP, UP, UP, DOWN], "mixed"),
        ([OPEN, DOWN], "undecided"),
        ([OPEN, DOWN, DOWN], "mostly contradicted"),
        ([DOWN, DOWN], "contradicted"),
    ],
)
def test_a_verdict_rests_on_the_whole_interval_of_every_case(tmp_path, verdict, cases, word):
    write(tmp_path, "table_2_gains", GAINS, *(f"a,n{k},rclip,bi_model,{c}" for k, c in enumerate(cases)))
    found = verdict("RCLIP beats Bi-Model")
    assert found["verdict"] == word and word in VERDICTS
    assert counts(found) == tuple(cases.count(kind) for kind in (UP, OPEN, DOWN))
    assert found["intervals"] == len(cases) and found["unit"] == "images"
    if DOWN in cases:
        assert f"a, n{cases.index(DOWN)}, Bi-Model: -5.0 [-6.0, -4.0]" in found["not above"]


@pytest.mark.parametrize(
    "seeds, word",
    [
        ((20, 21, 22), "supported"),  # t of 2 degrees of freedom: 21 ± 2.5
        ((-20, -21, -22), "contradicted"),
        ((1, 2, 12), "undecided"),  # 5 ± 15.1, where a bootstrap over 3 would say above
        ((20,), "undecided"),  # one training decides nothing
    ],
)
def test_what_training_does_is_judged_over_trainings(tmp_path, verdict, seeds, word):
    write(tmp_path, "table_3_seeds", SEEDS, *(f"a,x,max,{k},9,{value}" for k, value in enumerate(seeds)))
    found = verdict("max pooling turns the map")
    assert (found["verdict"], found["unit"]) == (
        word,
        f"{len(seeds)} training{'s' * (len(seeds) > 1)} of a pair",
    )
    assert found["intervals"] == (len(seeds) > 1) and found["value"] == pytest.approx(sum(seeds) / len(seeds))


def test_a_difference_of_poolings_is_paired_by_training_and_both_readings_count(tmp_path, verdict):
    rows = [
        f'a,x,"{p}",{k},{10 * k + up},0' for k in range(3) for p, up in (("max", 0), ("max, mask: DINO", 5))
    ]
    write(tmp_path, "table_3_seeds", SEEDS, *rows)
    found = verdict("DINO's mask improves on max")
    assert (found["verdict"], found["value"], counts(found)) == ("supported", 5, (1, 0, 0))
    write(tmp_path, "resnet_seeds", SEEDS, *(row.replace("a,x", "a,rn (tokens)") for row in rows[:4]))
    assert counts(verdict("DINO's mask improves on max")) == (2, 0, 0)


@pytest.mark.parametrize("other, word", [("10", "supported"), ("50", "contradicted"), ("31", "undecided")])
def test_eclip_is_compared_over_its_trainings(tmp_path, verdict, other, word):
    rows = [f'a,x,"{pooling}",{k},{30 + k},0' for pooling in ("max", "max, mask: DINO") for k in range(3)]
    write(tmp_path, "table_3_seeds", SEEDS, *rows)
    write(
        tmp_path,
        "table_1",
        "dataset,network,method,mIoU,mIoU_low",
        f"a,x,clip,{other},1",
        "average,x,clip,5,",
    )
    assert verdict("ECLIP's mIoU is above CLIP's")["verdict"] == word


def test_the_papers_exception_needs_its_network_and_dataset(tmp_path, verdict):
    rows = [f'coco2017,ViT-B-16,"max, mask: DINO",{k},{20 + 0.1 * k},0' for k in range(3)]
    write(tmp_path, "table_3_seeds", SEEDS, *rows)
    write(tmp_path, "table_2", "dataset,network,method,mIoU,mIoU_low", "scenes,ViT-B-16,rclip,30,29")
    found = verdict("the paper's own exception")
    assert found["verdict"] == "not testable here" and "COCO" in found["not above"]
    write(tmp_path, "table_2", "dataset,network,method,mIoU,mIoU_low", "coco2017,ViT-B-16,rclip,30,29")
    assert verdict("the paper's own exception")["verdict"] == "supported"


@pytest.mark.parametrize("best, word", [("ViT-B-32", "supported"), ("RN50", "contradicted")])
def test_best_and_worst_need_all_five_networks(tmp_path, verdict, best, word):
    mean = {"RN50": 25, "RN101": 26, "ViT-B-32": 30, "ViT-B-16": 20, "ViT-L-14": 24, best: 35}
    rows = [f'a,{n},"max, mask: DINO",{k},0,{v + 0.1 * k}' for n, v in mean.items() for k in range(3)]
    write(tmp_path, "table_3_seeds", SEEDS, *rows)
    assert verdict("ViT-B/32 is the best")["verdict"] == word
    write(tmp_path, "table_3_seeds", SEEDS, *rows[:9])
    assert verdict("ViT-B/32 is the best")["verdict"] == "not testable here"


@pytest.mark.parametrize("rclip, word", [(20.0, "by construction"), (20.5, "contradicted")])
def test_rclip_mirrors_clip(tmp_path, verdict, rclip, word):
    write(
        tmp_path, "table_2", "dataset,network,method,mSC,mSC_low", "a,x,clip,-20,-21", f"a,x,rclip,{rclip},19"
    )
    found = verdict("mSC of RCLIP is minus")
    assert found["verdict"] == word and found["intervals"] == 0


@pytest.mark.parametrize("same, word", [(True, "by construction"), (False, "contradicted")])
def test_recognition_and_its_drop(tmp_path, verdict, same, word):
    rows = "a,x,CLIP,90,", f"a,x,ECLIP,90,{same}", 'a,x,"CLIP from random weights, scenes:3000",40,'
    write(tmp_path, "table_4", "dataset,network,method,mAP,identical", *rows)
    assert verdict("recognition is unchanged")["verdict"] == word
    dropped = verdict("training from random weights")  # one training: a number, no verdict
    assert (dropped["verdict"], dropped["value"], dropped["intervals"]) == ("undecided", 40, 0)
    assert dropped["not above"] == "a, x: 40.0"


@pytest.mark.parametrize("name, lines, says, word", [
    ("table_5_chance", ("dataset,network,size,images,shifted", 'a,x,"(0.25, 0.75]",20,45', 'b,x,"(0.25, 0.75]",19,5', 'a,x,"(0, 1]",99,5'), "about half", "supported"),
    ("table_5_chance", ("dataset,network,size,images,shifted", 'a,x,"(0.25, 0.75]",20,20'), "about half", "contradicted"),
    ("table_5_chance", ("dataset,network,size,excess,excess_low,excess_high", 'a,x,"(0, 1]",-2,-3,-1', 'a,x,"(0, 0.25]",9,8,10'), "than chance", "contradicted"),
    ("shift_correlation", ("dataset,network,rho,rho_low,rho_high", "a,x,-.3,-.4,-.2", "a,y,.3,.2,.4"), "more of it are more opposite", "mixed"),
    ("shift_ablation", ("dataset,network,mSC_kept,kept_low,kept_high", "a,x,-9,-11,-8"), "shifted channels the map turns", "contradicted"),
    ("figure_11", ("dataset,network,method,grid,likeness,likeness_low,likeness_high,roughness", "a,x,bi_model,7,.1,.0,.2,0", "a,y,bi_model,14,.97,.95,.99,0"), "look alike", "supported"),
    ("figure_11", ("dataset,network,method,grid,roughness", "a,y,eclip,14,.1", "a,x,eclip,7,.2"), "smoother", "contradicted"),
    ("clip_seeds", ("dataset,network,training,mSC", "a,x,seed0,-20", "a,x,seed1,-22", "a,x,seed2,-21"), "every training", "supported"),
])  # fmt: skip
def test_the_other_kinds_of_cases(tmp_path, verdict, name, lines, says, word):
    write(tmp_path, name, *lines)
    assert verdict(says)["verdict"] == word


def test_the_first_folder_with_the_table_counts(tmp_path):
    ours, committed = tmp_path / "ours", tmp_path / "committed"
    for folder, low in ((ours, 4), (committed, -4)):
        folder.mkdir()
        write(folder, "table_2_gains", GAINS, f"a,x,rclip,bi_model,2,{low},6")
    claim = next(c for c in CLAIMS if "RCLIP beats Bi-Model" in c.says)
    assert judge(claim, [ours, committed])["verdict"] == "supported"
    assert judge(claim, [tmp_path, committed])["verdict"] == "undecided"


def test_the_report_shows_every_claim_and_its_figures_carry_the_verdict(tmp_path):
    write(tmp_path, "shift_correlation", "dataset,network,rho,rho_low,rho_high", "a,x,.3,.2,.4")
    (tmp_path / "shift_against_mSC.png").touch()
    text = report(judge_all([tmp_path]), "in the demo world", [tmp_path], FACTS)
    said = "profile demo, commit 0123456789ab (as committed), cpu; 8 images of scenes. Changed of the profile: limit."
    assert said in text
    assert text.count("\n| ") == 2 + len(CLAIMS)
    assert "**contradicted**" in text and "more opposite”: contradicted in the demo world" in text
    assert "1 intervals" in text and claims.CLAIMS[-1].because in text


@pytest.mark.parametrize("low, word", [(-30, "supported"), (-12, "undecided"), (5, "contradicted")])
def test_max_pooling_from_scratch_is_judged_by_arms_of_the_runs_networks(tmp_path, verdict, low, word):
    columns = "dataset,network,pool,measure,trainings,value,value_low,value_high"
    lines = f"a,x,max,mAP,3,{low + 4},{low},{low + 8}", "a,x,max,mSC,3,9,8,10", "a,x,average,mAP,3,9,8,10"
    write(tmp_path, "causes_pooling_gains", columns, *lines)
    write(tmp_path, "table_4", "dataset,network,method,mAP,identical", "a,x,CLIP,90,")
    found = verdict("from scratch with max pooling")
    assert (found["verdict"], found["unit"], counts(found)[0]) == (
        word,
        "3 trainings of CLIP",
        word == "supported",
    )
    write(tmp_path, "table_4", "dataset,network,method,mAP,identical", "a,y,CLIP,90,")
    assert verdict("from scratch with max pooling")["verdict"] == "not testable here"


@pytest.mark.parametrize("fine, word", [(30, "supported"), (48, "contradicted")])
def test_a_larger_output_is_judged_over_eclips_trainings(tmp_path, verdict, fine, word):
    rows = [
        f'a,{n},"max, mask: DINO",{k},{v + 0.1 * k * v},0'
        for n, v in (("c", 50), ("f", 45))
        for k in range(3)
    ]
    write(tmp_path, "table_3_seeds", SEEDS, *rows)  # loses 5, 5.5, 6
    other = "a,c,bi_model,50,49", f"a,f,bi_model,{fine},29", "average,c,bi_model,9,"
    write(tmp_path, "table_2", "dataset,network,method,mIoU,mIoU_low", *other)
    write(tmp_path, "figure_11", "network,method,grid", "f,eclip,14", "c,eclip,7")
    found = verdict("a larger output costs")
    assert (found["verdict"], found["unit"]) == (word, "3 trainings of a pair")
    assert found["value"] == pytest.approx(50 - fine - 5.5)
    said = claims.answer(pd.DataFrame([found]), "here")
    assert said == f"Of 1 claims here:\n{word}, 1: a larger output costs Bi-Model more than ECLIP"
