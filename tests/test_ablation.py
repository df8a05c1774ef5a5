"""What notebooks 02 to 06 compute between the library's formulas and their tables."""

import numpy as np
import pandas as pd
import pytest
import torch

import eclip_lib as eclip
from eclip_lib import ablation, backbone, benchmarks, masks, pooling_study, profiles
from eclip_lib.datasets.pairs import ScenePairs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return eclip.load_profile("demo", networks="scenes-ViT-32", limit=6, pairs="scenes:60", out=tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def clip(run):
    return run.load_clip("scenes-ViT-32")


def test_mask_quality_equals_a_slow_version(clip):
    dataset = eclip.load_dataset("scenes", limit=4)
    quality = masks.attention_quality({"saliency": masks.saliency, "centre": masks.centre}, clip, dataset)
    assert list(quality["mask"].unique()) == ["saliency", "centre"] and len(quality) == 8
    for (_, line), example in zip(quality[quality["mask"] == "saliency"].iterrows(), dataset, strict=True):
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
    lines = [
        (str(k), mask, value + 0.1 * k, 0, 0)
        for k in range(5)
        for mask, value in (("DINO", 0.3), ("CLIP x", 0.1), ("noise", 0.3))
    ]
    quality = {"a": pd.DataFrame(lines, columns=["image_id", "mask", "IoU", "contrast", "mass"])}
    table = masks.gains(quality, ["DINO"])
    assert table["IoU"].tolist() == pytest.approx([20, 0]) and table["IoU_low"].tolist() == pytest.approx([20, 0])
    assert table[["than", "network"]].values.tolist() == [["CLIP", "x"], ["noise", ""]]
    assert masks.verdict(table) == "a, IoU of DINO: above CLIP x; undecided against noise"


def test_a_random_mask_is_the_same_for_the_same_image():
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(masks.noise(images)[1:2], masks.noise(images[1:2]))


def test_pairs_are_trained_scored_and_compared(run, clip):
    cache = ablation.cached(run, clip, {"ground truth": True, "CLIP's own": masks.Own(clip)})
    pairs, losses = ablation.train_rows(run, clip, cache, ["attention", "max", "masked_max:ground truth"], seeds=range(2))
    assert len(pairs) == 6 and len(losses) == 6 * run.training["epochs"]
    rows = ablation.score_pairs(run, clip, pairs)
    alone = eclip.evaluate(eclip.explainer("eclip", clip, projection=pairs["max", 1]), run.load_dataset("scenes"), clip)
    pd.testing.assert_frame_equal(rows[("max", 1), "scenes"], alone, check_exact=False, rtol=1e-4, atol=1e-4)
    seeds = ablation.seed_table(run, {"scenes-ViT-32": rows})
    table = ablation.over_seeds(seeds)
    line = table[(table["dataset"] == "scenes") & (table["pooling"] == "max")].iloc[0]
    assert line["seeds"] == 2 and line["mIoU_low"] <= line["mIoU"] <= line["mIoU_high"]
    steps = pooling_study.ordering(
        run, {"scenes-ViT-32": {k: v for k, v in rows.items() if k[1] == "scenes"} | rows}, resamples=50
    )
    gap = steps[(steps["dataset"] == "scenes") & (steps["better"] == "max") & (steps["than"] == "attention")].iloc[0]
    first = table[(table["dataset"] == "scenes") & (table["pooling"] == "attention")].iloc[0]
    assert gap["mIoU"] == pytest.approx(line["mIoU"] - first["mIoU"]) and gap["mIoU_low"] <= gap["mIoU"] <= gap["mIoU_high"]
    assert "max against attention (2): mIoU" in benchmarks.gains_in_words(steps)


def test_a_transplant_is_the_backbone_with_clips_text(run, clip):
    model = eclip.load_attention("vit_tiny_patch16_224", None)
    other = backbone.Transplant(clip, model)
    images = torch.stack([clip.preprocess(e.image) for e in run.load_dataset("scenes")])[:2]
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in clip.statistics)
    with torch.no_grad():
        features = other.encode_image(images)
        inside = model.model.forward_features((images * std + mean - model.mean) / model.std)
        torch.testing.assert_close(features.class_token, inside[:, 0])
        torch.testing.assert_close(features.tokens, inside[:, 1:])
        torch.testing.assert_close(other.encode_text(["a photo of the star"]), clip.encode_text(["a photo of the star"]))
    assert features.grid == (14, 14) and other.network == "scenes-ViT-32 with vit_tiny_patch16_224"
    before = {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
    pair, history = backbone.unlock(clip, model, ScenePairs(count=8, size=4), batch_size=4)
    assert len(history) == 2 and history["loss"].notna().all() and pair.image.in_features == 192
    with torch.no_grad():
        assert not torch.equal(inside, model.model.forward_features((images * std + mean - model.mean) / model.std))
    assert all(torch.equal(tensor, before[name]) for name, tensor in clip.model.state_dict().items())


def test_rows_of_runs_side_by_side_are_joined_and_what_is_missing_is_named(run):
    plan = {"scenes-ViT-32": ["clip", "rclip"], "scenes-RN": ["clip"]}
    rows = benchmarks.measure(run, {"scenes-ViT-32": ["clip", "rclip"]})
    joined, missing = benchmarks.join(run, {}, plan)
    assert missing == [("scenes-RN", "scenes", "clip"), ("scenes-RN", "scenes-cluttered", "clip")]
    for key, part in rows.items():
        pd.testing.assert_frame_equal(joined[key], part)
    other = eclip.load_profile("demo", networks="scenes-ViT-32", limit=5, out=run.out)
    assert not benchmarks.join(other, {}, plan)[0]  # another limit: not the same experiment
    table = benchmarks.table(run, joined, ["clip", "rclip"])
    mean = table[table["dataset"] == "average"].set_index("method")["mSC"]
    assert mean["rclip"] == pytest.approx(-mean["clip"], abs=1e-3)
    gains = benchmarks.gains(run, joined, "rclip", ["clip"])
    assert gains["mSC"].tolist() == pytest.approx((-2 * table[table["method"] == "clip"]["mSC"].iloc[:2]).tolist(), abs=1e-3)


def test_a_missing_pair_says_where_it_comes_from(tmp_path):
    run = eclip.load_profile("demo", pretrained=None, out=tmp_path)
    with pytest.raises(FileNotFoundError, match="run notebook 05 first"):
        run.load_pair(run.load_clip("scenes-ViT-32"))
    assert profiles.TRAINING == set(run.training)
