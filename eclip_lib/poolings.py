"""Every pooling of image-text pairs in one pass over them (§3.3, Eq. 7): the columns of the feature cache."""

from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F

from . import files
from .datasets.pair_views import LeftOut, PairViews, augmentation, usable
from .method import METHODS, pool
from .networks.attention import SelfAttention, resize_attention
from .networks.clip import loaded, to_batch

GROUND_TRUTH = "ground truth"


@dataclass(frozen=True)
class Pooling:
    """One way to make one vector of an image's tokens, a column of the cache. method: of `method.METHODS`.
    mask: the name of the mask of "masked_max". reads: "tokens" on a ResNet, where the tokens after the
    attention pool are pooled, not the last stage's feature map; else None."""

    method: str
    mask: str | None = None
    reads: str | None = None

    def __post_init__(self):
        if self.method not in METHODS or (self.method == "masked_max") != (self.mask is not None):
            raise ValueError(
                f"no pooling {files.few([self])!r}; there are {', '.join(METHODS)}, the last as "
                "masked_max:NAME of a mask"
            )

    def __str__(self):
        return (f"{self.reads}/" if self.reads else "") + self.method + (f":{self.mask}" if self.mask else "")

    @classmethod
    def of(cls, text: "str | Pooling") -> "Pooling":
        """The pooling that `str` wrote: "average", "masked_max:DINO", "tokens/max"."""
        if isinstance(text, Pooling):
            return text
        reads, _, rest = text.partition("/") if text.startswith("tokens/") else (None, "", text)
        method, _, mask = rest.partition(":")
        return cls(method, mask or None, reads)

    @property
    def label(self):
        """As Table 3 calls it: "max, mask: DINO"."""
        return f"max, mask: {self.mask}" if self.mask else self.method


def pooled_columns(features, attentions):
    """Every pooling of a batch: `ImageFeatures` and {mask name: A [B, N]} -> {column: [B, C]}."""
    rows = {"attention": features.class_token}
    for reads in [None] if features.feature_map is None else [None, "tokens"]:
        pooled = partial(pool, features, reads=reads or "feature_map")
        for method in ("average", "max"):
            rows[str(Pooling(method, reads=reads))] = pooled(method)
        for name, attention in attentions.items():
            rows[str(Pooling("masked_max", name, reads))] = pooled("masked_max", attention)
    return rows


def columns_of(reads, masks):
    """The names of `pooled_columns`. reads: `Clip.pools`."""
    poolings = [Pooling("average"), Pooling("max"), *(Pooling("masked_max", name) for name in masks)]
    if reads == "feature_map":
        poolings += [replace(pooling, reads="tokens") for pooling in poolings]
    return [str(pooling) for pooling in (Pooling("attention"), *poolings)]


@torch.no_grad()
def encode_pairs(clip, masks, source, part, about, view=0, workers=0, attention=None, seen=None):
    """One view of one part -> ({column: [n, C]}, `LeftOut`).

    attention: {name: A of every pair on the mask's own grid, nan where it is not known}, of the
    self-supervised masks; what is not known is added. seen: called with the number of pairs after each
    batch."""
    left_out, columns = LeftOut(partial(source.place, part)), {}
    attention = {} if attention is None else attention
    items = usable(source.read(part), left_out)
    for name, mask in masks.items():
        if isinstance(mask, SelfAttention):
            attention.setdefault(name, torch.full((len(items), mask.grid[0] * mask.grid[1]), torch.nan))
    transform = augmentation(clip, about["augment"])
    views = PairViews(source, items, transform, about["seed"], view, GROUND_TRUTH in masks)
    for number, batch in enumerate(loaded(views, about["batch_size"], workers)):
        places = range(number * about["batch_size"], number * about["batch_size"] + len(batch))
        good = [(place, *pair) for place, pair in zip(places, batch, strict=True) if pair is not None]
        for place in {*places} - {place for place, *_ in good}:
            left_out.add("with a picture that cannot be read", items[place][0])
        if seen:
            seen(len(batch))
        if not good:
            continue
        places, pictures, captions, truths = map(list, zip(*good, strict=True))
        images = to_batch(pictures, clip.device)
        features, rgb = clip.encode_image(images), clip.to_rgb(images)
        found = {}
        for name, mask in masks.items():
            known = attention.get(name)
            if known is not None and known[places].isnan().any():
                known[places] = mask(rgb).float().cpu()
            found[name] = _on_grid(mask, rgb, features.grid, truths, known, places)
        rows = pooled_columns(features, found) | {"text": clip.encode_text(captions, quote=False)}
        for name, tensor in rows.items():
            columns.setdefault(name, []).append(tensor.float().cpu())
    return {name: torch.cat(parts).contiguous() for name, parts in columns.items()}, left_out


def _on_grid(mask, rgb, grid, truths, known, places):
    """A [B, N] of a mask on CLIP's grid."""
    if known is not None:
        return resize_attention(known[places].to(rgb.device), mask.grid, grid)
    if mask is True:  # the source's own masks: each cell's share of the foreground
        return F.adaptive_avg_pool2d(torch.stack(truths).float(), grid).flatten(1).to(rgb.device)
    return mask(rgb, grid)
