"""shift.py against slow loops written from design.md's definition."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import eclip_lib as eclip
from eclip_lib import shift
from eclip_lib.studies import semantic_shift as study
from eclip_lib.studies.controlled_scenes import conditions


def features(images=2, grid=(2, 3), width=5, seed=0):
    torch.manual_seed(seed)
    n = grid[0] * grid[1]
    return eclip.ImageFeatures(torch.randn(images, width), torch.randn(images, n, width), grid)


def pair(reads="tokens"):
    torch.manual_seed(9)
    return eclip.Projection(5, 4, 7, reads=reads).requires_grad_(False)


def slow_position(column, pooled):
    best, where = math.inf, None
    for token, value in enumerate(column):
        if abs(float(value) - float(pooled)) < best:  # the lowest token wins a tie
            best, where = abs(float(value) - float(pooled)), token
    return where


def slow_statistics(f, projection, foreground):
    for b in range(len(f.tokens)):
        values = projection.image(f.tokens[b])
        pooled = {"max": values.amax(0), "average": values.mean(0)}
        pooled["attention"] = projection.image(f.class_token[b])
        closest = lambda p: [slow_position(*both) for both in zip(values.T, p, strict=True)]  # noqa
        place = {name: closest(value) for name, value in pooled.items()}
        assert place["max"] == [int(column.argmax()) for column in values.T]
        result = {"B2F": 0, "F2B": 0, "same": 0}
        for top, other in zip(place["max"], place["attention"], strict=True):
            was, now = bool(foreground[b, top]), bool(foreground[b, other])
            result["B2F" if now and not was else "F2B" if was and not now else "same"] += 1
        result["tokens"] = sum(map(bool, foreground[b])) / len(foreground[b])
        for name in ("max", "attention"):
            result[f"on_{name}"] = sum(bool(foreground[b, p]) for p in place[name])
        for name, where in place.items():
            result[f"distinct_{name}"] = len(set(where)) / min(len(values), values.shape[1])
            cells = [[divmod(p, f.grid[1]) for p in places] for places in (where, place["max"])]
            steps = [math.dist(*both) for both in zip(*cells, strict=True)]
            result[f"distance_{name}"] = sum(steps) / len(steps)
        yield result


@pytest.mark.parametrize("seed", range(5))
def test_statistics_equal_the_slow_loop(seed):
    f, foreground = features(seed=seed), torch.rand(2, 6) < 0.5
    statistics, shifted = shift.shift_statistics(*shift.channels(f, pair()), foreground, f.grid)
    for b, slow in enumerate(slow_statistics(f, pair(), foreground)):
        assert {name: pytest.approx(float(v[b]), abs=1e-6) for name, v in statistics.items()} == slow
        assert int(shifted[b].sum()) == slow["B2F"] + slow["F2B"]


def test_the_lowest_token_wins_a_tie():
    values = torch.tensor([[[1.0, 0.0], [1.0, 2.0], [0.0, 2.0]]])
    assert shift.positions(values, values.amax(1)).tolist() == [[0, 1]]
    assert shift.positions(values, torch.tensor([[0.5, 1.0]])).tolist() == [[0, 0]]


def test_a_learned_pair_on_a_resnet_reads_the_last_stage():
    f = features()
    other = eclip.ImageFeatures(f.class_token, f.tokens + 100, f.grid, f.tokens)
    torch.testing.assert_close(shift.channels(other, pair("feature_map"))[0], shift.channels(f, pair())[0])


def test_a_token_is_foreground_when_over_half_of_it_is():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:2, :2] = True  # all of token 0
    mask[0, 2:4] = True  # half of token 1: no
    mask[2:, 4], mask[3, 5] = True, True  # three quarters of token 5
    assert shift.foreground_tokens(mask, None, (2, 3)).tolist() == [True, False, False, False, False, True]
    void = torch.zeros_like(mask)
    void[1, 2:4] = True  # what is left of token 1 is all foreground
    assert shift.foreground_tokens(mask, void, (2, 3)).tolist() == [True, True, False, False, False, True]


def test_left_out_channels_do_not_count():
    f, text = features(), torch.randn(3, 7)
    values, left_out = shift.channels(f, pair())[0], torch.rand(2, 7) < 0.4
    cosine = shift.without_channels(values, text, left_out)
    for b in range(2):
        keep = ~left_out[b]
        for t in range(3):
            slow = torch.cosine_similarity(values[b][:, keep], text[t][keep][None], dim=-1)
            torch.testing.assert_close(cosine[b, t], slow, atol=1e-5, rtol=1e-4)


def test_rows_agree_with_the_evaluation():
    clip, dataset = eclip.load_clip("scenes-ViT-32", None), eclip.load_dataset("scenes", limit=6)
    rows = study.shift_rows(dataset, clip, batch_size=4)
    scored = eclip.evaluate(eclip.explainer("clip", clip), dataset, clip)
    other = scored.groupby("image_id")["score_contrast"].mean()
    np.testing.assert_allclose(rows.set_index("image_id")["mSC"], other.loc[rows["image_id"]], atol=1e-4)
    assert (rows[["B2F", "F2B", "same"]].sum(axis=1) == 128).all() and (rows["distance_max"] == 0).all()
    rows = rows.assign(dataset="a", network="x")
    table = study.table_5(rows)
    assert list(table["size"]) == list(study.SIZES) and table["images"].iloc[:3].sum() == pytest.approx(100)
    assert study.table_5(rows, "background")["images"].iloc[3] == pytest.approx(100)


def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    x = rng.random(60)
    y = x + rng.random(60)
    rho, low, high = study.rank_correlation(x, y, resamples=200)
    assert rho == pytest.approx(spearmanr(x, y).statistic) and low < rho < high


def test_controlled_scenes_change_one_thing():
    made = conditions(count=4)
    for experiment in made.values():
        ids = [[e.image_id for e in dataset] for dataset in experiment.values()]
        assert all(i == ids[0] for i in ids)
    plain, busy = (made["background"][k][0] for k in ("plain", "busy"))
    assert all((plain.masks[n] == busy.masks[n]).all() for n in plain.masks)
    assert plain.image.tobytes() != busy.image.tobytes()
    areas = [sum(m.sum() for m in dataset[1].masks.values()) for dataset in made["size"].values()]
    assert areas == sorted(areas) and areas[2] > 3 * areas[0]
    assert [len(dataset[2].masks) for dataset in made["objects"].values()] == [1, 3]


def test_chance_by_hand():
    """Two images of ten channels: 4 and 2 of them on the foreground at max, 5 and 5 at attention."""
    rows = pd.DataFrame({"on_max": [4, 2], "on_attention": [5, 5], "tokens": [0.5, 0.1], "B2F": [3, 4]})
    rows = rows.assign(F2B=[2, 1], dataset="a", network="x", foreground=[0.5, 0.1])
    rows = rows.assign(same=10 - rows["B2F"] - rows["F2B"], shifted=50)
    table = study.chance_table(rows).set_index("size")
    assert list(table.index) == ["(0, 0.25]", "(0.25, 0.75]", "(0, 1]"] and table["images"].tolist() == [
        1,
        1,
        2,
    ]
    assert table["independent"].tolist() == pytest.approx([50, 50, 50])  # .4*.5 + .5*.6 and .2*.5 + .5*.8
    assert table["random"].tolist() == pytest.approx([18, 50, 34]) and (table["excess"].abs() < 1e-9).all()
    uneven = study.chance_table(rows.assign(on_attention=[4, 2])).set_index("size")
    assert uneven["independent"].tolist() == pytest.approx([32, 48, 40])
    assert uneven["excess"].tolist() == pytest.approx([18, 2, 10])


def test_the_papers_bins_fit_random_positions():
    found = study.random_foreground(eclip.reported("table_5"))
    assert found["shifted"].round(1).tolist() == [24.1, 48.5, 27.7, 37.8]
    assert found["f of random positions"].round(2).tolist() == [0.14, 0.41, 0.83, 0.25]


@pytest.mark.parametrize("turned, word", [(True, "semantic shift explains"), (False, "does not explain")])
def test_whether_shift_explains_is_computed(turned, word):
    ends = {f"{n}_{e}": s * v for n, s in (("rho", -1), ("gain", 1)) for e, v in (("low", 2), ("high", 2))}
    link = pd.DataFrame([ends | {"kept_low": 1 if turned else -2, "kept_high": 2 if turned else -1}])
    chance = pd.DataFrame([{"size": "(0, 1]", "excess_low": -2, "excess_high": -1}])
    said = study.verdict(chance, link)
    assert word in said and "would in 0, less often in 1" in said
