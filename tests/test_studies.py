"""A run's features, pairs and rows, made once and keyed by contents; what notebooks 01 to 06 make of them."""

import os
import re

import numpy as np
import pandas as pd
import pytest
import torch
from export import write_voc
from PIL import Image

import eclip_lib as eclip
from eclip_lib import datasets, evaluation, experiment, files
from eclip_lib.datasets import image_text, scenes
from eclip_lib.networks.attention import ClipAttention, center_prior, noise, pixel_saliency
from eclip_lib.poolings import GROUND_TRUTH, Pooling
from eclip_lib.studies import (
    attention_quality,
    benchmarks,
    controls,
    dino_backbone,
    mmp_training,
    pooling_ablation,
    quoted,
    sheets,
    shift_figures,
)
from eclip_lib.studies.itsm_discovery import over_clips, pixel_shares


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = {"networks": "scenes-ViT-32", "limit": 6, "pairs": "scenes:60"}
    return eclip.load_profile("demo", **settings, out=tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def clip(run):
    return run.load_clip("scenes-ViT-32")


@pytest.fixture(scope="module")
def cache(run, clip):
    return run.features(clip, {GROUND_TRUTH: True, "CLIP's own": ClipAttention(clip)})


@pytest.fixture
def calls(monkeypatch):
    """How often a run really trains and evaluates."""
    counts = {}

    def counted(name, work):
        def call(*args, **options):
            counts[name] = counts.get(name, 0) + 1
            return work(*args, **options)

        monkeypatch.setattr(experiment, name, call)

    counted("train_pairs", experiment.train_pairs), counted("evaluate", experiment.evaluate)
    return counts


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# ---------------------------------------------------------------------- once


def test_a_pooling_is_what_its_text_says():
    masked = ("masked_max", "a: b/c")
    parts = ("average",), ("average", None, "tokens"), masked, (*masked, "tokens")
    texts = ["average", "tokens/average", "masked_max:a: b/c", "tokens/masked_max:a: b/c"]
    every = [Pooling(*part) for part in parts]
    assert [str(p) for p in every] == texts and [Pooling.of(t) for t in texts] == every
    assert Pooling.of(every[0]) is every[0]
    assert [p.label for p in every] == ["average"] * 2 + ["max, mask: a: b/c"] * 2
    for wrong in ("mean", "masked_max", "max:DINO", "tokens/"):
        with pytest.raises(ValueError, match="no pooling"):
            Pooling.of(wrong)


def test_a_pair_is_trained_once_and_again_when_something_changes(run, clip, cache, calls):
    first = run.train(clip, cache, "max", epochs=5)
    again = run.train(clip, cache, Pooling("max"), epochs=5)
    assert calls == {"train_pairs": 1}
    assert equal(first.pair, again.pair) and first.pair.metadata == again.pair.metadata
    pd.testing.assert_frame_equal(first.losses, again.losses)
    assert list(first.snapshots) == [1, 2, 5] and equal(first.snapshots[5], first.pair)
    assert not equal(first.snapshots[1], first.pair)
    other = run.features(clip, {}, "scenes:61")
    changes = {"cache": other}, {"pooling": "average"}, {"seed": 1}, {"init": "clip"}, {"lr": 0.002}
    for count, change in enumerate(changes, 2):
        options = {"cache": cache, "pooling": "max", "epochs": 5} | change
        changed = run.train(clip, options.pop("cache"), options.pop("pooling"), **options)
        assert calls["train_pairs"] == count and not equal(changed.pair, first.pair)
    for note in run.out.glob("trained/*/losses.csv"):  # trainings that were broken off before their end
        note.unlink()
    assert equal(run.train(clip, cache, "max", epochs=5).pair, first.pair) and calls["train_pairs"] == 7


@pytest.mark.filterwarnings("ignore:scenes-RN never saw")
def test_rows_are_measured_once_and_again_when_contents_change(tmp_path, run, calls):
    write_voc(tmp_path, [eclip.load_dataset("scenes")[i] for i in range(3)])
    torch.manual_seed(0)
    pairs = {reads: eclip.Projection(384, 128, 128, reads=reads) for reads in ("tokens", "feature_map")}
    pairs["feature_map"].load_state_dict(pairs["tokens"].state_dict())
    clip, pair = eclip.load_clip("scenes-RN"), pairs["tokens"]

    def measure(new, clip=clip, pair=pair, method="CLIP", **options):
        """Rows, after a look that they were measured anew or not."""
        methods = {method: eclip.explainer("clip", clip)}
        methods["ECLIP", 1] = eclip.explainer("eclip", clip, projection=pair)
        count = calls.get("evaluate", 0)
        rows = run.evaluate(clip, eclip.load_dataset("voc2012", tmp_path), methods, **options)
        assert (calls["evaluate"] - count, list(rows["method"].unique())) == (new, [method, "ECLIP"])
        return rows

    first = measure(1)
    assert list(first) == [*evaluation.evaluator.COLUMNS, "iou_image"]
    assert first["seed"].isin([1]).sum() == len(first) / 2
    pd.testing.assert_frame_equal(measure(0), first)
    assert measure(0, method="another name")["iou"].equals(first["iou"])  # a name is a label, no key
    measure(1, observe=lambda *_: None)
    other = measure(1, pair=pairs["feature_map"])  # the same weights, read from other features
    assert other["iou"][: len(first) // 2].equals(first["iou"][: len(first) // 2])
    assert not other["iou"].equals(first["iou"])
    with torch.no_grad():
        pairs["tokens"].text.weight[0, 0] += 1e-6
    measure(1)
    state = eclip.load_clip("scenes-RN").model.state_dict()
    state["visual.conv1.weight"].view(torch.int32)[0, 0, 0, 0] ^= 1  # one bit
    torch.save(state, tmp_path / "scenes-RN-seed0.pt")  # as the bundled file is called
    measure(1, eclip.load_clip("scenes-RN", tmp_path / "scenes-RN-seed0.pt"))
    one, two = sorted(tmp_path.rglob("SegmentationClass/*.png"))[:2]
    os.utime(one, ns=(1, 1))
    measure(1), measure(0)
    one.write_bytes(two.read_bytes())
    assert not measure(1)["iou"].equals(first["iou"])


# ---------------------------------------------------------------------- studies


def test_pixel_shares_by_hand():
    heat = torch.tensor([[[0.0, 0.49], [0.5, 1.0]]])
    mask = torch.tensor([[[True, False], [True, False]]])
    assert pixel_shares(heat, mask, bins=2).tolist() == [[[0.5, 0.5], [0.5, 0.5]]]
    shares = pixel_shares(heat, mask, torch.tensor([[[False, True], [False, False]]]), bins=2)
    assert shares.tolist() == [[[0.5, 0.5], [0.0, 1.0]]]
    assert pixel_shares(heat, torch.ones_like(mask), bins=2)[0, 1].isnan().all()


def test_mask_quality_equals_a_slow_version(clip):
    dataset = eclip.load_dataset("scenes", limit=4)
    masks = {"saliency": pixel_saliency, "center": center_prior}
    quality = attention_quality.attention_quality(masks, clip, dataset)
    assert list(quality["mask"].unique()) == ["saliency", "center"] and len(quality) == 8
    found = [line for _, line in quality[quality["mask"] == "saliency"].iterrows()]
    for line, example in zip(found, dataset, strict=True):
        image = torch.from_numpy(np.array(example.image)).permute(2, 0, 1) / 255
        cells = image.unflatten(1, (14, 16)).unflatten(3, (14, 16)).mean((2, 4))
        distance = (cells - cells.flatten(1).median(1).values[:, None, None]).norm(dim=0)
        heat = eclip.itsm(distance[None, None], (224, 224))[0, 0].double().numpy()
        truth = np.any(list(example.masks.values()), 0)
        ious = [((heat >= t / 100) & truth).sum() / ((heat >= t / 100) | truth).sum() for t in range(101)]
        assert line["IoU"] == pytest.approx(max(ious), abs=5e-3)
        assert line["contrast"] == pytest.approx(heat[truth].mean() - heat[~truth].mean(), abs=1e-3)
        large = np.kron(distance.numpy(), np.ones((16, 16)))
        assert line["mass"] == pytest.approx(large[truth].sum() / large.sum(), abs=1e-3)


def test_mask_gains_are_paired():
    means = {"DINO": 0.3, "CLIP x": 0.1, "noise": 0.3}
    lines = [(str(k), mask, value + 0.1 * k) for k in range(5) for mask, value in means.items()]
    quality = {"a": pd.DataFrame(lines, columns=["image_id", "mask", "IoU"])}
    table = attention_quality.mask_gains(quality, ["DINO"])
    assert table["IoU"].tolist() == pytest.approx([20, 0])
    assert table["IoU_low"].tolist() == pytest.approx([20, 0])
    assert table[["than", "network"]].values.tolist() == [["CLIP", "x"], ["noise", ""]]
    said = "a, IoU of DINO: above CLIP x; undecided against noise"
    assert attention_quality.gains_in_words(table) == said


def test_a_random_mask_is_the_same_for_the_same_image():
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(noise(images)[1:2], noise(images[1:2]))


def test_pairs_are_trained_scored_and_compared(run, clip, cache):
    run = run.model_copy(update={"trainings": 2})
    poolings = [Pooling("attention"), Pooling("max"), Pooling("masked_max", GROUND_TRUTH)]
    pairs = pooling_ablation.trained_pairs(run, clip, cache, poolings)
    assert len(pairs) == 6
    rows = pooling_ablation.score_pairs(run, clip, pairs)
    explain = eclip.explainer("eclip", clip, projection=pairs[Pooling("max"), 1])
    alone = eclip.evaluate(
        {("max", 1): explain}, run.load_dataset("scenes"), clip, measures=["image_threshold"]
    )[list(rows)]
    same = (rows["method"] == "max") & (rows["seed"] == 1) & (rows["dataset"] == "scenes")
    pd.testing.assert_frame_equal(rows[same].reset_index(drop=True), alone, check_dtype=False, atol=1e-4)
    table = evaluation.over_trainings(pooling_ablation.seed_table(run, rows))
    assert list(table["pooling"].unique()) == ["attention", "max", "max, mask: ground truth"]
    table, steps = (
        table[table["dataset"] == "scenes"],
        pooling_ablation.ordering(run, pooling_ablation.seed_table(run, rows)),
    )
    first, line = (table[table["pooling"] == pooling].iloc[0] for pooling in ("attention", "max"))
    assert line["seeds"] == 2 and line["mIoU_min"] <= line["mIoU"] <= line["mIoU_max"]
    gap = steps.set_index(["dataset", "better", "than"]).loc["scenes", "max", "attention"]
    assert gap["mIoU"] == pytest.approx(line["mIoU"] - first["mIoU"])
    assert gap["mIoU_low"] <= gap["mIoU"] <= gap["mIoU_high"]
    assert "max against attention (2): mIoU" in evaluation.statistics.gains_in_words(steps)


def test_unlocking_trains_the_backbone_and_leaves_clip_alone(clip):
    model, images = eclip.load_attention("test_vit", None), torch.rand(2, 3, 224, 224)
    own, before = files.digest(clip.model), files.digest(model)
    source = image_text.ScenePairs(count=8, size=4)
    pair, history = dino_backbone.unlock(clip, model, source, batch_size=4)
    assert len(history) == 2 and history["loss"].notna().all() and pair.image.in_features == 64
    assert files.digest(model) != before and files.digest(clip.model) == own
    assert not any(p.requires_grad for p in model.parameters())
    eclip.similarity(clip.with_image_encoder(model).encode_image(images), torch.randn(1, 128), pair)


def test_fresh_views_leave_trained_pairs_and_no_features(tmp_path, calls):
    """All that notebooks 02, 03 and 05 train is trained while a view is there; nothing is made again for it."""
    training = {
        "epochs": 2,
        "batch_size": 16,
        "lr": 3e-3,
        "weight_decay": 0.05,
        "views": 2,
        "augment": "deit",
    }
    settings = {"networks": "scenes-ViT-32", "pairs": "scenes:32", "trainings": 1, "limit": 2}
    run = eclip.load_profile("demo", **settings, training=training, out=tmp_path)
    clip = run.load_clip("scenes-ViT-32")
    masks = pooling_ablation.masks_for(run, clip, run.load_masks())
    cache = run.features(clip, masks)
    poolings = [*pooling_ablation.paper_poolings(run), *cache.columns]
    pooling_ablation.trained_pairs(run, clip, cache, poolings)
    pooling_ablation.trained_pairs(run, clip, run.features(clip, masks), [run.chosen_mask], init="clip")
    assert calls == {"train_pairs": 1} and len(list(tmp_path.glob("trained/*/pair.safetensors"))) == 9
    assert not list(cache.folder.glob("*.safetensors")) and not list(tmp_path.glob("trained/*/state.pt"))


def test_unlocking_goes_on_where_it_was_broken_off(clip, tmp_path, monkeypatch):
    def unlock(resume=None, **more):
        model = eclip.load_attention("test_vit", None)
        source = image_text.ScenePairs(count=12, size=4)
        options = {"epochs": 2, "views": 2, "augment": "deit", "batch_size": 4, "every": 0, "resume": resume}
        options |= more
        pair, history = dino_backbone.unlock(clip, model, source, **options)
        return files.digest(model), files.digest(pair), list(history["loss"])

    parts, read = [], image_text.ScenePairs.read

    def watched(self, part):
        parts.append(part.start)
        if len(parts) == 5:
            raise KeyboardInterrupt
        return read(self, part)

    whole = unlock()
    monkeypatch.setattr(image_text.ScenePairs, "read", watched)
    with pytest.raises(KeyboardInterrupt):
        unlock(tmp_path)
    assert unlock(tmp_path) == unlock(tmp_path) == whole
    assert parts == [0, 4, 8, 0, 4, 4, 8]  # the fourth was done, the fifth broken off
    unlock(tmp_path, epochs=1), parts.clear()
    assert unlock(tmp_path) == whole and not parts  # another training left its state alone


def test_methods_are_measured_and_compared(run):
    clip = run.load_clip("scenes-ViT-32")
    found = benchmarks.explainers_of(run, clip, ["clip", "rclip"])
    rows = pd.concat([run.evaluate(clip, name, found) for name in run.datasets], ignore_index=True)
    table = benchmarks.table(run, rows, ["clip", "rclip"])
    assert set(table["dataset"]) == {"scenes", "scenes-cluttered", "average"}
    mean = table[table["dataset"] == "average"].set_index("method")["mSC"]
    assert mean["rclip"] == pytest.approx(-mean["clip"], abs=1e-3)
    own = table[(table["method"] == "clip") & (table["dataset"] != "average")]["mSC"]
    assert mean["clip"] == pytest.approx(own.mean())
    gains = benchmarks.all_gains(run, rows)
    assert gains[["better", "than"]].values.tolist() == [["rclip", "clip"]] * 2
    assert gains["mSC"].tolist() == pytest.approx((-2 * own).tolist(), abs=1e-3)
    none = run.model_copy(update={"networks": ["scenes-RN"]})  # no ViT: no line, but columns
    assert list(benchmarks.map_statistics(none, ["clip"])["method"]) == []


def test_trainings_of_clip_are_counted_where_they_are_negative():
    table = pd.DataFrame({"dataset": "d", "network": "n", "mIoU": [1.0, 2, 3], "mSC": [-1.0, -3, 4]})
    line = over_clips(table).iloc[0]
    assert (line["trainings"], line["negative"], line["mIoU"], line["mSC"]) == (3, 2, 2, 0)
    assert line["mIoU_high"] == pytest.approx(2 + 4.302652730 / 3**0.5)  # Student's t of 2 degrees of freedom
    assert over_clips(pd.DataFrame()).empty


def test_a_missing_pair_says_where_it_comes_from(tmp_path):
    run = eclip.load_profile("demo", pretrained=None, out=tmp_path)
    with pytest.raises(FileNotFoundError, match="run notebook 05 first"):
        run.load_pair(run.load_clip("scenes-ViT-32"))


def test_a_sheet_of_few_images_begins_earlier():
    few, many = scenes.Scenes(length=4), scenes.Scenes(length=40)
    assert [e.image_id for e in sheets.later(few, 3, start=20)][0] == few[1].image_id
    assert [e.image_id for e in sheets.later(many, 1, start=20)] == [many[20].image_id]


def test_a_dataset_that_does_not_tell_its_files_is_measured_anew(tmp_path, run, clip, calls):
    class Drawn(datasets.Dataset):
        name, classes, items = "drawn", scenes.CLASSES, range(2)
        example = scenes.Scenes(length=2).example

    for dataset, times in [(Drawn(), 2), (scenes.Scenes(length=2), 1)]:
        calls.clear()
        for _ in range(2):
            run.model_copy(update={"out": tmp_path}).evaluate(
                clip, dataset, {"clip": eclip.explainer("clip", clip)}
            )
        assert calls["evaluate"] == times


# ---------------------------------------------------------------------- what is said and quoted


@pytest.mark.parametrize("name, count", [("table_1", 30), ("table_2", 30), ("table_3", 5), ("table_4", 12), ("table_5", 4)])  # fmt: skip
def test_every_line_of_the_paper_finds_ours(name, count):
    every = quoted._long(name)
    measures = [c for c in every if c not in quoted.KEYS]
    ours = every.assign(**{m: every[m] + 2 for m in measures})
    both = quoted.beside(ours, name)
    assert len(both) == len(every) == count
    for measure in measures:
        assert both[f"{measure} (difference)"].tolist() == pytest.approx([2] * count)
    elsewhere = quoted.beside(ours.assign(dataset="scenes"), name)
    pd.testing.assert_frame_equal(elsewhere, eclip.reported(name))


def test_quoted_methods_meet_ours_by_the_papers_names():
    ours = pd.DataFrame(
        {"dataset": "voc2012", "network": "ViT-B-16", "method": ["grad_cam"], "mIoU": [20.0], "mSC": 0}
    )
    both = quoted.beside(ours, "table_2")
    assert both["mIoU (difference)"].tolist() == pytest.approx([20 - 18.12])
    assert list(quoted.beside(ours, "table_1", method="CLIP")["method"].unique()) == ["CLIP"]


def test_a_run_ends_in_the_papers_numbers_beside_its_own(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tables in"):
        quoted.as_text(tmp_path)
    rows = [("voc2012", "RN50", "eclip", 50.0, 1.0), ("voc2012", "ViT-B-32", "gem", 40.0, 2.0)]
    table = pd.DataFrame(rows, columns=["dataset", "network", "method", "mIoU", "mSC"])
    table.head(1).to_csv(tmp_path / "table_1.csv", index=False)
    table.tail(1).to_csv(tmp_path / "later_methods.csv", index=False)
    said = quoted.as_text(tmp_path)
    assert re.search(r"RN50\s+ECLIP\s+49\.3\s+29\.16\s+50\.0\s+1\.0\s+0\.7", said)  # Table 1
    assert re.search(r"ViT-B-32\s+gem\s+40\.0", said)


def test_controls_tell_a_map_of_the_text_from_a_map_of_any_object(run, clip):
    dataset = eclip.load_dataset("scenes", limit=30)

    def truth(named):
        """Explainers that know the masks: of the named class, or of every object."""
        scenes_of = {clip.preprocess(e.image).numpy().tobytes(): e for e in dataset}

        def explain(images, text):
            found = torch.zeros(len(images), len(text), 224, 224)
            for i, image in enumerate(images):
                for name, mask in scenes_of[image.numpy().tobytes()].masks.items():
                    where = dataset.classes.index(name) if named else slice(None)
                    found[i, where] += torch.from_numpy(mask).float()
            return found

        return explain

    explainers = {"named": truth(True), "any": truth(False), "clip": eclip.explainer("clip", clip)}
    rows = controls.control_rows(dataset, clip, explainers).assign(dataset="a", network="x")
    table = controls.control_table(rows).set_index("method")
    assert table.loc["named", ["own", "text", "against_others"]].tolist() == pytest.approx([100, 100, 100])
    assert table.loc["any", "text"] == 0 and table.loc["any", "against_others"] == pytest.approx(0)
    alone = eclip.evaluate(explainers["clip"], dataset, clip)["score_contrast"]
    assert rows[rows["method"] == "clip"]["own"].tolist() == pytest.approx((100 * alone).tolist(), abs=1e-3)
    own, mean = explainers["clip"], controls.the_mean(explainers["clip"])
    alone = eclip.evaluate(lambda *both: own(*both) - mean(*both), dataset, clip)["score_contrast"]
    centred = rows[rows["method"] == "clip"]["centred"].tolist()
    assert centred == pytest.approx((100 * alone).tolist(), abs=1e-3)
    bars = pd.DataFrame({"dataset": ["a", "a"], "method": ["noise", "centre"], "mIoU": [5.0, 30.0]})
    measured = pd.DataFrame(
        {"dataset": "a", "network": "x", "method": ["clip", "eclip"], "mIoU": [20.0, 40.0]}
    )
    said = controls.verdict(table.reset_index(), bars, measured)
    assert (
        "a: centre knows no text and reaches 30.0 mIoU; above it in all networks ECLIP; in none CLIP" in said
    )
    flow = (
        measured.assign(method="rollout").head(1),
        table.loc[["any"]].reset_index().replace("any", "rollout"),
    )
    said = controls.verdict(pd.concat([table.reset_index(), flow[1]]), bars, pd.concat([measured, flow[0]]))
    assert "rollout knows no text, and sets the named object +0.0 against the others" in said
    assert "by mIoU, of 1 cases: none" in said
    assert (
        "follows the text (the object is higher than in an absent class's map): in all cases named; in none any"
        in said
    )
    half = pd.concat([table.reset_index(), table.reset_index().assign(text_low=-1)])
    assert "class's map): in some named (1 of 2); in none any" in controls.verdict(half, bars, measured)
    down = table.reset_index().assign(text_low=-2, text_high=-1)
    assert "lower instead: named in 1 of 1, any in 1 of 1" in controls.verdict(down, bars, measured)


def test_a_text_free_map_is_the_same_for_every_text(clip):
    explain = controls.text_free(clip, pixel_saliency)
    found = explain(torch.randn(2, 3, 224, 224), torch.randn(3, 128))
    assert found.shape == (2, 3, 14, 14) and (found == found[:, :1]).all()


def test_what_a_finer_grid_costs_is_paired_over_images(run):
    score = {("c", "eclip"): 0.5, ("f", "eclip"): 0.6, ("c", "bi_model"): 0.5, ("f", "bi_model"): 0.3}
    rows = pd.DataFrame(
        [(f"{i}", "k", value + 0.01 * i, value, "a", network, method) for (network, method), value in score.items() for i in range(9)],
        columns=["image_id", "class_name", "iou", "score_contrast", "dataset", "network", "method"],
    )  # fmt: skip
    found = benchmarks.finer_grid(run, rows).set_index("method")
    assert found.loc["bi_model", ["mIoU", "mIoU_low", "mIoU_high"]].tolist() == pytest.approx([-20] * 3)
    assert found.loc["bi_model", ["less_than_eclip", "less_than_eclip_low"]].tolist() == pytest.approx(
        [30] * 2
    )
    said = "from the coarse to the fine grid (95 % intervals over images) mIoU rises for ECLIP; falls for Bi-Model"
    assert said in benchmarks.finer_in_words(found.reset_index())
    two = pd.concat([found.reset_index(), (-found.select_dtypes(float)).assign(method=found.index)])
    said = benchmarks.finer_in_words(two)
    assert "images) mIoU neither, or not on every dataset, for " in said
    assert benchmarks.finer_grid(run, rows[rows["network"] == "c"]).empty


def test_the_best_method_is_told_by_both_measures():
    table = pd.DataFrame({"method": ["clip", "eclip", "bi_model"], "mIoU": [10, 40, 50], "mSC": [-9, 30, 20]})
    said = benchmarks.best_in_words(table.assign(dataset="a", network="n"))
    assert said == "a, n: best by mIoU Bi-Model 50.0, then ECLIP 40.0; by mSC ECLIP 30.0, then Bi-Model 20.0"
    last = table.assign(dataset="a", network="n", mIoU=[60, 40, 50])
    assert "then Bi-Model 50.0 (ECLIP is number 3 of 3); by mSC" in benchmarks.best_in_words(last)
    alone = table.head(1).assign(dataset="a", network="n", mSC=np.nan)
    assert benchmarks.best_in_words(alone) == "a, n: best by mIoU CLIP 10.0; by mSC no method"


def test_masks_and_augmentation_are_judged_by_their_trainings():
    columns = ["dataset", "pooling", "mIoU", "mIoU_min", "mIoU_max"]
    lines = [
        ("a", "max", 40, 39, 41),
        ("a", "max, mask: ground truth", 60, 59, 61),
        ("a", "max, mask: DINO", 50, 49, 51),
    ]
    masks = pd.DataFrame([*lines, ("a", "max, mask: CLIP's own", 55, 54, 56)], columns=columns)
    masks = masks.assign(seeds=3, network="n")
    steps = pd.DataFrame({"better": "max", "than": ["average", "attention"], "mIoU_low": 1, "mIoU_high": 2})
    steps = steps.assign(mSC_low=[1, -1], mSC_high=2)
    seeds = pd.DataFrame({"pooling": ["max", "max", "average", "average"], "mSC": [1, 2, 1, -1]})
    seeds = seeds.assign(dataset="a", network="n")
    said = pooling_ablation.verdict(seeds, steps, masks)
    assert said.startswith(
        "The map is as one expects, mSC above 0 in every training: max 1 of 1, average 0 of 1."
    )
    assert "So is it the pooling? By these trainings open: max pooling raises mSC" in said
    for ends, answer in ((1, 2), "yes"), ((-2, -1), "it is not"):
        told = pooling_ablation.is_it_the_pooling(steps.assign(mSC_low=ends[0], mSC_high=ends[1]))
        assert f"By these trainings {answer}: max" in told
    assert "By these trainings open: max" in pooling_ablation.is_it_the_pooling(steps.head(0))
    said_open = pooling_ablation.is_it_the_pooling(steps.assign(mSC_low=-1))
    assert "By these trainings open: max pooling raises mSC" in said_open and "2 undecided" in said_open
    assert "needs" not in pooling_ablation.verdict(seeds, steps.assign(mSC_low=1), masks.head(0))
    best = "The best of those that need no ground truth is max, mask: CLIP's own."
    assert "n, mIoU, mean over datasets" in said and best in said
    assert "+5.0 mIoU; no training of one reaches" in said
    alone = pooling_ablation.verdict(seeds, steps, masks.assign(seeds=1))
    assert "+5.0 mIoU; one training each, which decides nothing" in alone
    views = masks.assign(views=["as they are", "afresh", "once", "twice"])
    gained = pd.DataFrame([{f"{m}_{end}": 1 for m in ("mIoU", "mSC") for end in ("low", "high")}] * 2)
    seeds = pd.DataFrame(
        {"network": [*"nnnmmm"], "mIoU": 1.0, "mSC": [30, 31, 32, -9, 9, 30], "dataset": "a"}
    )
    untrained, learned = (
        pd.DataFrame({"mSC_min": [1, -3], "mSC_max": [5, 2]}),
        pd.DataFrame({"mSC_low": [1, -2], "mSC_high": [3, 2]}),
    )
    said = mmp_training.verdict(gained, seeds, untrained, learned, {"n": True, "m": False}, views)
    assert (
        "at random, every pair's mSC is above 0 in 1 of 2 cases (datasets and networks), below in 0" in said
    )
    assert "training adds to it in 1, by Student's t, takes from it in 0; 1 open" in said
    assert "once against pictures as they are: +10.0 mIoU" in said
    assert "Over 3 trainings of the pair, by Student's t, ECLIP's mSC is above 0 in 1 of 2 cases" in said
    assert "mIoU, of its first training, lies above CLIP's in 2 of 2 cases" in said
    assert "turns the map of 1 of 2 networks here" in said and "bit-identical in 1 of 2" in said


@pytest.mark.parametrize(
    "measured, said",
    [
        ([-1, -2, -1.5], "it is not the backbone here: with another one the map is opposite in 1 of 1 cases"),
        ([1, 2, 1.5], "it is the backbone here"),
        ([1, -1, 0], "whether it is the backbone stays open here"),
        ([-1], "whether it is the backbone stays open here: with another one the map is opposite in 0 of 0"),
    ],
)
def test_the_backbone_is_judged_by_trainings_of_another_one(measured, said):
    own = pd.DataFrame({"backbone": "CLIP, new pair", "mSC": [-9, -9.1]})
    seeds = pd.concat([own, pd.DataFrame({"backbone": "DINO, locked", "mSC": measured})]).assign(dataset="a")
    gained = pd.DataFrame({"than": ["noise"], "mask": "DINO"})
    assert f"So {said}" in dino_backbone.verdict(gained, seeds)


def test_encoders_are_compared_by_what_they_are(clip):
    other = clip.with_image_encoder(eclip.load_attention("test_vit", None))
    said = dino_backbone.encoders_in_words({"CLIP": clip, "DINO": other})
    assert "CLIP: 1.2 million parameters, 7×7 tokens; DINO: 0." in said and "differ in size and grid." in said
    assert "differ in neither" in dino_backbone.encoders_in_words({"CLIP": clip, "again": clip})


def test_figures_name_what_they_show_and_points_are_sharp(tmp_path):
    run = eclip.load_profile("demo", networks="scenes-ViT-32,scenes-ViT-16", limit=12, out=tmp_path)
    nine = shift_figures.figure_9(run, "scenes", count=2)
    titles, labels = ([getattr(ax, f"get_{what}")() for ax in nine.axes] for what in ("title", "ylabel"))
    assert titles[:8] == ["scenes-ViT-32", "CLIP's map", "scenes-ViT-16", "CLIP's map"] + [""] * 4
    assert labels[0].startswith("a photo of") and labels[4] and labels[8] == "score in the map"
    eleven, seven, widths = sheets.figure_11(run, count=1), sheets.figure_7(run, count=2), []
    assert [ax.get_title() for ax in eleven.axes[2:4]] == ["Bi-Model,\n7×7", "Bi-Model,\n14×14"]
    assert "scenes-ViT-32 and scenes-ViT-16 on scenes-cluttered" in eleven.get_suptitle()
    names = [eclip.load_dataset(name)[11].largest for name in run.datasets]
    assert [seven.axes[k].get_title().split()[-1] for k in (0, 1, 2, 3)] == [n for n in names for _ in "ab"]
    for figure, dpi in ((nine, 200), (eleven, 100)):
        run.save_figure(figure, "x")
        widths.append(Image.open(run.path("figures", "x")).width / figure.get_size_inches()[0] / dpi)
    assert widths == pytest.approx([1, 1], abs=0.1)
