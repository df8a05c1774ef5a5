"""evaluation: the evaluator and what its rows say, against slow versions written from §4.1."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import eclip_lib as eclip
from eclip_lib import evaluation, files
from eclip_lib.datasets import Dataset, Example
from eclip_lib.evaluation.evaluator import COLUMNS, KEYS, SCORES, read_rows


@pytest.fixture(scope="module")
def clip():
    return eclip.load_clip("scenes-ViT-32", None)


class Hand(Dataset):
    """Images of two sizes, a void, an unnamed class, one without masks, one all foreground."""

    name, classes = "hand", ["circle", "square"]

    def __init__(self):
        rng = np.random.default_rng(0)
        self.items = []
        for k, (w, h) in enumerate([(40, 30), (50, 60), (40, 30), (40, 30), (40, 30)]):
            image = Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8))
            mask = np.zeros((h, w), bool)
            mask[5:15, 5 : 20 + k] = True
            masks = {"circle": mask, "square": np.roll(mask, 10, 0)}
            masks = [masks, {"square": mask}, {"square": mask}, {}, {"circle": np.ones_like(mask)}][k]
            void = np.zeros((h, w), bool)
            void[:, -3:] = k == 1
            self.items.append(Example(f"image{k}", image, masks, void if k < 2 else None))

    def example(self, item):
        return item


@torch.no_grad()
def slow_rows(clip, dataset):
    for e in dataset:
        for name, mask in e.masks.items():
            text = clip.encode_text([f"a photo of the {name}"])
            cells = eclip.similarity(clip.encode_image(clip.preprocess(e.image)[None]), text, clip.projection)
            heat = eclip.itsm(cells, mask.shape)[0, 0].numpy()
            valid = np.ones_like(mask) if e.void is None else ~e.void
            shown = [heat >= np.float32(k / 100) for k in range(101)]
            iou = [(p & mask & valid).sum() / ((p | mask) & valid).sum() for p in shown]
            inside, outside = heat[mask & valid], heat[~mask & valid]
            contrast = inside.mean(dtype=float) - outside.mean(dtype=float) if len(outside) else np.nan
            numbers = max(iou), np.argmax(iou) / 100, contrast, (mask & valid).sum() / valid.sum()
            yield e.image_id, name, *numbers


@pytest.mark.parametrize("workers, batch_size", [(0, 32), (0, 2), (2, 1)])
def test_evaluate_equals_the_slow_loop(clip, workers, batch_size):
    rows = eclip.evaluate(eclip.explainer("clip", clip), Hand(), clip, workers, batch_size)
    slow = pd.DataFrame(slow_rows(clip, Hand()), columns=[*KEYS, *SCORES])
    assert list(rows) == COLUMNS and rows[["method", "seed"]].isna().all(axis=None)
    assert set(rows["dataset"]) == {"hand"} and set(rows["network"]) == {"scenes-ViT-32 (random weights)"}
    rows, slow = (r.sort_values(KEYS).reset_index(drop=True) for r in (rows, slow))
    pd.testing.assert_frame_equal(rows[KEYS], slow[KEYS])
    np.testing.assert_allclose(rows[SCORES], slow[SCORES], atol=2e-3, equal_nan=True)


def test_several_explainers_in_one_pass_score_as_each_alone(clip):
    dataset, pair = eclip.load_dataset("scenes", limit=5), clip.projection
    named = {key: eclip.explainer(key, clip) for key in ("clip", "rclip", "mask_clip", "bi_model")}
    named |= {("eclip", seed): eclip.explainer("eclip", clip, projection=pair) for seed in (3, 4)}
    named["plain"] = lambda images, text: torch.ones(len(images), len(text), 7, 7).cumsum(2)
    calls = []
    hook = clip.model.visual.conv1.register_forward_hook(lambda *_: calls.append(1))
    together = eclip.evaluate(named, dataset, clip)
    hook.remove()
    assert len(calls) == 1  # one forward pass for all of the library's
    assert list(together["method"].unique()) == ["clip", "rclip", "mask_clip", "bi_model", "eclip", "plain"]
    for key, explain in named.items():
        method, seed = key if isinstance(key, tuple) else (key, None)
        part = together[(together["method"] == method) & (together["seed"].isin([seed]) | (seed is None))]
        alone = eclip.evaluate(explain, dataset, clip)[KEYS + SCORES]
        pd.testing.assert_frame_equal(part[KEYS + SCORES].reset_index(drop=True), alone)


def test_rclip_is_the_exact_opposite(clip):  # mSC(RCLIP) = -mSC(CLIP), Table 2
    both = {method: eclip.explainer(method, clip) for method in ("clip", "rclip")}
    rows = eclip.evaluate(both, eclip.load_dataset("scenes", limit=10), clip)
    ours, reverse = (eclip.summarize(part) for _, part in rows.groupby("method"))
    assert ours.mSC == pytest.approx(-reverse.mSC, abs=1e-3)


def test_pairs_are_asked_for_where_an_explainer_offers_them(clip):
    asked = []

    class Pairs:
        def pairs(self, images, text, index):
            asked.append((len(images), index.tolist()))
            return torch.rand(len(index), 7, 7)

    rows = eclip.evaluate(Pairs(), Hand(), clip)
    expected = [(4, [[0, 0], [0, 1], [1, 1], [2, 1], [3, 0]])]  # the image without masks is left out
    assert asked == expected and len(rows) == 5


def test_summary_by_hand():
    rows = pd.DataFrame(
        [("a", "x", 0.2, 0, -0.1, 0.1), ("b", "x", 0.4, 0, 0.3, 0.3), ("b", "y", 0.9, 0, np.nan, 1.0)],
        columns=[*KEYS, *SCORES],
    )
    s = eclip.summarize(rows)
    assert (s.mIoU, s.mIoU_pairs) == (pytest.approx(60), pytest.approx(50))
    assert (s.mSC, s.mSC_pairs, s.no_contrast) == (pytest.approx(10), pytest.approx(10), 1)
    assert s.floor == pytest.approx(60) and (s.images, s.pairs) == (2, 3)
    with pytest.raises(ValueError, match="no rows"):
        eclip.summarize(rows.iloc[:0])


@pytest.fixture
def rows():
    """Tidy rows of two datasets: CLIP once, ECLIP from two seeds; one pair in twenty has no contrast."""
    rng = np.random.default_rng(1)
    parts = []
    for dataset, (method, seed) in product("ba", [("CLIP", None), ("ECLIP", 0), ("ECLIP", 1)]):
        part = pd.DataFrame({"image_id": np.repeat(np.arange(30), 2), "class_name": ["x", "y"] * 30})
        part[SCORES] = rng.random((60, 4)) + (method == "ECLIP") * 0.1
        part.loc[::20, "score_contrast"] = np.nan
        parts.append(part.assign(dataset=dataset, network="N", method=method, seed=seed))
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def class_mean(rows, value):
    pairs = [(k, v) for k, v in zip(rows["class_name"], rows[value], strict=True) if v == v]
    kinds = [[v for k, v in pairs if k == name] for name in "xy"]
    return 100 * sum(sum(kind) / len(kind) for kind in kinds) / 2


def slow_draws(rows, value, draws, seed):
    """Class means over images drawn with replacement, image by image."""
    weights = np.random.default_rng(seed).multinomial(30, np.full(30, 1 / 30), size=draws)
    images = [rows[rows["image_id"] == number] for number in range(30)]
    again = (pd.concat([images[i] for i, n in enumerate(w) for _ in range(n)]) for w in weights)
    return np.array([class_mean(part, value) for part in again])


def test_a_table_has_a_line_a_group_with_bootstrap_intervals_over_whole_images(rows):
    measures = ["mIoU", "floor", "mSC", "mSC_low", "mSC_high"]
    table = evaluation.table(rows, ("dataset", "method", "seed"), measures, 3)
    keys = [("b", "CLIP"), ("b", "ECLIP"), ("b", "ECLIP"), ("a", "CLIP"), ("a", "ECLIP"), ("a", "ECLIP")]
    assert list(zip(table["dataset"], table["method"], strict=True)) == keys
    part = rows[(rows["dataset"] == "a") & (rows["method"] == "ECLIP") & (rows["seed"] == 0)]
    slow = slow_draws(part, "score_contrast", 50, 3)
    np.testing.assert_allclose(eclip.bootstrap(part, "score_contrast", 50, 3), slow)
    ends = np.percentile(eclip.bootstrap(part, "score_contrast", 1000, 3), [2.5, 97.5])
    values = [class_mean(part, value) for value in ("iou", "foreground", "score_contrast")]
    np.testing.assert_allclose(table.loc[4, measures].astype(float), [*values, *ends])


def test_gains_are_paired_over_images(rows):
    rows = rows[rows["seed"] != 1]
    table = evaluation.gains(rows, [("ECLIP", "CLIP"), ("ECLIP", "nobody")], seed=2, resamples=40)
    keys = ["dataset", "network", "better", "than"]
    assert table[keys].values.tolist() == [[dataset, "N", "ECLIP", "CLIP"] for dataset in "ba"]
    for (_, line), dataset in zip(table.iterrows(), "ba", strict=True):
        part = rows[rows["dataset"] == dataset]
        ours, own = (part[part["method"] == method] for method in ("ECLIP", "CLIP"))
        for measure, value in (("mIoU", "iou"), ("mSC", "score_contrast")):
            draws = slow_draws(ours, value, 40, 2) - slow_draws(own, value, 40, 2)
            low, high = np.percentile(draws, [2.5, 97.5])
            gain = class_mean(ours, value) - class_mean(own, value)
            found = line[[measure, f"{measure}_low", f"{measure}_high"]].astype(float)
            np.testing.assert_allclose(found, [gain, low, high])


def test_gains_of_poolings_are_paired_by_training():
    seeds = {"dataset": "d", "network": "n", "pooling": [*"ppqqp"], "seed": [0, 1, 1, 0, 2]}
    seeds |= {"mIoU": [1.0, 5, 2, 0, 9], "mSC": [3.0, 6, 6, 1, 9]}
    (line,) = evaluation.training_gains(pd.DataFrame(seeds), [("p", "q"), ("p", "r")]).to_dict("records")
    assert [line[key] for key in ("dataset", "network", "better", "than")] == [*"dnpq"]
    half = 12.706205 * 1.0  # t of one degree of freedom, by the standard error of 1 and 3
    found = [line[f"mIoU{end}"] for end in ("", "_low", "_high")]
    assert found == pytest.approx([2, 2 - half, 2 + half]) and line["mSC"] == 1
    assert evaluation.training_gains(pd.DataFrame(seeds).head(0), [("p", "q")]).empty


def test_what_trainings_and_intervals_say_by_hand():
    seeds = {"dataset": "d", "network": "n", "pooling": [*"pqp"], "mIoU": [1.0, 5, 4], "mSC": [3.0, 6, 0]}
    spread = evaluation.over_trainings(pd.DataFrame(seeds))
    expected = ["d", "n", "p", 2, 2.5, 1, 4, 1.5, 0, 3], ["d", "n", "q", 1, 5, 5, 5, 6, 6, 6]
    assert spread.values.tolist() == [*expected]
    assert list(spread)[3:] == ["seeds", "mIoU", "mIoU_min", "mIoU_max", "mSC", "mSC_min", "mSC_max"]
    said = [evaluation.in_words(*ends) for ends in ((0.1, 2), (-2, -0.1), (-1, 1), (0, 1), (-1, 0))]
    assert said == ["above", "below", "undecided", "undecided", "undecided"]
    assert evaluation.in_words(1, 2, "up") == "up" and evaluation.in_words(-1, 1, undecided="open") == "open"


def test_intervals_of_a_mean_equal_slow_versions():
    values, rng = [3.0, 1, np.nan, 4, 1.5], np.random.default_rng(5)
    known, t_of_3 = [v for v in values if v == v], 3.182446305
    means = [sum(known[i] for i in draw) / 4 for draw in rng.integers(0, 4, (1000, 4))]
    mean, ends = sum(known) / 4, np.percentile(means, [2.5, 97.5])
    assert evaluation.mean_interval(values, seed=5) == pytest.approx((mean, *ends))
    half = t_of_3 * (sum((v - mean) ** 2 for v in known) / 3 / 4) ** 0.5
    assert evaluation.t_interval(known) == pytest.approx((mean, mean - half, mean + half))
    assert np.isnan(evaluation.t_interval([2.0])[1:]).all()


def test_recognition_is_clips_own_score(clip):
    dataset = eclip.load_dataset("scenes", limit=6)
    scores, labels, mAP = eclip.recognize(dataset, clip)
    with torch.no_grad():
        images = torch.stack([clip.preprocess(example.image) for example in dataset])
        image = clip.model.encode_image(images, normalize=True)
        prompts = clip.tokenizer([f"a photo of the {n}" for n in dataset.classes])
        own = image @ clip.model.encode_text(prompts, normalize=True).T
    np.testing.assert_allclose(scores, own, atol=1e-5)
    assert labels.sum() == sum(len(e.masks) for e in dataset) and 0 <= mAP <= 100


def test_an_unknown_class_and_an_empty_dataset_are_refused(clip):
    dataset = Hand()
    dataset.classes = ["circle"]
    with pytest.raises(ValueError, match="image0: masks of unknown classes"):
        eclip.evaluate(eclip.explainer("clip", clip), dataset, clip)
    dataset.items = []
    with pytest.raises(ValueError, match="empty"):
        eclip.evaluate(eclip.explainer("clip", clip), dataset, clip)
    with pytest.raises(ValueError, match="no method 'lime'"):
        eclip.explainer("lime", clip)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_an_image_twice_is_named_and_words_that_look_like_nothing_stay(batch_size, clip, tmp_path):
    dataset = Hand()
    rows = eclip.evaluate(eclip.explainer("clip", clip), dataset, clip).assign(
        class_name="None", image_id="NA"
    )
    files.write(tmp_path / "rows.csv", files.as_csv(rows, index=False))
    read = read_rows(tmp_path / "rows.csv")
    assert (read["class_name"] == "None").all() and (read["image_id"] == "NA").all()
    assert read["score_contrast"].isna().sum() == 1 and read["iou"].equals(rows["iou"])
    with pytest.raises(ValueError, match="a map is not of finite numbers"):
        eclip.evaluate(lambda images, text: torch.full((len(images), 2, 7, 7), torch.nan), dataset, clip)
    dataset.items.append(dataset.items[0])
    with pytest.raises(ValueError, match="image id 'image0' is there twice"):
        eclip.evaluate(eclip.explainer("clip", clip), dataset, clip, batch_size=batch_size)
