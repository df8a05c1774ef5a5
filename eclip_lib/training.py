"""Training a new pair of projections on cached features (§3.3, §4.1): Eq. 9, everything else locked."""

import json
import math
import random
import time
from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .feature_cache import Cache, Pooling
from .method import contrastive_loss
from .progress import tqdm
from .projection import Projection
from .provenance import commit

WARMUP_LR, FINAL_LR = 1e-6, 1e-6


def new_pair(clip, image_width, reads, seed=0, init="random"):
    """An untrained `Projection`. init: "random" (CLIP's own initialisation, the paper's "new") or "clip" (a
    copy of CLIP's pair)."""
    own = clip.projection
    pair = Projection(image_width, own.text.in_features, own.text.out_features, reads=reads)
    if init == "clip":
        if own.image.in_features != image_width:
            raise ValueError(
                f"{clip.network}: its own pair reads width {own.image.in_features}, not {image_width}"
            )
        pair.load_state_dict(
            {name: tensor for name, tensor in own.state_dict().items() if name in pair.state_dict()}
        )
        return pair.requires_grad_(True)
    if init != "random":
        raise ValueError(f"init is 'random' or 'clip', not {init!r}")
    generator = torch.Generator().manual_seed(seed)
    for linear in (pair.image, pair.text):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=generator)
    return pair


def batches(cache, column, batch_size, seed, epoch):
    """Shuffled (pooled, text) batches of one epoch, of one view in turn: shards in random order, rows within
    a window of at least two batches; memory does not grow with the cache. The last short batch is dropped
    where there is a full one."""
    rng, generator = random.Random(f"{seed} {epoch}"), torch.Generator().manual_seed(1000 * seed + epoch)
    shards, waiting, served = rng.sample(cache.shards, len(cache.shards)), [], 0
    view = epoch % cache.about["views"] if cache.about["views"] > 1 else None
    for number, shard in enumerate(shards, 1):
        waiting.append(cache.read(shard, column, view))
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
    """§4.1 with DeiT's schedule: the first epoch linear from 1e-6, then a cosine down to 1e-6."""
    if step < per_epoch:
        return WARMUP_LR + (lr - WARMUP_LR) * step / per_epoch
    progress = (step - per_epoch) / max(1, steps - per_epoch)
    return FINAL_LR + (lr - FINAL_LR) * (1 + math.cos(math.pi * progress)) / 2


class _Ranks(nn.Module):
    """Eq. 9 over the batch of all ranks: each projects its share, open_clip's loss gathers the features. One
    forward for both projections, which DistributedDataParallel needs."""

    def __init__(self, pair, rank, world):
        from open_clip.loss import ClipLoss

        super().__init__()
        self.pair = pair
        self.loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world)

    def forward(self, image, text, scale):
        image, text = F.normalize(self.pair.image(image), dim=-1), F.normalize(self.pair.text(text), dim=-1)
        return self.loss(image, text, scale)


def _check(clip, cache, pooling, epochs, batch_size, world):
    if cache.about["model"] != clip.identity["model"] or cache.about.get("backbone") != clip.identity.get(
        "backbone"
    ):
        raise ValueError(
            f"{cache.folder} holds features of {cache.about['network']}, {cache.about['weights']}, not "
            f"of {clip.network}"
        )
    if pooling not in cache.columns:
        raise ValueError(f"{cache.folder} holds the poolings {cache.about['columns']}, not {str(pooling)!r}")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, not {epochs} and {batch_size}")
    if batch_size % world:
        raise ValueError(f"a batch of {batch_size} cannot be shared by {world} ranks")


def train_pair(
    clip,
    cache: Cache,
    pooling: Pooling | str,
    epochs: int = 10,
    batch_size: int = 1024,
    lr: float = 1e-4,
    weight_decay: float = 0.05,
    seed: int = 0,
    init: str = "random",
    on_epoch=None,
) -> tuple[Projection, pd.DataFrame]:
    """Train a pair on one column of a cache -> (`Projection`, DataFrame of epoch, loss, lr, seconds).

    pooling: a `Pooling`, or as text "attention", "average", "max" or "masked_max:<mask>". batch_size: of all
    ranks together; under torchrun with a process group initialised every rank takes its share and the
    contrastive batch is gathered. on_epoch: called with (epoch, pair). The logit scale stays CLIP's. Raises
    ValueError where the cache belongs to another network."""
    pooling = Pooling.of(pooling)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    _check(clip, cache, pooling, epochs, batch_size, world)
    width = cache.read(cache.shards[0], pooling)[0].shape[1]
    whole = pooling.method == "attention" or pooling.reads == "tokens"
    pair = new_pair(clip, width, "tokens" if whole else cache.about["reads"], seed, init).to(clip.device)
    loss_of: Callable = partial(contrastive_loss, pair)
    if world > 1:
        loss_of = nn.parallel.DistributedDataParallel(_Ranks(pair, rank, world))
    optimizer = torch.optim.AdamW(pair.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    per_epoch = max(1, len(cache) // cache.about["views"] // batch_size)
    schedule = LambdaLR(optimizer, lambda step: learning_rate(step, epochs * per_epoch, per_epoch, lr) / lr)
    history = []
    for epoch in tqdm(range(epochs), desc=f"training {pooling}", unit="epoch", disable=rank > 0 or None):
        begin, total, count = time.perf_counter(), torch.zeros((), device=clip.device), 0
        for image, text in batches(cache, pooling, batch_size, seed, epoch):
            share = slice(rank * len(text) // world, (rank + 1) * len(text) // world)
            image, text = image[share].to(clip.device), text[share].to(clip.device)
            loss = loss_of(image, text, clip.logit_scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate = optimizer.param_groups[0]["lr"]
            schedule.step()
            total, count = total + loss.detach(), count + 1
        mean = total / count
        if world > 1:
            dist.all_reduce(mean)
            mean /= world
        loss = float(mean)  # waits for the device
        seconds = time.perf_counter() - begin
        history.append({"epoch": epoch + 1, "loss": loss, "lr": rate, "seconds": seconds})
        if on_epoch:
            on_epoch(epoch + 1, pair)
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "seed": seed,
        "init": init,
    }
    pair.metadata = _metadata(clip, cache, pooling, settings)
    return pair.requires_grad_(False), pd.DataFrame(history)


def _metadata(clip, cache, pooling, settings):
    mask = cache.about["masks"].get(pooling.mask, ["none"])  # the model's name, and its digest
    settings |= {"views": cache.about["views"], "augment": cache.about["augment"]}
    identity = {"network": clip.network, "weights": clip.pretrained, "model": clip.identity["model"]}
    data = {
        "data": json.dumps(cache.about["pairs"], default=list),
        "pairs": str(len(cache)),
        "features": cache.identity,
    }
    return (
        identity
        | data
        | {
            "pooling": str(pooling),
            "mask": " ".join(mask),
            "settings": json.dumps(settings),
            "commit": commit()["commit"],
        }
    )


@torch.no_grad()
def validation_loss(clip, cache, pair, pooling, batch_size=256):
    """Eq. 9 on a cache of held-out pairs, mean over its full batches (rows in order)."""
    rows = [cache.read(shard, pooling) for shard in cache.shards]
    image, text = (torch.cat(parts) for parts in zip(*rows, strict=True))
    full = max(1, len(text) // batch_size)
    chunks = zip(image.split(batch_size)[:full], text.split(batch_size)[:full], strict=True)
    here = ((i.to(clip.device), t.to(clip.device)) for i, t in chunks)
    values = [contrastive_loss(pair, i, t, clip.logit_scale) for i, t in here]
    return float(sum(values) / full)
