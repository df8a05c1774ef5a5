"""`eclip train`: a pair of projections by masked max pooling, on one machine, several GPUs or a cluster."""

import os
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from .. import files
from ..datasets.image_text import load_pairs
from ..feature_cache import cache_features
from ..networks.attention import load_attention
from ..networks.checkpoints import files_of
from ..networks.loading import load_clip
from ..training import train_pair
from . import cluster


def train(data, out, pooling, model, masked, features, settings):
    """Train and save a pair -> one line of words (empty on every rank but the first).

    model: network, pretrained, device. masked: mask and mask_checkpoint, or nothing. features: cache, views,
    workers, ray. settings: of `train_pair`. Raises ValueError, OSError before any work where an output would
    replace an input or cannot be written."""
    out, source = files.named(out, ".safetensors"), load_pairs(data)
    curve = out.with_suffix(".csv")
    weights = files_of(model["pretrained"], masked.get("mask_checkpoint"))
    files.require_free([out, curve], [*source.inputs, *weights])
    _require_curve(curve)
    rank = _join_ranks(model)

    def load():
        checkpoint = masked.get("mask_checkpoint")
        checkpoint = None if checkpoint == "random" else checkpoint
        masks = {"mask": load_attention(masked["mask"], checkpoint, model["device"])} if masked else {}
        return load_clip(**model), masks

    clip, masks = load()
    options = {"views": features["views"], "seed": settings["seed"], "workers": features["workers"]}
    options["keep"] = features["views"] == 1  # of several the disk holds one at a time
    folder = files.place(features["cache"])
    busy = f"another training drops its views in {folder}; wait for it, or name another --cache"
    alone = files.alone(folder / f".{Path(clip.network).name}.lock", busy)
    with nullcontext() if options["keep"] or rank else alone:
        if features["ray"]:
            gpus = int(model["device"].startswith("cuda"))
            cached = cluster.cache_features(load, source, folder, features["ray"], gpus, **options)
        else:
            cached = cache_features(clip, source, folder, masks, **options)
        pooling = "masked_max:mask" if masked else pooling
        state = None if cached.keep else folder / f"training-{files.digest(str(out.absolute()))}.pt"
        pair, history = train_pair(clip, cached, pooling, **settings, resume=state)
        if rank:
            return ""
        pair.save(out)
        files.write(curve, files.as_csv(history, index=False))
        if state:
            cached.drop(), state.unlink(missing_ok=True)
    losses = f"loss {history['loss'].iloc[0]:.3f} to {history['loss'].iloc[-1]:.3f}"
    return f"{len(cached)} pairs, {losses}; {out}\n"


def _require_curve(curve):
    """Nobody named this file: raise ValueError where one is there and no curve of an earlier training."""
    if curve.is_file() and not curve.read_bytes().startswith(b"epoch,loss"):
        raise ValueError(
            f"{curve} would be written over by the loss curve and is none; give the pair another name"
        )


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
