"""What gradient methods share: they explain one (image, text) pair at a time, so only the pairs that are asked for are computed."""

import torch

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
