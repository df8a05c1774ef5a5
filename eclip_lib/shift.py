"""Feature shift and semantic shift (paper §3.2 "Reason analyze", Appendix A; Figs. 4 and 9, Table 5).

Tokens are projected first, so a channel is one of the D dimensions in which image and text are compared. A channel's position
under max pooling is the token where it is largest; under another pooling, the token whose value is closest to the pooled one. The lowest
token wins a tie. A channel is shifted when its two positions lie on opposite sides of the foreground."""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from .clip import stacked
from .evaluation import batches, prompts
from .itsm import itsm
from .metrics import score_contrast

SIZES = {"(0, 0.25]": (0, 0.25), "(0.25, 0.75]": (0.25, 0.75), "(0.75, 1]": (0.75, 1), "(0, 1]": (0, 1)}  # Table 5's bins
POOLINGS = ("max", "average", "attention")


def channels(features, projection):
    """Project the tokens a pair reads -> (values [B, N, D], {pooling: pooled value [B, D]})."""
    from_map = projection.reads == "feature_map" and features.feature_map is not None
    values = projection.image(features.feature_map if from_map else features.tokens)
    pooled = {"max": values.amax(1), "average": values.mean(1), "attention": projection.image(features.class_token)}
    return values, pooled


def positions(values, pooled):
    """The token of every channel whose value is closest to the pooled one. values: [B, N, D], pooled: [B, D] -> int64 [B, D]."""
    return (values - pooled[:, None]).abs_().argmin(1)


def foreground_tokens(mask, void, grid):
    """Tokens more than half of whose pixels are foreground; void pixels count neither way. bool [H, W] -> bool [N]."""
    inside, valid = (
        F.adaptive_avg_pool2d(m[None].float(), grid).flatten() for m in (mask, torch.ones_like(mask) if void is None else ~void)
    )
    return inside > 0.5 * valid


def semantic_shift(at_max, at_other, foreground):
    """Which channels shift. at_max, at_other: positions [B, D]; foreground: bool [B, N] -> (B2F, F2B), bool [B, D].

    B2F: on the background under max pooling, on the foreground under the other; F2B the reverse."""
    before, after = (foreground.gather(1, place) for place in (at_max, at_other))
    return ~before & after, before & ~after


def dispersion(place, at_max, grid):
    """Feature shift (Fig. 4): positions [B, D] -> (share of distinct positions among the channels [B], mean distance from the max
    positions [B] in token widths)."""
    tokens = grid[0] * grid[1]
    hit = torch.zeros(len(place), tokens, device=place.device).scatter_(1, place, 1.0)
    rows, columns = ((p // grid[1], p % grid[1]) for p in (place, at_max))
    distance = ((rows[0] - columns[0]).float() ** 2 + (rows[1] - columns[1]).float() ** 2).sqrt()
    return hit.sum(1) / min(tokens, place.shape[1]), distance.mean(1)


def without_channels(values, text, left_out):
    """Eq. 4 with some channels left out of the cosine. values: [B, N, D] projected tokens, text: [T, D] projected, left_out: bool
    [B, D] -> [B, T, N]."""
    keep = (~left_out).float()
    tokens, texts = F.normalize(values * keep[:, None], dim=-1), F.normalize(text[None] * keep[:, None], dim=-1)
    return texts @ tokens.transpose(1, 2)


def shift_statistics(values, pooled, foreground, grid):
    """All of it for a batch's `channels` -> (dict of [B] statistics, shifted bool [B, D]). foreground: bool [B, N].

    B2F, F2B, same: numbers of channels under attention against max pooling; distinct_<pooling>, distance_<pooling>: `dispersion`."""
    place = {name: positions(values, value) for name, value in pooled.items()}
    b2f, f2b = semantic_shift(place["max"], place["attention"], foreground)
    result = {"B2F": b2f.sum(1), "F2B": f2b.sum(1), "same": (~(b2f | f2b)).sum(1)}
    for name in POOLINGS:
        result[f"distinct_{name}"], result[f"distance_{name}"] = dispersion(place[name], place["max"], grid)
    return result, b2f | f2b


@torch.no_grad()
def shift_rows(dataset, clip, projection=None, workers=0, batch_size=32, ablate=True, seed=0):
    """One row an image: image_id, foreground (share of its pixels), `shift_statistics`, mSC (mean contrast over its classes) and, with
    `ablate`, mSC_kept and mSC_random: the contrast with the shifted channels left out, and with as many random ones."""
    projection, generator = projection or clip.projection, torch.Generator().manual_seed(seed)
    text, number = prompts(dataset, clip), {name: k for k, name in enumerate(dataset.classes)}
    text, rows = projection.text(text), []
    for batch in batches(dataset, clip, batch_size, workers, "measuring shift"):
        batch = [item for item in batch if item[2]]
        if not batch:
            continue
        features = clip.encode_image(stacked([prepared for _, prepared, *_ in batch], clip.device))
        union = [masks.any(0) for *_, masks, _ in batch]
        foreground = [foreground_tokens(m, void, features.grid) for m, (*_, void) in zip(union, batch, strict=True)]
        values, pooled = channels(features, projection)
        statistics, shifted = shift_statistics(values, pooled, torch.stack(foreground).to(clip.device), features.grid)
        noise = torch.rand(shifted.shape, generator=generator).argsort(1).argsort(1).to(clip.device)
        variants = {"mSC": torch.zeros_like(shifted)}
        if ablate:
            variants |= {"mSC_kept": shifted, "mSC_random": noise < shifted.sum(1, keepdim=True)}
        contrasts = {name: [] for name in variants}
        for name, left_out in variants.items():
            cells = without_channels(values, text, left_out).unflatten(-1, features.grid)
            for k, (_, _, names, masks, void) in enumerate(batch):
                maps = itsm(cells[k : k + 1, [number[n] for n in names]], masks.shape[1:])[0]
                void = None if void is None else void.expand(len(names), -1, -1).to(maps.device)
                contrasts[name].append(score_contrast(maps, masks.to(maps.device), void).nanmean().item())
        table = pd.DataFrame({name: values.cpu().numpy() for name, values in statistics.items()})
        shares = [float((m if v is None else m & ~v).sum() / (m.numel() if v is None else (~v).sum()))
                  for m, (*_, v) in zip(union, batch, strict=True)]  # fmt: skip
        table.insert(0, "image_id", [image_id for image_id, *_ in batch])
        rows.append(table.assign(foreground=shares, **contrasts))
    return pd.concat(rows, ignore_index=True)


def by_size(rows, ratio="foreground"):
    """Table 5: mean channel numbers by size. ratio: "foreground", or "background" for the inverted axis. One line a bin: size, images
    (share in %), B2F, F2B, same, and shifted (share of the channels in %)."""
    share = rows["foreground"] if ratio == "foreground" else 1 - rows["foreground"]
    lines = []
    for name, (low, high) in SIZES.items():
        part = rows[(share > low) & (share <= high)]
        means = {column: part[column].mean() if len(part) else np.nan for column in ("B2F", "F2B", "same")}
        shifted = 100 * (means["B2F"] + means["F2B"]) / sum(means.values())
        lines.append({"size": name, "images": 100 * len(part) / len(rows), **means, "shifted": shifted})
    return pd.DataFrame(lines)


def rank_correlation(x, y, resamples=1000, seed=0):
    """Spearman's rank correlation with its 95 % bootstrap interval over images -> (rho, low, high)."""
    table = pd.DataFrame({"x": np.asarray(x), "y": np.asarray(y)}).dropna()
    ranks, rng = table.rank().to_numpy(), np.random.default_rng(seed)
    draws = rng.integers(0, len(ranks), (resamples, len(ranks)))
    sample = np.array([np.corrcoef(pd.DataFrame(ranks[d]).rank().to_numpy().T)[0, 1] for d in draws])
    return (np.corrcoef(ranks.T)[0, 1], *np.nanpercentile(sample, [2.5, 97.5]))
