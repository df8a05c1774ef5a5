"""evaluation/metrics.py against slow, obvious versions written from §4.1."""

import numpy as np
import pytest
import torch

import eclip_lib as eclip
from eclip_lib.evaluation.metrics import _levels


def slow_best_iou(heat, mask, void):
    """101 comparisons with float32(k / 100), as one would write them down."""
    best, threshold = -1.0, None
    for k in range(101):
        prediction = (heat >= np.float32(k / 100)) & ~void
        iou = (prediction & mask & ~void).sum() / (prediction | (mask & ~void)).sum()
        if iou > best:
            best, threshold = iou, k / 100
    return best, threshold


def cases():
    rng = np.random.default_rng(0)
    levels = np.array([np.float32(k / 100) for k in range(101)])
    uniform, on_thresholds = rng.random((17, 23), dtype=np.float32), rng.choice(levels, (17, 23))
    just_below = np.nextafter(rng.choice(levels[1:], (17, 23)), np.float32(0))
    for heat in (uniform, on_thresholds, just_below, rng.choice(levels[[0, 100]], (17, 23))):
        yield heat, rng.random((17, 23)) < 0.3, rng.random((17, 23)) < 0.1
    yield np.full((17, 23), 0.5, np.float32), rng.random((17, 23)) < 0.3, np.zeros((17, 23), bool)


def test_best_iou_equals_the_loop_exactly():
    for heat, mask, void in cases():
        for v in (void, np.zeros_like(void)):
            iou, threshold = eclip.best_iou(*map(torch.tensor, (heat, mask, v)))
            assert (iou.item(), threshold.item()) == slow_best_iou(heat, mask, v)


def test_best_iou_over_a_batch_with_leading_axes():
    heat, mask, void = (torch.stack([torch.tensor(a) for a in part]) for part in zip(*cases(), strict=True))
    one = [eclip.best_iou(h, m, v) for h, m, v in zip(heat, mask, void, strict=True)]
    iou, threshold = eclip.best_iou(*(part[:4].view(2, 2, 17, 23) for part in (heat, mask, void)))
    assert iou.shape == (2, 2) and iou.flatten().tolist() == [float(i) for i, _ in one[:4]]
    assert threshold.flatten().tolist() == [float(t) for _, t in one[:4]]


def test_every_threshold_is_the_float32_of_k_hundredths():
    exact = torch.tensor([np.float32(k / 100) for k in range(101)])
    below = torch.nextafter(exact[1:], torch.tensor(0.0))
    assert _levels(exact).tolist() == list(range(101))
    assert _levels(below).tolist() == list(range(100))


def test_empty_mask_has_no_iou_and_no_contrast():
    heat, empty = torch.rand(5, 5), torch.zeros(5, 5, dtype=torch.bool)
    assert all(v.isnan() for v in eclip.best_iou(heat, empty))
    assert eclip.score_contrast(heat, empty).isnan() and eclip.score_contrast(heat, ~empty).isnan()


def test_score_contrast_is_the_difference_of_two_means():
    for heat, mask, void in cases():
        slow = heat[mask & ~void].mean(dtype=np.float64) - heat[~mask & ~void].mean(dtype=np.float64)
        fast = eclip.score_contrast(*map(torch.tensor, (heat, mask, void)))
        assert fast.item() == pytest.approx(slow, abs=1e-6)


def test_reversed_map_has_the_opposite_contrast():  # acceptance test of Eq. 10 (the paper's Table 2 obeys it)
    heat, mask = torch.rand(9, 9), torch.rand(9, 9) < 0.4
    difference = eclip.score_contrast(eclip.reverse(heat), mask) + eclip.score_contrast(heat, mask)
    assert abs(difference.item()) < 1e-6


@pytest.mark.parametrize("function", [eclip.best_iou, eclip.score_contrast])
def test_bad_input_is_refused(function):
    maps, masks = torch.rand(4, 4), torch.ones(4, 4, dtype=torch.bool)
    for wrong in (maps + 1, maps - 1, maps * torch.nan):
        with pytest.raises(ValueError, match="lie in"):
            function(wrong, masks)
    for other, message in ((masks[1:], "one shape"), (maps, "bool")):
        with pytest.raises(ValueError, match=message):
            function(maps, other)


def test_average_precision_by_hand():
    # ranked: positive, negative, positive -> (1/1 + 2/3) / 2
    scores, labels = [[0.9, 0.1], [0.5, 0.2], [0.1, 0.3]], [[True, False], [False, False], [True, False]]
    result = eclip.average_precision(torch.tensor(scores), torch.tensor(labels))
    assert result[0] == pytest.approx(5 / 6) and np.isnan(result[1])
