"""How a map is scored (paper §4.1): best IoU over 101 thresholds, score contrast, average precision."""

import numpy as np
import torch

STEPS = 100  # thresholds 0, 0.01, … 1.00


def _check(maps, masks, void):
    shapes = {tuple(t.shape) for t in (maps, masks, void) if t is not None}
    if len(shapes) != 1:
        raise ValueError(f"maps, masks and void must have one shape, not {sorted(shapes)}")
    if masks.dtype != torch.bool or (void is not None and void.dtype != torch.bool):
        raise ValueError("masks and void must be bool")
    low, high = maps.aminmax() if maps.numel() else (0, 1)
    if not (low >= 0 and high <= 1):  # false for nan as well
        raise ValueError("maps must lie in [0, 1]; itsm() gives such maps")


def _levels(maps):
    """How many of the thresholds float32(k/100), k = 1 … 100, each float32 value reaches: the largest k with
    value >= threshold.

    A threshold is the float32 nearest to k/100, so a value reaches it just when the midpoint between the
    value and the next float32 lies above k/100. Half a float32 step is bit 28 of a float64, and 100 times the
    midpoint is exact there."""
    middle = maps.float().double()
    middle.view(torch.int64).add_(1 << 28)
    return middle.mul_(STEPS).to(torch.int32)


def iou_curve(maps: torch.Tensor, masks: torch.Tensor, void: torch.Tensor | None = None) -> torch.Tensor:
    """IoU of {M >= t} with the mask at t = 0, 0.01, … 1.00 (§4.1) -> float64 [..., 101]; nan where the mask
    is empty.

    maps: float32 [..., H, W] in [0, 1]. masks, void: bool [..., H, W]; void pixels count neither way. Exactly
    what 101 comparisons with float32(k/100) give, from one histogram and its cumulative sum."""
    _check(maps, masks, void)
    shape, pixels = maps.shape[:-2], maps.shape[-2] * maps.shape[-1]
    count, bins = maps.numel() // max(pixels, 1), STEPS + 1
    code = _levels(maps).reshape(count, pixels).add_(masks.reshape(count, pixels), alpha=bins)
    if void is not None:
        code.masked_fill_(void.reshape(count, pixels), 2 * bins)
    code += torch.arange(count, device=maps.device, dtype=torch.int32)[:, None] * (2 * bins + 1)
    histogram = torch.bincount(code.flatten(), minlength=count * (2 * bins + 1)).reshape(count, -1)
    background, foreground = histogram[:, :bins], histogram[:, bins : 2 * bins]
    # pixels at level k or above are the prediction at threshold k/100
    false, true = (h.flip(1).cumsum(1).flip(1).double() for h in (background, foreground))
    total = foreground.sum(1, keepdim=True)
    return (true / (total + false)).masked_fill(total == 0, torch.nan).reshape(*shape, bins)


def best_iou(
    maps: torch.Tensor, masks: torch.Tensor, void: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """mIoU's threshold search (§4.1): the best of `iou_curve` -> (iou [...], threshold [...]), float64, the
    lowest of tied thresholds; nan where the mask is empty."""
    return best_of(iou_curve(maps, masks, void))


def best_of(curve: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`iou_curve` [..., 101] -> its best IoU and the lowest threshold that reaches it [...], float64."""
    best = curve.max(-1).values
    steps = torch.arange(STEPS + 1, device=curve.device)
    first = torch.where(curve == best[..., None], steps, STEPS).amin(-1).double() / STEPS
    return best, first.masked_fill(best.isnan(), torch.nan)


def image_iou(curves: torch.Tensor) -> torch.Tensor:
    """One threshold for all classes of an image: `iou_curve`s [n, 101] of its n classes -> [n], the IoU of
    each at the threshold where their mean is best, the lowest of tied ones."""
    return curves[:, best_of(curves.mean(0))[1].mul(STEPS).round().long()]


def score_contrast(maps: torch.Tensor, masks: torch.Tensor, void: torch.Tensor | None = None) -> torch.Tensor:
    """mSC's summand (§4.1): mean of M on the foreground minus its mean on the background.

    maps: [..., H, W] in [0, 1]. masks, void: bool [..., H, W]. Returns [...] float64 in [-1, 1]; nan where
    there is no foreground or no background pixel."""
    _check(maps, masks, void)
    maps, foreground = maps.float(), (masks if void is None else masks & ~void).float()

    def total(rows):  # rows are summed in float32, which keeps counts exact, then added in float64
        return rows.sum(-1, dtype=torch.float64)

    inside, count = total(torch.linalg.vecdot(maps, foreground)), total(foreground.sum(-1))
    if void is None:
        everything, pixels = total(maps.sum(-1)), maps.shape[-2] * maps.shape[-1]
    else:
        valid = (~void).float()
        everything, pixels = total(torch.linalg.vecdot(maps, valid)), total(valid.sum(-1))
    contrast = inside / count - (everything - inside) / (pixels - count)
    return contrast.masked_fill((count == 0) | (count == pixels), torch.nan)


def average_precision(scores, labels):
    """Recognition (Table 4): average precision per class over images. scores: [N, K]. labels: bool [N, K].
    Returns a float64 array [K], nan for a class without a positive image; its nan-mean is the mAP."""
    from sklearn.metrics import average_precision_score

    scores, labels = np.asarray(scores), np.asarray(labels)
    per_class = zip(scores.T, labels.T, strict=True)
    return np.array([average_precision_score(y, s) if y.any() else np.nan for s, y in per_class])
