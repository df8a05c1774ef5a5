"""What gradient methods share: they explain one (image, text) pair at a time, so only the pairs that are asked for are computed."""

import torch

from ..encoders import embed_vit

CHUNK = 32  # pairs a backward pass holds at once


def pairwise(explain):
    """explain(images, text, index [P, 2]) -> [P, h, w], as an explainer: callable for all pairs, with `.pairs` for some."""

    def pairs(images, text, index):
        return torch.cat([explain(images, text, part) for part in index.split(CHUNK)])

    def every(images, text):
        index = torch.cartesian_prod(*(torch.arange(len(x), device=x.device) for x in (images, text)))
        return pairs(images, text, index.reshape(-1, 2)).unflatten(0, (len(images), len(text)))

    every.pairs = pairs
    return every


@torch.no_grad()
def tokens_before(clip, images, index, first):
    """What a ViT's block number `first` reads, for every pair [P, 1 + N, C]; each image runs through the earlier blocks once. Requires a
    gradient, so that everything after it is differentiable."""
    used, place = index[:, 0].unique(return_inverse=True)
    x = embed_vit(clip.model.visual, images[used].to(clip.device))
    for block in clip.model.visual.transformer.resblocks[:first]:
        x = block(x)
    return x[place].requires_grad_()
