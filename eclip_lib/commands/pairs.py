"""`eclip train`: a pair of projections by masked max pooling, on one machine, several GPUs or a cluster."""

import math
import os
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from .. import files
from ..datasets.image_text import load_pairs
from ..feature_cache import cache_features
from ..networks import demo
from ..networks.attention import load_attention
from ..networks.checkpoints import files_of
from ..networks.loading import load_clip
from ..profiles import Processes, Seed, Training, built, read_settings
from ..training import SETTINGS, require_trainable, train_pair
from . import cluster, outputs


class Wanted(Training):
    """What `eclip train` was asked for. mask: of masked max pooling."""

    weight_decay: float = 0.05
    augment: Literal["deit"] = "deit"
    pooling: Literal["attention", "average", "max", "masked_max"]
    init: Literal["random", "clip"]
    seed: Seed
    workers: Processes
    ray: Processes
    mask: str | None
    mask_checkpoint: str | None

    @property
    def settings(self):
        """Of `train_pair`."""
        return self.model_dump(include={*SETTINGS})


def fitting(network):
    """What fits a network -> the mask, epochs, batch_size and lr of the demo's profile for a demo network, of
    the paper's for any other."""
    settings = read_settings("demo" if network in demo.NETWORKS else "paper", {})[1]
    mask = [*settings["masks"].values()][-1]
    return {"mask": mask, **{name: settings["training"][name] for name in ("epochs", "batch_size", "lr")}}


def train(data, out, model, cache="runs/cache", **wanted):
    """Train and save a pair -> one line of words (empty on every rank but the first).

    model: network, pretrained, device. wanted: of `Wanted`; what is None is `fitting`'s. Raises ValueError,
    OSError before any work where a setting is out of range, or an output would replace an input or cannot be
    written."""
    usual = fitting(model["network"]) | ({} if wanted["pooling"] == "masked_max" else {"mask": None})
    wanted = built(Wanted, {k: usual.get(k) if v is None else v for k, v in wanted.items()}, "train")
    masked = wanted.pooling == "masked_max"
    if not masked and (wanted.mask or wanted.mask_checkpoint):
        said = "--mask and --mask-checkpoint are for --pooling masked_max"
        raise ValueError(f"{said}; {wanted.pooling} has no mask")
    out, source = outputs.named(out, ".safetensors"), load_pairs(data)
    curve = out.with_suffix(".csv")
    weights = files_of(model["pretrained"], wanted.mask_checkpoint)
    outputs.require_free([(out, outputs.PAIR), (curve, outputs.CURVE)], [*source.inputs, *weights])
    rank = _join_ranks(model)

    def load():
        checkpoint = None if wanted.mask_checkpoint == "random" else wanted.mask_checkpoint or "default"
        masks = {"mask": load_attention(wanted.mask, checkpoint, model["device"])} if masked else {}
        return load_clip(**model), masks

    clip, masks = load()
    require_trainable(clip, wanted.pooling, wanted.batch_size, wanted.init)
    options = {"views": wanted.views, "seed": wanted.seed, "workers": wanted.workers}
    options["keep"] = wanted.views == 1  # of several the disk holds one at a time
    folder = outputs.folder(cache)
    lock = folder / f".{Path(clip.network).name}.lock"
    busy = f"another training is at work in {folder}, where views are dropped"
    busy += "; wait for it, or name another --cache"
    with nullcontext() if rank else files.alone(lock, busy, shared=options["keep"]):
        if wanted.ray:
            gpus = int(model["device"].startswith("cuda"))
            cached = cluster.cache_features(load, source, folder, wanted.ray, gpus, **options)
        else:
            cached = cache_features(clip, source, folder, masks, **options)
        pooling = "masked_max:mask" if masked else wanted.pooling
        state = None if cached.keep else folder / f"training-{files.digest(str(out.absolute()))}.pt"
        pair, history = train_pair(clip, cached, pooling, **wanted.settings, resume=state)
        if rank:
            return ""
        outputs.replace(out, pair.as_bytes(), curve)
        files.write(curve, files.as_csv(history, index=False, float_format="%.6g"))
        if state:
            cached.drop(), state.unlink(missing_ok=True)
    chance = math.log(min(wanted.batch_size, len(cached)))
    losses = f"loss {history['loss'].iloc[0]:.3f} to {history['loss'].iloc[-1]:.3f} (chance {chance:.3f})"
    return f"{len(cached)} pairs, {losses}; {out}\n"


def _join_ranks(model):
    """Under torchrun every rank takes a device of its own -> the rank, 0 without torchrun. Changes
    `model`."""
    if "RANK" not in os.environ:
        return 0
    cuda = model["device"].startswith("cuda")
    if model["device"] == "cuda":
        model["device"] = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if cuda:
        torch.cuda.set_device(model["device"])
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(days=7))
    return dist.get_rank()
