"""metrics.py against slow, obvious versions written from §4.1."""

import numpy as np
import pytest
import torch

import eclip_lib as eclip


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
    for kind in ("uniform", "on the thresholds", "just below them", "two values"):
        heat = {
            "uniform": rng.random((17, 23), dtype=np.float32),
            "on the thresholds": rng.choice(levels, (17, 23)),
            "just below them": np.nextafter(rng.choice(levels[1:], (17, 23)), np.float32(0)),
            "two values": rng.choice(np.array([0, 1], np.float32), (17, 23)),
        }[kind]
        yield heat, rng.random((17, 23)) < 0.3, rng.random((17, 23)) < 0.1
    yield np.full((17, 23), 0.5, np.float32), rng.random((17, 23)) < 0.3, np.zeros((17, 23), bool)


def test_best_iou_equals_the_loop_exactly():
    for heat, mask, void in cases():
        for v in (void, np.zeros_like(void)):
            iou, threshold = eclip.best_iou(torch.tensor(heat), torch.tensor(mask), torch.tensor(v))
            assert (iou.item(), threshold.item()) == slow_best_iou(heat, mask, v)


def test_best_iou_over_a_batch_with_leading_axes():
    heat, mask, void = (torch.stack([torch.tensor(a) for a in part]) for part in zip(*cases(), strict=True))
    one = [eclip.best_iou(h, m, v) for h, m, v in zip(heat, mask, void, strict=True)]
    iou, threshold = eclip.best_iou(heat[:4].view(2, 2, 17, 23), mask[:4].view(2, 2, 17, 23), void[:4].view(2, 2, 17, 23))
    assert iou.shape == (2, 2) and iou.flatten().tolist() == [float(i) for i, _ in one[:4]]
    assert threshold.flatten().tolist() == [float(t) for _, t in one[:4]]


def test_every_threshold_is_the_float32_of_k_hundredths():
    from eclip_lib.metrics import _levels

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
        assert eclip.score_contrast(torch.tensor(heat), torch.tensor(mask), torch.tensor(void)).item() == pytest.approx(
            slow, abs=1e-6
        )


def test_reversed_map_has_the_opposite_contrast():  # acceptance test of Eq. 10 (the paper's Table 2 obeys it)
    heat, mask = torch.rand(9, 9), torch.rand(9, 9) < 0.4
    difference = eclip.score_contrast(eclip.reverse(heat), mask) + eclip.score_contrast(heat, mask)
    assert abs(difference.item()) < 1e-6


@pytest.mark.parametrize(
    "maps, masks, message",
    [
        (torch.rand(4, 4) + 1, torch.ones(4, 4, dtype=torch.bool), "lie in"),
        (torch.full((4, 4), torch.nan), torch.ones(4, 4, dtype=torch.bool), "lie in"),
        (torch.rand(4, 4), torch.ones(4, 5, dtype=torch.bool), "one shape"),
        (torch.rand(4, 4), torch.ones(4, 4), "bool"),
    ],
)
def test_bad_input_is_refused(maps, masks, message):
    for function in (eclip.best_iou, eclip.score_contrast):
        with pytest.raises(ValueError, match=message):
            function(maps, masks)


def test_average_precision_by_hand():
    # ranked: positive, negative, positive -> (1/1 + 2/3) / 2
    result = eclip.average_precision(
        torch.tensor([[0.9, 0.1], [0.5, 0.2], [0.1, 0.3]]), torch.tensor([[1, 0], [0, 0], [1, 0]]).bool()
    )
    assert result[0] == pytest.approx(5 / 6) and np.isnan(result[1])
