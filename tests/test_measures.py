"""The measures beside the paper's, each against a slow, obvious version: one threshold an image, argmax mIoU,
deletion and insertion, ROAD; and docs/measures.md keeps its word."""

import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import jaccard_score
from test_bad_input import run
from test_evaluation import Hand

import eclip_lib as eclip
from eclip_lib import cli, evaluation
from eclip_lib.commands import scores
from eclip_lib.datasets import Dataset, Example
from eclip_lib.evaluation import faithfulness, segmentation
from eclip_lib.evaluation.evaluator import COLUMNS, KEYS, SCORES
from eclip_lib.evaluation.metrics import image_iou, iou_curve
from eclip_lib.files import REPOSITORY

PAGE = (REPOSITORY / "docs" / "measures.md").read_text()


@pytest.fixture(scope="module")
def clip():
    return eclip.load_clip("scenes-ViT-32")


# ---------------------------------------------------------------------- one threshold an image


def test_one_threshold_for_all_classes_of_an_image_equals_the_loop():
    rng = np.random.default_rng(0)
    for n in (1, 3):
        heat, mask = rng.random((n, 9, 11), dtype=np.float32), rng.random((n, 9, 11)) < 0.3
        means = []
        for k in range(101):
            shown = heat >= np.float32(k / 100)
            means.append([(p & m).sum() / (p | m).sum() for p, m in zip(shown, mask, strict=True)])
        best = max(means, key=np.mean)  # the first of tied ones
        assert image_iou(iou_curve(torch.tensor(heat), torch.tensor(mask))).tolist() == best


# ---------------------------------------------------------------------- argmax


def smooth(*shape):
    return F.avg_pool2d(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), 3, 1, 1)


@pytest.mark.parametrize("count, size", [(5, (20, 31)), (200, (33, 47)), (200, (5, 4)), (1, (9, 9))])
def test_segments_are_those_of_all_maps_resized_at_once(count, size, monkeypatch):
    cells = smooth(1, count, 7, 6)
    cells[0, 0] += 0.5
    cells[0, count // 2] = cells[0, 0]  # ties go to the first
    slow = F.interpolate(cells, size, mode="bilinear")[0].argmax(0)
    pieces, interpolate = [], F.interpolate
    monkeypatch.setattr(segmentation, "LARGEST", 10 * size[0] * size[1])
    monkeypatch.setattr(F, "interpolate", lambda x, s, **o: pieces.append(len(x)) or interpolate(x, s, **o))
    assert torch.equal(segmentation.segment(cells, size), slow)
    assert max(pieces) <= 10 and sum(pieces) == len(segmentation.may_win(cells[0])) <= count
    assert count < 200 or sum(pieces) < count  # some cannot win anywhere


def test_a_thousand_classes_on_a_large_picture_are_resized_64_mb_at_a_time(monkeypatch):
    sizes = []

    def watched(maps, size, **options):
        sizes.append(len(maps) * size[0] * size[1])
        return torch.zeros(1).expand(*maps.shape[:2], *size)

    monkeypatch.setattr(F, "interpolate", watched)
    segmentation.segment(1 + smooth(1, 1000, 3, 4) * 1e-7, (480, 640))  # any may win
    assert max(sizes) <= 1 << 24 and len(sizes) == 19


def test_windows_overlap_by_half_and_reach_every_edge():
    assert segmentation.layout((375, 500), (224, 224)) == (
        (336, 448),
        [(y, x) for y in (0, 112) for x in (0, 112, 224)],
        (224, 224),
    )
    for size, window in [((40, 2000), (224, 224)), ((61, 60), (64, 64)), ((90, 70), (48, 32))]:
        whole, corners, _ = segmentation.layout(size, window)
        seen = np.zeros(whole, int)
        for y, x in corners:
            assert 0 <= y <= whole[0] - window[0] and 0 <= x <= whole[1] - window[1]
            seen[y : y + window[0], x : x + window[1]] += 1
        assert seen.min() >= 1 and len(set(corners)) == len(corners) < 50


def test_windows_show_their_part_of_the_picture_and_their_maps_are_averaged(clip):
    image = next(iter(Hand())).image  # 40 x 30
    (height, width), corners, window = tiling = segmentation.layout((30, 40), clip.size)
    found, large = segmentation.windows(image, clip.preprocess, clip.size), image.resize((width, height), 3)
    for shown, (y, x) in zip(found, corners, strict=True):
        part = Image.fromarray(np.asarray(large)[y : y + 224, x : x + 224])
        assert torch.equal(shown, clip.preprocess(part))
    cells, total, seen = (
        smooth(len(corners), 4, 7, 7),
        np.zeros((4, height, width)),
        np.zeros((height, width)),
    )
    for part, (y, x) in zip(cells, corners, strict=True):
        total[:, y : y + 224, x : x + 224] += F.interpolate(part[None], window, mode="bilinear")[0].numpy()
        seen[y : y + 224, x : x + 224] += 1
    mean = torch.tensor(total / seen)[None]
    torch.testing.assert_close(segmentation._merge(cells, *tiling), mean.float())
    slow = F.interpolate(mean, (30, 40), mode="bilinear")[0].argmax(0)
    assert torch.equal(segmentation.segment(cells, (30, 40), tiling), slow)


def test_a_prompt_ensemble_is_the_mean_of_normalised_embeddings(clip):
    names = ["circle", "striped background"]
    found = F.normalize(clip.projection.text(segmentation.mean_prompt(clip, names)), dim=-1)
    for name, ours in zip(names, found, strict=True):
        tokens = clip.tokenizer([prompt(name) for prompt in segmentation.OPENAI_IMAGENET_TEMPLATES])
        mean = clip.model.encode_text(tokens, normalize=True).mean(0)
        torch.testing.assert_close(ours, mean / mean.norm(), atol=1e-5, rtol=0)


class Overlapping(Hand):
    """`Hand` with a small square on the circle, and words for what is behind."""

    background = ["plain background", "circle", "noisy background"]

    def __init__(self):
        super().__init__()
        one = self.items[2]
        small = np.zeros((30, 40), bool)
        small[8:12, 8:12] = True
        self.items[2] = Example(one.image_id, one.image, {"square": small, "circle": one.masks["square"]})


@torch.no_grad()
def slow_argmax(clip, dataset, background, slide):
    """Every pixel that counts, as one would write it down -> (truth, predicted), numbers of classes."""
    names = ["circle", "square", *(["plain background", "noisy background"] if background else [])]
    text, every = clip.encode_text([f"a photo of the {name}" for name in names]), []
    for e in dataset:
        size = e.image.size[::-1]
        images = [clip.preprocess(e.image)]
        if slide:
            images = segmentation.windows(e.image, clip.preprocess, clip.size)
        maps = eclip.similarity(clip.encode_image(torch.stack([*images])), text, clip.projection)
        if slide:
            (height, width), corners, _ = segmentation.layout(size, clip.size)
            total, seen = torch.zeros(1, len(names), height, width), torch.zeros(height, width)
            for part, (y, x) in zip(maps, corners, strict=True):
                total[0, :, y : y + 224, x : x + 224] += F.interpolate(
                    part[None], clip.size, mode="bilinear"
                )[0]
                seen[y : y + 224, x : x + 224] += 1
            maps = total / seen
        predicted = F.interpolate(maps, size, mode="bilinear")[0].argmax(0).clamp_max(2).numpy()
        for y, x in np.ndindex(size):
            owners = [(mask.sum(), name) for name, mask in e.masks.items() if mask[y, x]]
            truth = ["circle", "square"].index(min(owners)[1]) if owners else 2
            if (truth < 2 or background) and not (e.void is not None and e.void[y, x]):
                every.append((truth, predicted[y, x]))
    return np.array(every).T


@pytest.mark.parametrize("background, slide", [(False, False), (True, False), (True, True)])
def test_argmax_miou_equals_scikit_learns_jaccard_score_over_all_pixels(clip, background, slide):
    measure = "argmax_background" if background else "argmax"
    options = {"measures": [measure], "slide": slide, "batch_size": 2}
    with pytest.warns(match="left out of all but argmax_background" if background else r"left out \("):
        rows = eclip.evaluate(eclip.explainer("clip", clip), Overlapping(), clip, **options)
    truth, predicted = slow_argmax(clip, Overlapping(), background, slide)
    classes = range(3 if background else 2)
    slow = jaccard_score(truth, predicted, labels=classes, average=None)
    assert eclip.summarize(rows)[f"mIoU_{measure}"] == pytest.approx(100 * slow.mean(), abs=0.2)
    of_all = rows.groupby("class_name")[[f"{measure}_intersection", f"{measure}_union"]].sum()
    found = (of_all.iloc[:, 0] / of_all.iloc[:, 1])[["circle", "square", "background"][: len(classes)]]
    np.testing.assert_allclose(found, slow, atol=2e-3)  # a pixel between two cells may round either way
    assert ("image3" in set(rows["image_id"])) == background  # nothing but background in it


def test_measures_asked_for_beside_leave_the_papers_as_they_are(clip):
    methods = {name: eclip.explainer(name, clip) for name in ("rclip", "bi_model")}
    alone = eclip.evaluate(methods, Hand(), clip)
    every = eclip.evaluate(methods, Hand(), clip, measures=[m for m in evaluation.MORE if m != "road"])
    assert list(alone) == COLUMNS and set(every) - set(COLUMNS) == {
        column for name, columns in evaluation.MORE.items() for column in columns if name != "road"
    }
    for method in methods:
        both = (rows[rows["method"] == method].dropna(subset="iou") for rows in (alone, every))
        one, other = (rows.sort_values(KEYS).reset_index(drop=True)[KEYS + SCORES] for rows in both)
        pd.testing.assert_frame_equal(one, other)
    columns = ["iou_image", "deletion", "insertion"]
    options = {"batch_size": 1, "measures": ["faithfulness", "image_threshold"]}
    one = eclip.evaluate(methods["rclip"], Hand(), clip, **options).sort_values(KEYS)[KEYS + columns]
    other = every[every["method"] == "rclip"].dropna(subset="iou").sort_values(KEYS)[KEYS + columns]
    pd.testing.assert_frame_equal(*(rows.reset_index(drop=True) for rows in (one, other)), atol=1e-3)
    one, more = (eclip.summarize(rows[rows["method"] == "rclip"]) for rows in (alone, every))
    pd.testing.assert_series_equal(one, more[one.index])
    assert more.mIoU_image <= more.mIoU and {"mIoU_argmax_low", "deletion_high"} <= set(more.index)


def test_by_argmax_the_reversed_map_is_the_worst_as_the_page_says(clip):
    methods = {name: eclip.explainer(name, clip) for name in ("clip", "rclip")}
    rows = eclip.evaluate(methods, eclip.load_dataset("scenes", limit=20), clip, measures=["argmax"])
    own, reverse = (eclip.summarize(rows[rows["method"] == name]) for name in methods)
    assert reverse.mIoU > own.mIoU and reverse.mIoU_argmax < own.mIoU_argmax


def test_intervals_of_argmax_resample_whole_images():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"image_id": np.repeat(np.arange(12), 2), "class_name": ["x", "y"] * 12})
    rows["right"], rows["all"] = rng.integers(0, 9, 24), rng.integers(9, 30, 24)
    rows.loc[::7, ["right", "all"]] = np.nan
    slow = []
    for weights in np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=40):
        drawn = pd.concat([rows[rows["image_id"] == i] for i, n in enumerate(weights) for _ in range(n)])
        parts = [drawn[drawn["class_name"] == name] for name in "xy"]
        slow.append(100 * sum(part["right"].sum() / part["all"].sum() for part in parts) / 2)
    np.testing.assert_allclose(eclip.bootstrap(rows, "right", 40, 3, "all"), slow)


# ---------------------------------------------------------------------- faithfulness


def window_answer(images):
    """A classifier that sees the mean of the upper left quarter, and of the lower right one."""
    h, w = images.shape[-2] // 2, images.shape[-1] // 2
    return torch.stack(
        [images[..., :h, :w].mean((1, 2, 3)), images[..., h:, w:].mean((1, 2, 3))], 1
    ).sigmoid()


def test_deletion_and_insertion_equal_the_loop():
    image, heat = smooth(1, 3, 12, 10)[0] + 1, smooth(1, 12, 10)
    heat[0, :, 4:] = 0  # ties: the first pixel first
    place = faithfulness.removal_order(heat, (12, 10))[0]
    order = sorted(range(120), key=lambda k: (-heat.flatten()[k].item(), k))
    blurred = faithfulness.gaussian_blur(image, 11, 5)
    deleted, inserted = [], []
    for step in range(21):
        without, back = image.clone(), blurred.clone()
        for k in order[: 6 * step]:
            without[:, k // 10, k % 10], back[:, k // 10, k % 10] = 0, image[:, k // 10, k % 10]
        deleted.append(window_answer(without[None])[0, 1].item())
        inserted.append(window_answer(back[None])[0, 1].item())
    slow = [sum((a + b) / 40 for a, b in zip(v, v[1:], strict=False)) for v in (deleted, inserted)]
    assert faithfulness.deletion_insertion(window_answer, image, place, 1) == pytest.approx(slow, abs=1e-5)


def imputed(image, gone):
    """Pixels that are gone become the weighted mean of their neighbours, as a dense system."""
    _, height, width = image.shape
    weights = {(dy, dx): 1 / 6 if 0 in (dy, dx) else 1 / 12 for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    del weights[0, 0]
    left, right = np.eye(height * width), image.reshape(3, -1).T.copy()
    for k in np.flatnonzero(gone):
        near = {(k // width + dy, k % width + dx): w for (dy, dx), w in weights.items()}
        near = {(y, x): w for (y, x), w in near.items() if 0 <= y < height and 0 <= x < width}
        left[k], right[k], left[k, k] = 0, 0, sum(near.values())
        for (y, x), w in near.items():
            left[k, y * width + x] = -w
    return np.linalg.solve(left, right).T.reshape(image.shape)


def test_road_equals_imputation_written_down():
    image, heat = smooth(1, 3, 14, 12)[0] + 1, smooth(1, 14, 12)
    place = faithfulness.removal_order(heat, (14, 12))[0]
    order, differences = place.numpy() / 167, []
    for percentile in (20, 40, 60, 80):
        most, least = (rank <= np.percentile(rank, 100 - percentile) for rank in (order, 1 - order))
        after = [window_answer(torch.tensor(imputed(image.numpy(), g))[None])[0, 1] for g in (most, least)]
        differences.append((after[1] - after[0]).item() / 2)
    (found,) = faithfulness.road(window_answer, image, place, 1)
    assert found == pytest.approx(np.mean(differences), abs=1e-3)  # but for its noise
    assert (found,) == faithfulness.road(window_answer, image, place, 1)


def test_the_answer_is_clips_own_probability_and_a_constant_map_has_none(clip):
    text, images = clip.encode_text(["a circle", "a star"]), torch.randn(2, 3, 224, 224)
    cosines = (
        F.normalize(clip.model.encode_image(images), dim=-1)
        @ F.normalize(clip.projection.text(text), dim=-1).T
    )
    slow = (clip.logit_scale * cosines).softmax(1)
    torch.testing.assert_close(faithfulness.answers(clip, text)(images), slow, atol=1e-4, rtol=0)
    cells, index = torch.stack([torch.ones(7, 7), torch.randn(7, 7)]), torch.tensor([[1, 0], [1, 1]])
    measure = faithfulness.deletion_insertion
    found = faithfulness.faithfulness(measure, clip, images, cells, text, index)
    place = faithfulness.removal_order(cells, clip.size)[1]
    assert found[0].isnan().all()
    assert found[1].tolist() == pytest.approx(
        measure(partial(faithfulness.answers(clip, text)), images[1], place, 1)
    )


# ---------------------------------------------------------------------- the command line and the page


def test_the_command_line_measures_what_it_is_asked(monkeypatch, capsys, tmp_path):
    words = "evaluate clip --networks scenes-ViT-32 --datasets scenes --measures".split()
    asked = "argmax, argmax_background,image_threshold"
    said = ("mIoU by one threshold an image", "argmax mIoU", "argmax mIoU with background")
    number, interval = r"\d+\.\d\d", r" \[\d+\.\d\d, \d+\.\d\d\]"
    for count, end, more in ((10, interval, ""), (3, "", ", too few for an interval")):
        out = tmp_path / str(count)
        assert run(monkeypatch, *words, asked, "--limit", count, "--out", out) is None
        numbers = ", ".join(f"{name} {number} %{end}" for name in said)
        assert re.search(rf"scenes clip: {numbers}; {count} images{more}\n", capsys.readouterr().out)
    (path,) = out.glob("*.csv")
    assert {"iou", "iou_image", "argmax_union", "argmax_background_union"} <= set(pd.read_csv(path))
    assert (
        run(monkeypatch, *words, "miuo")
        == f"eclip: --measures: no 'miuo'; there are {', '.join(scores.SAID)}"
    )
    assert "--slide and --ensemble are for argmax" in run(monkeypatch, *words, "miou", "--slide")
    assert cli.MEASURES.startswith(", ".join(scores.SAID)) and list(scores.SAID)[2:] == list(evaluation.MORE)


@pytest.mark.parametrize("measures", [(), ("argmax",)])
def test_rows_stand_in_the_datasets_order(clip, measures):
    dataset = eclip.load_dataset("scenes", limit=3)
    dataset.items = dataset.items[::-1]
    rows = eclip.evaluate(eclip.explainer("clip", clip), dataset, clip, measures=measures)
    assert list(rows["image_id"].unique()) == [example.image_id for example in dataset]


def test_a_class_called_background_and_an_unknown_measure_are_refused(clip):
    class Own(Dataset):
        name, classes, items = "own", ["background"], [1]

    explain = eclip.explainer("clip", clip)
    with pytest.raises(ValueError, match="own has a class of its own called background"):
        eclip.evaluate(explain, Own(), clip, measures=["argmax_background"])
    assert len(segmentation.Segmentation(clip, Overlapping(), background=True).text) == 4  # circle once
    with pytest.raises(ValueError, match="no measure 'iou'"):
        eclip.evaluate(explain, Hand(), clip, measures=["iou"])


def test_the_worked_example_prints_what_the_page_says(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    exec(code, {})
    said = re.findall(r"# -> (.*)", code)
    assert said and capsys.readouterr().out.strip().splitlines() == said
    assert all(f"`{name}`" in PAGE for name in scores.SAID)


def test_rows_of_other_settings_lie_beside_each_other(tmp_path):
    for given in ({"limit": 2}, {"limit": 3}, {"limit": 2, "measures": "image_threshold"}):
        list(scores.measure("clip", networks="scenes-ViT-32", datasets="scenes", out=tmp_path, **given))
    assert len([*tmp_path.glob("clip-scenes-ViT-32-scenes-*.csv")]) == 3
