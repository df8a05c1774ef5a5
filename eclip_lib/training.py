"""Training a new pair of projections on cached features (§3.3, §4.1): Eq. 9, everything else locked."""

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from . import files
from .feature_cache import Cache, ranks
from .method import contrastive_loss
from .networks.clip import Clip
from .poolings import Pooling
from .progress import tqdm
from .projection import Projection
from .provenance import commit
from .recipe import batches, learning_rate, new_pair

SETTINGS = ("epochs", "batch_size", "lr", "weight_decay", "seed", "init")  # of a training


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


def require_trainable(clip, pooling, batch_size, init):
    """What can be known before features are cached. Raises ValueError."""
    _, world = ranks()
    if batch_size < 2 or batch_size % world:
        said = f"a batch of {batch_size}" + (f" cannot be shared by {world} ranks" if batch_size > 1 else "")
        raise ValueError(f"{said}: Eq. 9 tells pairs apart, so it needs 2 or more, as many for every rank")
    whole = str(pooling).startswith(("attention", "tokens/"))
    if init == "clip" and clip.pools == "feature_map" and not whole:
        said = f"{clip.network}: its own pair reads no feature map, as {pooling} does"
        raise ValueError(f"{said}; init 'random'")


def _check(clip, cache, pooling):
    contents = ("model", "quick_gelu", "backbone")
    if any(cache.about.get(name) != clip.identity.get(name) for name in contents):
        network, weights = cache.about["network"], cache.about["weights"]
        raise ValueError(f"{cache.folder} holds features of {network}, {weights}, not of {clip.network}")
    if pooling not in cache.columns:
        raise ValueError(f"{cache.folder} holds the poolings {cache.about['columns']}, not {str(pooling)!r}")
    if len(cache) < 2:
        raise ValueError(f"{cache.folder} holds a single pair, but Eq. 9 tells pairs apart; give 2 or more")


@dataclass
class _Training:
    """A pair on its way, and what `train_pair` was asked for; under torchrun one rank's share."""

    clip: Clip
    cache: Cache
    pooling: Pooling
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    seed: int
    init: str

    def __post_init__(self):
        self.pooling, cache = Pooling.of(self.pooling), self.cache
        self.rank, self.world = ranks()
        require_trainable(self.clip, self.pooling, self.batch_size, self.init)
        _check(self.clip, cache, self.pooling)
        if self.epochs < 1 or not 0 < self.lr < math.inf:
            raise ValueError(f"epochs and lr must be above 0, not {self.epochs} and {self.lr}")
        self.history: list[dict] = []
        self.pair = None

    def _begin(self, width):
        whole = self.pooling.method == "attention" or self.pooling.reads == "tokens"
        reads = "tokens" if whole else self.cache.about["reads"]
        self.pair = new_pair(self.clip, width, reads, self.seed, self.init).to(self.clip.device)
        self.loss_of: Callable = partial(contrastive_loss, self.pair)
        if self.world > 1:
            self.loss_of = nn.parallel.DistributedDataParallel(_Ranks(self.pair, self.rank, self.world))
        self.optimizer = torch.optim.AdamW(
            self.pair.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True
        )
        per_epoch = max(1, len(self.cache) // self.batch_size)
        rate = partial(learning_rate, steps=self.epochs * per_epoch, per_epoch=per_epoch, lr=self.lr)
        self.schedule = LambdaLR(self.optimizer, lambda step: rate(step) / self.lr)

    def epoch(self, view):
        """The next epoch, on a view of the cache."""
        if self.pair is None:
            self._begin(view.read(view.shards[0], self.pooling)[0].shape[1])
        begin, device = time.perf_counter(), self.clip.device
        total, count = torch.zeros((), device=device), 0
        for image, text in batches(view, self.pooling, self.batch_size, self.seed, len(self.history)):
            share = slice(self.rank * len(text) // self.world, (self.rank + 1) * len(text) // self.world)
            image, text = image[share].to(device), text[share].to(device)
            loss = self.loss_of(image, text, self.clip.logit_scale)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            rate = self.optimizer.param_groups[0]["lr"]
            self.schedule.step()
            total, count = total + loss.detach(), count + 1
        mean = total / count
        if self.world > 1:
            dist.all_reduce(mean)
            mean /= self.world
        line = {"epoch": len(self.history) + 1, "loss": float(mean), "lr": rate}  # waits for the device
        if not (math.isfinite(line["loss"]) and all(p.isfinite().all() for p in self.pair.parameters())):
            said = f"training diverged in epoch {line['epoch']} (loss {line['loss']:.3g})"
            raise ValueError(f"{said}; train with a smaller learning rate than {self.lr}")
        self.history.append(line | {"seconds": time.perf_counter() - begin})

    @property
    def settings(self):
        return {name: getattr(self, name) for name in SETTINGS}

    @property
    def _key(self):
        return files.digest([self.cache.identity, str(self.pooling), self.settings, self.world])

    def save(self, path):
        """Keep what an interrupted training goes on from."""
        parts = [part.state_dict() for part in (self.pair, self.optimizer, self.schedule)]
        write_state(path, {"key": self._key, "history": self.history, "parts": parts})

    def resume(self, path):
        """Go on where `save` stopped; from the start where there is nothing whole of this training."""
        state = read_state(path, self._key)
        if state:
            self._begin(state["parts"][0]["image.weight"].shape[1])
            for part, kept in zip((self.pair, self.optimizer, self.schedule), state["parts"], strict=True):
                part.load_state_dict(kept)
            self.history = state["history"]

    def result(self):
        self.pair.metadata = _metadata(self.clip, self.cache, self.pooling, self.settings)
        return self.pair.requires_grad_(False), pd.DataFrame(self.history)


def write_state(path, state):
    """Keep tensors and numbers in a file, atomically."""
    whole = io.BytesIO()
    torch.save(state, whole)
    files.write(path, whole.getvalue())


def read_state(path, key):
    """The state of an interrupted training of this key -> a dictionary, or None."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state if state["key"] == key else None
    except Exception:  # not there, half-written, or of something else
        return None


def train_pairs(clip, cache: Cache, wanted, on_epoch=None, resume=None) -> list:
    """Train several pairs side by side, an epoch of each in turn, so that every view of the cache is made
    once -> what `train_pair` gives of each.

    wanted: a list of `train_pair`'s pooling and settings, all of them. on_epoch: called with (number in the
    list, epoch, pair). resume: a file a training, written after each epoch."""
    trainings = [_Training(clip, cache, **settings) for settings in wanted]
    first = ranks()[0] == 0
    for training, path in zip(trainings, resume or (), strict=False):
        training.resume(path)
    what = f"training {trainings[0].pooling}" if len(trainings) == 1 else f"training {len(trainings)} pairs"
    last = max(training.epochs for training in trainings)
    for epoch in tqdm(range(last), desc=what, unit="epoch", disable=not first or None):
        for number, training in enumerate(trainings):
            if len(training.history) != epoch or epoch >= training.epochs:
                continue
            training.epoch(cache.view(epoch))
            if on_epoch:
                on_epoch(number, epoch + 1, training.pair)
            if resume and first:
                training.save(resume[number])
    return [training.result() for training in trainings]


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
    resume=None,
) -> tuple[Projection, pd.DataFrame]:
    """Train a pair on one column of a cache -> (`Projection`, DataFrame of epoch, loss, lr, seconds).

    pooling: a `Pooling`, or as text "attention", "average", "max" or "masked_max:<mask>". batch_size: of all
    ranks together; under torchrun with a process group initialised every rank takes its share and the
    contrastive batch is gathered. on_epoch: called with (epoch, pair). resume: a file that an interrupted
    training goes on from, see `train_pairs`. The logit scale stays CLIP's. Raises ValueError where the cache
    belongs to another network."""
    wanted = {"pooling": pooling, "epochs": epochs, "batch_size": batch_size, "lr": lr}
    wanted |= {"weight_decay": weight_decay, "seed": seed, "init": init}
    watch = on_epoch and (lambda _, epoch, pair: on_epoch(epoch, pair))
    return train_pairs(clip, cache, [wanted], watch, resume and [resume])[0]


def _metadata(clip, cache, pooling, settings):
    mask = cache.about["masks"].get(pooling.mask, ["none"])  # the model's name, and its digest
    settings |= {"views": cache.views, "augment": cache.about["augment"]}
    known = ("network", "weights", "model", "quick_gelu", "backbone")
    identity = {name: str(clip.identity.get(name)) for name in known}
    return identity | {
        "data": json.dumps(cache.about["pairs"], default=list),
        "pairs": str(len(cache)),
        "features": cache.identity,
        "pooling": str(pooling),
        "mask": " ".join(mask),
        "settings": json.dumps(settings),
        "commit": commit()["commit"],
    }
