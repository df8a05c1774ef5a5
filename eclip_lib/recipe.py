"""What training is made of (§4.1): a new pair, the shuffled batches of an epoch, the learning rate."""

import math
import random

import torch
from torch import nn

from .projection import Projection

WARMUP_LR, FINAL_LR = 1e-6, 1e-6


def new_pair(clip, image_width, reads, seed=0, init="random"):
    """An untrained `Projection`. init: "random" (CLIP's own initialisation, the paper's "new") or "clip" (a
    copy of CLIP's pair)."""
    own = clip.projection
    image_bias, text_bias = (init == "clip" and side.bias is not None for side in (own.image, own.text))
    shape = (image_width, own.text.in_features, own.text.out_features)
    pair = Projection(*shape, image_bias, reads, text_bias=text_bias)
    if init == "clip":
        if own.image.in_features != image_width:
            raise ValueError(
                f"{clip.network}: its own pair reads width {own.image.in_features}, not {image_width}"
            )
        pair.load_state_dict(own.state_dict())
        return pair.requires_grad_(True)
    if init != "random":
        raise ValueError(f"init is 'random' or 'clip', not {init!r}")
    generator = torch.Generator().manual_seed(seed)
    for linear in (pair.image, pair.text):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=generator)
    return pair


def batches(view, column, batch_size, seed, epoch):
    """Shuffled (pooled, text) batches of one epoch over a `View`: shards in random order, rows within a
    window of at least two batches; memory does not grow with the cache. The last short batch is dropped where
    there is a full one."""
    rng, generator = random.Random(f"{seed} {epoch}"), torch.Generator().manual_seed(1000 * seed + epoch)
    shards, waiting, served = rng.sample(view.shards, len(view.shards)), [], 0
    for number, shard in enumerate(shards, 1):
        waiting.append(view.read(shard, column))
        last = number == len(shards)
        if sum(len(text) for _, text in waiting) < 2 * batch_size and not last:
            continue
        image, text = (torch.cat(parts) for parts in zip(*waiting, strict=True))
        order = torch.randperm(len(text), generator=generator)
        full = len(order) // batch_size * batch_size
        for rows in order[:full].split(batch_size) if full else ():
            yield image[rows], text[rows]
            served += 1
        rest = order[full:]
        waiting = [(image[rest], text[rest])] if len(rest) else []
        if last and not served and len(rest):
            yield waiting[0]


def learning_rate(step, steps, per_epoch, lr):
    """§4.1: the first epoch (of a training of one, its first tenth) linear from 1e-6, then a cosine down to
    1e-6. That the paper's [35] is DeiT, whose augmentation it takes, is inferred from the order of its
    references; DeiT's own schedule has five warm-up epochs and ends at 1e-5."""
    warmup = per_epoch if per_epoch < steps else steps // 10
    if step < warmup:
        return WARMUP_LR + (lr - WARMUP_LR) * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return FINAL_LR + (lr - FINAL_LR) * (1 + math.cos(math.pi * progress)) / 2
