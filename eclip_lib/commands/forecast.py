"""`eclip reproduce --dry-run`: what a run will cost, counted before anything runs."""

import os
from functools import cache

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from ..datasets import load_dataset
from ..datasets.image_text import load_pairs
from ..datasets.tars import count_keys
from ..experiment import load_profile
from ..files import REPOSITORY
from ..networks import checkpoints, demo
from ..networks.clip import own_weights
from ..networks.loading import empty_clip, is_vit, pools
from ..poolings import GROUND_TRUTH, Pooling, columns_of
from ..profiles import read_settings
from ..studies.controls import FEW
from . import preflight
from .by_number import needed, to_run
from .notebooks import notebooks
from .resources import registered_pairs, status, weight_files

BENCHMARKS = REPOSITORY / "results" / "benchmarks"
PASSES = BENCHMARKS / "passes.csv"  # of every image, by `passes.py`
SECONDS = BENCHMARKS / "photos.csv"  # of a core, by `passes.py`
# FLOP/s that a data-centre GPU sustains on these networks in float32: an assumption, `eclip bench --device
# cuda` measures it. timm's benchmark has ViT-B/16 CLIP at 3,356 images/s in AMP on an RTX 4090, which is
# `PUBLIC_RATE`
ASSUMED_RATE = 30e12
PUBLIC_IMAGES = 3356
# bytes of a stored picture, seconds of a core to decode and augment it:
# `bench_training.picture_cost("coco:…", count=395)` on 79 photos of COCO
PICTURE = (24e3, 1.9e-3)


@cache
def encoder_flops(network, text=False):
    """FLOPs of one image through a network's image encoder, or of one text through its text encoder, counted
    on an empty copy."""
    model = empty_clip(network).requires_grad_(False)
    side = model.visual.image_size
    image = torch.zeros(1, 3, *(side if isinstance(side, tuple) else (side, side)), device="meta")
    tokens = torch.zeros(1, model.context_length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode_text(tokens) if text else model.visual(image)
    return counter.get_total_flops()


def mask_flops(network):
    """FLOPs of an image through a mask's network: a ViT-B/16, in the demo one as large as the CLIP."""
    return encoder_flops("scenes-ViT-16" if network in demo.NETWORKS else "ViT-B-16")


def widths(network):
    """(C, Ct, D): what a learned pair of a network reads of image and text, and its joint space."""
    own = own_weights(empty_clip(network), network)
    return own["image.weight"].shape[1], *reversed(own["text.weight"].shape)


def bytes_of_a_pair(network, masks):
    """Bytes of one pair in a network's cache with these masks, in one view."""
    image, text, _ = widths(network)
    return 4 * (len(columns_of(pools(network), masks)) * image + text)


def plan(run):
    """What `reproduce` would do -> DataFrame, one line a network, then what all share and a sum: passes over
    images and over training pairs (all views), PFLOP, GB written."""
    passes = pd.read_csv(PASSES).set_index("notebook").reindex([p.stem for p in notebooks(run)]).sum()
    kinds = dict(zip(filter(is_vit, run.networks), ("coarse", "fine"), strict=False))
    seen = sum(_length(run, name) for name in run.datasets)
    lines, views = [], run.training.views
    pairs = pair_count(run) if run.pairs else 0  # of one view
    first = next(filter(is_vit, run.networks), None)
    mask, drawn = mask_flops(run.networks[0]), str(run.pairs).startswith("scenes")
    beyond = [*([GROUND_TRUTH] if drawn and run.training.augment is None else []), *preflight.BEYOND]

    def line(part, encoder, images, each, trained, rest, written):
        flops = encoder * (images + each) + rest
        row = {"part": part, "image passes": round(images), "pair passes": round(each), "trainings": trained}
        lines.append(row | {"PFLOP": flops / 1e15, "GB": written / 1e9})

    def training(network, columns, count):
        """`count` pairs trained on so wide columns -> (FLOPs, bytes of what is kept of them)."""
        image, text, joint = columns
        pair, batch = image * joint + text * joint, run.training.batch_size
        kept = 4 * pair * (1 + len({1, 2, max(2, run.training.epochs // 4), run.training.epochs}))
        return count * 6 * (pair + batch * joint) * pairs * run.training.epochs, count * kept

    features = []  # bytes of a view
    for network in run.networks:
        masks = [*run.masks, *(beyond if network == first else ())] if pairs else []
        own = views * pairs * (1 + (network == first))  # CLIP's own attention takes a pass
        columns = columns_of(pools(network), masks)
        count = len(run.every_training(map(Pooling.of, columns), network == first)) if pairs else 0
        flops, kept = training(network, widths(network), count)
        text = views * pairs * encoder_flops(network, text=True)
        stored = pairs * bytes_of_a_pair(network, masks)
        features.append(stored)
        each = passes[kinds.get(network, "others")] + (network in run.scratch)
        again = len(run.replicates.get(network, ()))  # by 01, and of ViTs by 08 in place of its one
        each += again + (again - 1 if again and is_vit(network) else 0)
        line(network, encoder_flops(network), each * seen, own, count, flops + text, stored + kept)
    if pairs:
        looks = views * pairs * len(run.masks)
        grid = 4 * 196 * looks  # of a ViT-B/16
        line("masks, shared", mask, passes["masks"] * seen, looks, 0, 0, grid)
        text = encoder_flops(run.networks[0], text=True)
        wide = (768, widths(run.networks[0])[1], widths(run.networks[0])[2])
        flops, kept = training(run.networks[0], wide, 3 * run.trainings)
        stored = pairs * 4 * (3 * wide[0] + wide[1])
        flops += views * pairs * text
        line("02: backbone locked", mask, 0, views * pairs, 3 * run.trainings, flops, stored + kept)
        features.append(stored)
        shipped = run.pretrained == "default" and run.networks[0] in demo.NETWORKS
        steps = 0 if shipped else views * pairs
        passing = (
            4 if run.training.batch_size > 256 else 3
        )  # forward, backward; forward once more to save memory
        line("02: backbone unlocked", passing * mask, 0, steps, 0, steps * text, 0 if shipped else 1.03e9)
    line("data and weights", 0, 0, 0, 0, 0, _bytes_of_data(run, pairs))
    table = pd.DataFrame(lines)
    total = table.drop(columns="part").sum()
    if views > 1 and pairs:  # one view of one network at a time
        total["GB"] += (max(features) - sum(features)) / 1e9
    return pd.concat([table, pd.DataFrame([{"part": "together", **total}])], ignore_index=True)


def _bytes_of_data(run, pairs):
    """Of what the registry knows: downloads of datasets, pairs (by a picture's usual size where they are no
    download) and weights."""
    known = checkpoints.registry()
    about = [known["datasets"].get(name, {}) for name in run.datasets]
    source = known["pairs"].get(registered_pairs(run.pairs or ""))
    found = sum(file["bytes"] for entry in [*about, source or {}] for file in entry.get("files", ()))
    found += pairs * PICTURE[0] if source and "files" not in source else 0
    return found + sum(known["weights"][name].get("bytes", 0) for name in weight_files(run))


def gpu_hours(table):
    """`plan` with the hours at the assumed rate."""
    return table.assign(**{"GPU hours": table["PFLOP"] * 1e15 / ASSUMED_RATE / 3600})


def core_minutes(run):
    """Minutes of one core for each notebook of a run of ViT-B/32 on a CPU, from the measured seconds, or None
    where they were not measured for it."""
    if not SECONDS.exists() or run.networks != ["ViT-B-32"]:
        return None
    table = pd.read_csv(SECONDS).set_index("notebook").reindex([path.stem for path in notebooks(run)])
    images, few = (sum(min(_length(run, name), most) for name in run.datasets) for most in (10**9, FEW))
    seconds = table["seconds"] + table["seconds_image"] * images + table["seconds_few"] * few
    return (seconds / 60).rename("minutes").reset_index()


def dry_run(profile, wanted=(), **settings):
    """What `eclip reproduce --dry-run` prints: `as_text`, or the notebooks of the figures and tables
    `wanted`."""
    device = read_settings(profile, settings)[1]["device"]  # which this machine need not have
    run = load_profile(profile, **settings | {"device": "cpu"})
    preflight.require_known(run, device)
    return "\n".join(to_run(run, needed(run, wanted))) if wanted else as_text(run, device)


def as_text(run, device="cpu"):
    """What would run, what it costs on the profile's `device`, and what is missing, as the dry run prints
    it."""
    counts = ", ".join(f"{name} ({_length(run, name)} images)" for name in run.datasets)
    names = ", ".join(path.stem for path in notebooks(run))
    pairs = run.pairs or "none, no training"
    said = [f"profile {run.name}: {len(notebooks(run))} notebooks ({names})"]
    said.append(f"networks: {', '.join(run.networks)}; datasets: {counts}; pairs: {pairs}")
    table, minutes = plan(run), core_minutes(run)
    if run.pairs:
        views = run.training.views
        said.append(
            f"{pair_count(run):,} pairs, {'one view' if views == 1 else f'{views} views'} of each"
            f"{', of which the disk holds one at a time (the GB are of all networks)' if views > 1 else ''}; "
            f"{table['trainings'].iloc[-1]:.0f} trainings of a pair"
        )
    if device.startswith("cuda"):
        table = gpu_hours(table)
        said.append(f"GPU hours are PFLOP at an assumed {ASSUMED_RATE / 1e12:.0f} TFLOP/s, not measured")
    whole = dict.fromkeys(("image passes", "pair passes", "trainings"), "{:,.0f}".format)
    parts = ["\n".join(said), table.round(2).to_string(index=False, formatters=whole)]
    if minutes is not None and not device.startswith("cuda"):
        total, longest = minutes["minutes"].sum(), minutes["minutes"].max()
        last = f"together {total:.0f} minutes on one core; {max(longest, total / 2):.0f} with two at a time"
        parts.append("minutes of one core, measured at random weights on the machine of results/benchmarks:")
        parts.append(minutes.round(0).to_string(index=False, na_rep="not measured") + "\n" + last)
    things = status(run)
    missing = things[~things["state"].str.startswith("present")]
    table = [] if missing.empty else [missing[["part", "state", "size", "how"]].to_string(index=False)]
    listed = "\n".join([*table, *(f"{lack.what}: {lack.where}" for lack in preflight.named(run))])
    return "\n\n".join([*parts, f"missing:\n{listed}" if listed else "nothing is missing"])


def _length(run, name):
    known = checkpoints.registry()["datasets"].get(name)
    images = known["images"] if known else len(load_dataset(name))
    return min(images, run.limit or images)


def pair_count(run, read=3):
    """How many image-caption pairs a run trains on: those that are there, of tars `read` counted (one that
    cannot be read has none) and the others by their size; else as many as the registry says there were."""
    found = _all_pairs(run, read)
    return min(found, run.limit_pairs or found)


def _all_pairs(run, read):
    kind, _, place = run.pairs.partition(":")
    known = checkpoints.registry()["pairs"].get(registered_pairs(run.pairs), {})
    try:
        source = load_pairs(run.pairs)
    except FileNotFoundError:
        if not known:
            raise
        return known.get("captions", known["images"])
    if kind != "web":
        return len(source)
    counted = {part: count_keys(part) for part in source.parts[:read]}
    whole, read = (sum(map(os.path.getsize, p)) for p in (source.parts, filter(counted.get, counted)))
    return round(sum(counted.values()) * whole / max(1, read))


def crawl_plan(network="ViT-B-16", masks=2, rate=ASSUMED_RATE, picture=PICTURE, known=False):
    """The pooled-feature pass over GCC3M and CC12M, one view, on 1, 8 and 64 GPUs of `rate` FLOP/s ->
    DataFrame: hours, TB of tar files, GB of cache, and for each GPU the MB/s that it reads and the cores that
    decode and augment for it. picture: (bytes, seconds), `PICTURE`; known: the masks' attention is there, of
    another network."""
    flops = encoder_flops(network) + encoder_flops(network, text=True)
    flops += 0 if known else masks * mask_flops(network)
    (tar, decode), rows = picture, []
    cached = bytes_of_a_pair(network, range(masks)) + 4 * 196 * masks  # and the attention of the masks
    for name in ("gcc3m", "cc12m"):
        count = checkpoints.registry()["pairs"][name]["images"]
        for gpus in (1, 8, 64):
            row = {"pairs": name.upper(), "GPUs": gpus, "hours": count * flops / rate / gpus / 3600}
            row |= {"tar TB": count * tar / 1e12, "cache GB": count * cached / 1e9}
            rows.append(row | {"MB/s a GPU": rate / flops * tar / 1e6, "cores a GPU": rate / flops * decode})
    return pd.DataFrame(rows)


def public_rate(network="ViT-B-16"):
    """FLOP/s of the published images a second, see `PUBLIC_IMAGES`."""
    return PUBLIC_IMAGES * encoder_flops(network)
