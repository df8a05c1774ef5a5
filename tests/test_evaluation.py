"""evaluate and summarize against slow versions written from §4.1."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import eclip_lib as eclip
from eclip_lib.datasets import Dataset, Example


@pytest.fixture(scope="module")
def clip():
    return eclip.load_clip("scenes-ViT-32", None)


class Hand(Dataset):
    """Images of two sizes, a void, an unnamed class, an image without masks and one that is all foreground."""

    name, classes = "hand", ["circle", "square"]

    def __init__(self):
        rng = np.random.default_rng(0)
        self.items = []
        for k, (w, h) in enumerate([(40, 30), (50, 60), (40, 30), (40, 30), (40, 30)]):
            image = Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8))
            mask = np.zeros((h, w), bool)
            mask[5:15, 5 : 20 + k] = True
            masks = {"circle": mask, "square": np.roll(mask, 10, 0)} if k == 0 else {} if k == 3 else {"square": mask}
            masks = {"circle": np.ones((h, w), bool)} if k == 4 else masks
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
            iou = [
                ((heat >= np.float32(k / 100)) & mask & valid).sum() / (((heat >= np.float32(k / 100)) | mask) & valid).sum()
                for k in range(101)
            ]
            inside, outside = heat[mask & valid], heat[~mask & valid]
            contrast = inside.mean(dtype=float) - outside.mean(dtype=float) if len(outside) else np.nan
            yield e.image_id, name, max(iou), np.argmax(iou) / 100, contrast, (mask & valid).sum() / valid.sum()


@pytest.mark.parametrize("workers, batch_size", [(0, 32), (0, 2), (2, 1)])
def test_evaluate_equals_the_slow_loop(clip, workers, batch_size):
    dataset = Hand()
    rows = eclip.evaluate(eclip.explainer("clip", clip), dataset, clip, workers, batch_size)
    slow = pd.DataFrame(slow_rows(clip, dataset), columns=rows.columns)
    key = ["image_id", "class_name"]
    rows, slow = (r.sort_values(key).reset_index(drop=True) for r in (rows, slow))
    pd.testing.assert_frame_equal(rows[key], slow[key])
    np.testing.assert_allclose(rows.drop(columns=key), slow.drop(columns=key), atol=2e-3, equal_nan=True)


def test_rclip_is_the_exact_opposite(clip):  # mSC(RCLIP) = -mSC(CLIP), Table 2
    dataset = eclip.load_dataset("scenes", limit=10)
    ours, reverse = (eclip.summarize(eclip.evaluate(eclip.explainer(m, clip), dataset, clip)) for m in ("clip", "rclip"))
    assert ours.mSC == pytest.approx(-reverse.mSC, abs=1e-3)


def test_pairs_are_asked_for_where_an_explainer_offers_them(clip):
    asked = []

    class Pairs:
        def pairs(self, images, text, index):
            asked.append(index.tolist())
            return torch.rand(len(index), 7, 7)

    rows = eclip.evaluate(Pairs(), Hand(), clip)
    assert asked == [[[0, 0], [0, 1], [1, 1], [2, 1], [4, 0]]] and len(rows) == 5


def test_summary_by_hand():
    rows = pd.DataFrame(
        [("a", "x", 0.2, 0, -0.1, 0.1), ("b", "x", 0.4, 0, 0.3, 0.3), ("b", "y", 0.9, 0, np.nan, 1.0)],
        columns=["image_id", "class_name", "iou", "threshold", "score_contrast", "foreground"],
    )
    s = eclip.summarize(rows)
    assert (s.mIoU, s.mIoU_pairs) == (pytest.approx(60), pytest.approx(50))
    assert (s.mSC, s.mSC_pairs, s.no_contrast) == (pytest.approx(10), pytest.approx(10), 1)
    assert s.floor == pytest.approx(60) and (s.images, s.pairs) == (2, 3)
    assert s.mIoU_low <= s.mIoU <= s.mIoU_high
    with pytest.raises(ValueError, match="no rows"):
        eclip.summarize(rows.iloc[:0])


def test_bootstrap_draws_whole_images():
    rng = np.random.default_rng(1)
    rows = pd.DataFrame({"image_id": np.repeat(np.arange(40), 2), "class_name": ["x", "y"] * 40, "iou": rng.random(80)})
    fast = eclip.bootstrap(rows, "iou", resamples=200, seed=3)
    weights = np.random.default_rng(3).multinomial(40, np.full(40, 1 / 40), size=200)
    for draw, value in zip(weights[:20], fast, strict=False):
        again = pd.concat([rows[rows.image_id == i] for i, n in enumerate(draw) for _ in range(n)])
        assert value == pytest.approx(100 * again.groupby("class_name").iou.mean().mean())


def test_recognition_is_clips_own_score(clip):
    dataset = eclip.load_dataset("scenes", limit=6)
    scores, labels, mAP = eclip.recognize(dataset, clip)
    with torch.no_grad():
        image = clip.model.encode_image(torch.stack([clip.preprocess(e.image) for e in dataset]), normalize=True)
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


def test_pixel_shares_by_hand():
    from eclip_lib.discovery import pixel_shares

    heat = torch.tensor([[[0.0, 0.49], [0.5, 1.0]]])
    mask = torch.tensor([[[True, False], [True, False]]])
    shares = pixel_shares(heat, mask, bins=2)
    assert shares.tolist() == [[[0.5, 0.5], [0.5, 0.5]]]
    shares = pixel_shares(heat, mask, torch.tensor([[[False, True], [False, False]]]), bins=2)
    assert shares.tolist() == [[[0.5, 0.5], [0.0, 1.0]]]
    assert pixel_shares(heat, torch.ones_like(mask), bins=2)[0, 1].isnan().all()


def test_several_explainers_in_one_pass_score_as_each_alone():
    clip, dataset = eclip.load_clip("scenes-ViT-32", None), eclip.load_dataset("scenes", limit=5)
    methods = {name: eclip.explainer(name, clip) for name in ("clip", "rclip", "mask_clip", "bi_model")}
    calls, encode = [], clip.encode_image
    clip.encode_image = lambda images: calls.append(1) or encode(images)
    together = eclip.evaluate({name: methods[name] for name in ("clip", "rclip")}, dataset, clip)
    assert len(calls) == 1  # one forward pass for both
    together |= eclip.evaluate({name: methods[name] for name in ("mask_clip", "bi_model")}, dataset, clip)
    for name, explain in methods.items():
        pd.testing.assert_frame_equal(together[name], eclip.evaluate(explain, dataset, clip))
