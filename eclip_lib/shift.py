"""Feature shift and semantic shift (paper §3.2 "Reason analyze", Appendix A; Figs. 4 and 9, Table 5).

Tokens are projected first, so a channel is one of the D dimensions in which image and text are compared. A
channel's position under max pooling is the token where it is largest; under another pooling, the token whose
value is closest to the pooled one. The lowest token wins a tie. A channel is shifted when its two positions
lie on opposite sides of the foreground."""

import torch
import torch.nn.functional as F

POOLINGS = ("max", "average", "attention")


def channels(features, projection):
    """Project the tokens a pair reads -> (values [B, N, D], {pooling: pooled value [B, D]})."""
    values = projection.image(features.read(projection.reads))
    pooled = {
        "max": values.amax(1),
        "average": values.mean(1),
        "attention": projection.image(features.class_token),
    }
    return values, pooled


def positions(values, pooled):
    """The token of every channel whose value is closest to the pooled one. values: [B, N, D], pooled: [B, D]
    -> int64 [B, D]."""
    return (values - pooled[:, None]).abs_().argmin(1)


def foreground_tokens(mask, void, grid):
    """Tokens more than half of whose pixels are foreground; void pixels count neither way. bool [H, W] ->
    bool [N]."""
    counts = torch.ones_like(mask) if void is None else ~void
    inside, valid = (F.adaptive_avg_pool2d(m[None].float(), grid).flatten() for m in (mask, counts))
    return inside > 0.5 * valid


def semantic_shift(at_max, at_other, foreground):
    """Which channels shift. at_max, at_other: positions [B, D]; foreground: bool [B, N] -> (B2F, F2B), bool
    [B, D].

    B2F: on the background under max pooling, on the foreground under the other; F2B the reverse."""
    before, after = (foreground.gather(1, place) for place in (at_max, at_other))
    return ~before & after, before & ~after


def dispersion(place, at_max, grid):
    """Feature shift (Fig. 4): positions [B, D] -> (share of distinct positions among the channels [B], mean
    distance from the max positions [B] in token widths)."""
    tokens = grid[0] * grid[1]
    hit = torch.zeros(len(place), tokens, device=place.device).scatter_(1, place, 1.0)
    rows, columns = ((p // grid[1], p % grid[1]) for p in (place, at_max))
    distance = ((rows[0] - columns[0]).float() ** 2 + (rows[1] - columns[1]).float() ** 2).sqrt()
    return hit.sum(1) / min(tokens, place.shape[1]), distance.mean(1)


def without_channels(values, text, left_out):
    """Eq. 4 with some channels left out of the cosine. values: [B, N, D] projected tokens, text: [T, D]
    projected, left_out: bool [B, D] -> [B, T, N]."""
    keep = (~left_out).float()
    tokens = F.normalize(values * keep[:, None], dim=-1)
    texts = F.normalize(text[None] * keep[:, None], dim=-1)
    return texts @ tokens.transpose(1, 2)


def shift_statistics(values, pooled, foreground, grid):
    """All of it for a batch's `channels` -> (dict of [B] statistics, shifted bool [B, D]). foreground: bool
    [B, N].

    B2F, F2B, same: numbers of channels under attention against max pooling; on_max, on_attention: of those
    whose position is foreground; tokens: share of the tokens that are; distinct_<pooling>,
    distance_<pooling>: `dispersion`."""
    place = {name: positions(values, value) for name, value in pooled.items()}
    b2f, f2b = semantic_shift(place["max"], place["attention"], foreground)
    result = {"B2F": b2f.sum(1), "F2B": f2b.sum(1), "same": (~(b2f | f2b)).sum(1)}
    result |= {f"on_{name}": foreground.gather(1, place[name]).sum(1) for name in ("max", "attention")}
    result["tokens"] = foreground.double().mean(1)
    for name in POOLINGS:
        result[f"distinct_{name}"], result[f"distance_{name}"] = dispersion(place[name], place["max"], grid)
    return result, b2f | f2b
