"""Training a new pair of projections on cached features (§3.3, §4.1): Eq. 9, everything else locked."""

import json
import math
import random
import subprocess
import time

import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from .cache import TOKENS
from .clip import Projection
from .profiles import REPOSITORY

WARMUP_LR, FINAL_LR = 1e-6, 1e-6


def new_pair(clip, image_width, reads, seed=0, init="random"):
    """An untrained `Projection`. init: "random" (CLIP's own initialisation, the paper's "new") or "clip" (a copy of CLIP's pair)."""
    own = clip.projection
    pair = Projection(image_width, own.text.in_features, own.text.out_features, reads=reads)
    if init == "clip":
        if own.image.in_features != image_width:
            raise ValueError(f"{clip.network}: its own pair reads width {own.image.in_features}, not {image_width}")
        pair.load_state_dict({name: tensor for name, tensor in own.state_dict().items() if name in pair.state_dict()})
        return pair.requires_grad_(True)
    if init != "random":
        raise ValueError(f"init is 'random' or 'clip', not {init!r}")
    generator = torch.Generator().manual_seed(seed)
    for linear in (pair.image, pair.text):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=generator)
    return pair


def batches(cache, column, batch_size, seed, epoch):
    """Shuffled (pooled, text) batches of one epoch, of one view in turn: shards in random order, rows within a window of at least two
    batches; memory does not grow with the cache. The last short batch is dropped where there is a full one."""
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


def contrastive_loss(pair, image, text, scale, loss=None):
    """Eq. 9: symmetric InfoNCE between F_mc φ̂_i and F_t φ̂_t. image: [n, C], text: [n, Ct], pooled and before the projection. loss: open_clip's
    `ClipLoss`, which gathers the batch across ranks; on one rank the logits are
    computed once for both directions."""
    image, text = (pair.image(image), pair.text(text)) if isinstance(pair, Projection) else pair(image, text)
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    if loss is not None:
        return loss(image, text, scale)
    logits = (scale * image) @ text.T
    # both cross entropies without their log-softmax matrices: -log softmax of the diagonal = logsumexp - diagonal
    return (logits.logsumexp(0) + logits.logsumexp(1)).mean() / 2 - logits.diagonal().mean()


class _Both(nn.Module):
    """One forward for both projections, which DistributedDataParallel needs."""

    def __init__(self, pair):
        super().__init__()
        self.pair = pair

    def forward(self, image, text):
        return self.pair.image(image), self.pair.text(text)


def train_pair(
    clip, cache, pooling, epochs=10, batch_size=1024, lr=1e-4, weight_decay=0.05, seed=0, init="random", on_epoch=None
):
    """Train a pair on one column of a cache -> (`Projection`, DataFrame of epoch, loss, lr, seconds).

    pooling: a column, e.g. "attention", "average", "max" or "masked_max:<mask>". batch_size: of all ranks together; under torchrun with a process
    group initialised every rank takes its share and the contrastive batch is gathered. on_epoch: called with (epoch, pair).
    The logit scale stays CLIP's. Raises ValueError where the cache belongs to another network."""
    if (cache.about["network"], cache.about["weights"]) != (clip.network, clip.pretrained):
        raise ValueError(
            f"{cache.folder} holds features of {cache.about['network']}, {cache.about['weights']}, not of {clip.network}"
        )
    if pooling not in cache.columns:
        raise ValueError(f"{cache.folder} holds the poolings {cache.columns}, not {pooling!r}")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, not {epochs} and {batch_size}")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if batch_size % world:
        raise ValueError(f"a batch of {batch_size} cannot be shared by {world} ranks")
    width = cache.read(cache.shards[0], pooling)[0].shape[1]
    last_stage = cache.about["reads"] == "feature_map" and pooling != "attention" and not pooling.startswith(TOKENS)
    pair = new_pair(clip, width, "feature_map" if last_stage else "tokens", seed, init).to(clip.device)
    both = _Both(pair)
    model = DistributedDataParallel(both) if world > 1 else both
    loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world) if world > 1 else None
    optimizer = torch.optim.AdamW(pair.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    per_epoch = max(1, len(cache) // cache.about["views"] // batch_size)
    steps, step, history = epochs * per_epoch, 0, []
    for epoch in tqdm(range(epochs), desc=f"training {pooling}", unit="epoch", disable=rank > 0 or None):
        begin, total, count = time.perf_counter(), 0.0, 0
        for image, text in batches(cache, pooling, batch_size, seed, epoch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, per_epoch, lr)
            share = slice(rank * len(text) // world, (rank + 1) * len(text) // world)
            value = contrastive_loss(model, image[share].to(clip.device), text[share].to(clip.device), clip.logit_scale, loss)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total, count, step = total + value.detach(), count + 1, step + 1
        mean = total / count
        if world > 1:
            dist.all_reduce(mean)
            mean /= world
        history.append({"epoch": epoch + 1, "loss": float(mean), "lr": optimizer.param_groups[0]["lr"],
                        "seconds": time.perf_counter() - begin})  # fmt: skip
        if on_epoch:
            on_epoch(epoch + 1, pair)
    settings = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "seed": seed, "init": init,
                "views": cache.about["views"], "augment": cache.about["augment"]}  # fmt: skip
    mask = cache.about["masks"].get(pooling.partition("masked_max:")[2], ["none"])  # the model's name, and its digest
    pair.metadata = {"network": clip.network, "weights": clip.pretrained, "pooling": pooling, "mask": " ".join(mask),
                     "data": json.dumps(cache.about["pairs"], default=list), "settings": json.dumps(settings), "commit": _commit()}  # fmt: skip
    return pair.requires_grad_(False), pd.DataFrame(history)


@torch.no_grad()
def validation_loss(clip, cache, pair, pooling, batch_size=256):
    """Eq. 9 on a cache of held-out pairs, mean over its full batches (rows in order)."""
    image, text = (torch.cat(parts) for parts in zip(*(cache.read(shard, pooling) for shard in cache.shards), strict=True))
    full = max(1, len(text) // batch_size)
    chunks = zip(image.split(batch_size)[:full], text.split(batch_size)[:full], strict=True)
    values = [contrastive_loss(pair, i.to(clip.device), t.to(clip.device), clip.logit_scale) for i, t in chunks]
    return float(sum(values) / full)


def _commit():
    run = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    return run.stdout.strip() or "unknown"
