"""`eclip bench`: how fast and how large, as ratios measured in one run on one machine.

Here what is measured about maps, scoring and the device; `bench_training` has the feature cache and the
training of a pair, and how each row is measured; `bench_growth` what more data cost, in time and memory."""

import platform
from collections import deque

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.benchmark import set_torch_threads, timer

from .. import files
from ..datasets import load_dataset
from ..evaluation import batches, best_iou, evaluate, prompts, score_contrast, summarize
from ..explainers import explainer
from ..method import itsm, similarity
from ..networks.loading import load_clip
from ..shift import channels, shift_statistics
from . import bench_training as training
from . import outputs
from .bench_growth import growth
from .bench_training import fastest, random_inputs, row
from .forecast import encoder_flops

# ---------------------------------------------------------------------- maps


@torch.no_grad()
def itsm_throughput(device="cpu", network="ViT-B-16", batch=32, texts=80, rounds=5):
    """ITSM up to Eq. 4 for 80 texts against bare `encode_image`; target: at least 0.95 of its images/s."""
    clip = load_clip(network, None, device)
    images, text = random_inputs(clip, batch, texts)
    ours = lambda: similarity(clip.encode_image(images), text, clip.projection)  # noqa: E731
    seconds = fastest([lambda: clip.model.encode_image(images), ours], rounds)
    what = f"ITSM for {texts} texts, {network}, batch {batch}"
    return row(what, "images/s", batch / seconds[1], batch / seconds[0], ">= 0.95")


@torch.no_grad()
def shift_overhead(device="cpu", network="ViT-B-16", batch=32, texts=20, size=(480, 640), rounds=3):
    """ITSM at the image's size with shift statistics against without; target: at most 20 % more time."""
    clip = load_clip(network, None, device)
    images, text = random_inputs(clip, batch, texts)
    foreground = torch.rand(batch, clip.encode_image(images[:1]).tokens.shape[1], device=device) < 0.3

    def maps(features):
        for k in range(batch):
            itsm(similarity(features, text, clip.projection)[k : k + 1, :2], size)

    def with_shift():
        features = clip.encode_image(images)
        maps(features)
        shift_statistics(*channels(features, clip.projection), foreground, features.grid)

    seconds = fastest([lambda: maps(clip.encode_image(images)), with_shift], rounds)
    what = f"ITSM with shift statistics, {network}, batch {batch}"
    return row(what, "images/s", batch / seconds[1], batch / seconds[0], "<= 1.20", seconds[1] / seconds[0])


def bi_model_batches(device="cpu", network="ViT-B-32", images=16, texts=3, rounds=3):
    """Bi-Model on 16 images x 3 texts at once against pair by pair; target: 3 times faster, equal maps."""
    clip = load_clip(network, None, device)
    explain = explainer("bi_model", clip)
    pictures, text = random_inputs(clip, images, texts)

    def single():
        return torch.stack([torch.stack([explain(i[None], t[None])[0, 0] for t in text]) for i in pictures])

    equal = torch.allclose(explain(pictures, text), single(), atol=1e-4)
    seconds = fastest([single, lambda: explain(pictures, text)], rounds)
    what = f"Bi-Model on {images} images x {texts} texts, {network}; maps equal: {equal}"
    return row(what, "maps/s", images * texts / seconds[1], images * texts / seconds[0], ">= 3")


# ---------------------------------------------------------------------- scoring


def loop_of_comparisons(similarity, mask):
    """What `scoring` is measured against: resize, min-max, 101 comparisons and contrast of a map in NumPy."""
    cells = torch.from_numpy(similarity)[None, None]
    resized = F.interpolate(cells, mask.shape, mode="bilinear", align_corners=False)[0, 0].numpy()
    low, high = resized.min(), resized.max()
    heat = (resized - low) / max(high - low, np.finfo(np.float32).tiny)
    best, where = -1.0, None
    for k in range(101):
        prediction = heat >= np.float32(k / 100)
        iou = (prediction & mask).sum() / (prediction | mask).sum()
        if iou > best:
            best, where = iou, k / 100
    return best, where, heat[mask].mean(dtype=np.float64) - heat[~mask].mean(dtype=np.float64)


def scoring(size=(480, 640), rounds=20):
    """Scoring a 14x14 similarity against a mask on a core; target: 6 times faster than a loop, and equal."""
    raw, mask = np.random.default_rng(0).standard_normal((14, 14), dtype=np.float32), np.zeros(size, bool)
    mask[size[0] // 4 : size[0] // 2, size[1] // 3 :] = True
    cells, masks = torch.from_numpy(raw)[None, None], torch.from_numpy(mask)[None, None]

    def ours():
        maps = itsm(cells, size)
        return (*best_iou(maps, masks), score_contrast(maps, masks))

    with set_torch_threads(1):
        seconds = fastest([lambda: loop_of_comparisons(raw, mask), ours], rounds)
    slow, fast = loop_of_comparisons(raw, mask), [float(value) for value in ours()]
    equal = slow[0] == fast[0] and slow[1] == fast[1] and abs(slow[2] - fast[2]) < 1e-6
    what = f"scoring a {size[0]}x{size[1]} map, one core; results equal: {equal}"
    return row(what, "maps/s", 1 / seconds[1], 1 / seconds[0], ">= 6")


# ---------------------------------------------------------------------- the device


def matrix_peak(device, dtype, rounds=5):
    """FLOP/s of large square matrix products, the fastest of a few."""
    n = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / fastest([lambda: a @ b], rounds)[0]


@torch.no_grad()
def encoder_share(device="cpu", network="ViT-B-16", precision="fp32", compiled=False, rounds=3):
    """Tokens of a batch (Eq. 2) in FLOP/s against the matrix peak of the same precision."""
    batch = 256 if device.startswith("cuda") else 8
    clip = load_clip(network, None, device, precision=precision)
    encode = torch.compile(clip.encode_image) if compiled else clip.encode_image
    images = torch.randn(batch, 3, *clip.size, device=device)
    rate = batch / fastest([lambda: encode(images)], rounds)[0] * encoder_flops(network)
    peak = matrix_peak(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    what = f"image encoder against the matrix peak, {network}, {precision}{', compiled' if compiled else ''}"
    return row(what, "TFLOP/s", rate / 1e12, peak / 1e12, "none")


@torch.no_grad()
def dataset_pass(device="cpu", network="ViT-B-16", precision="fp32", workers=2, count=None, batch=16):
    """ITSM with scoring over a dataset against its slowest stage alone (decoding on the workers, encoding,
    scoring), which is named."""
    if count is None:
        count, batch = (2048, 64) if device.startswith("cuda") else (48, 16)
    clip = load_clip(network, None, device, precision=precision)
    dataset = load_dataset("scenes", length=count)
    explain = explainer("clip", clip)
    images = torch.randn(batch, 3, *clip.size, device=device)
    known = explain.of_features(clip.encode_image(images), prompts(dataset, clip))[:1]

    still = lambda images, text: known.expand(len(images), -1, -1, -1)  # noqa: E731
    stages = {
        "decoding": lambda: deque(batches(dataset, clip, batch, workers, "decoding"), maxlen=0),
        "encoding": lambda: deque((clip.encode_image(images) for _ in range(count // batch)), maxlen=0),
        "decoding and scoring": lambda: evaluate(still, dataset, clip, workers, batch),
        "all of it": lambda: evaluate(explain, dataset, clip, workers, batch),
    }
    rates = {}
    for name, stage in stages.items():
        begin = timer()
        stage()
        rates[name] = count / (timer() - begin)
    ours, slowest = rates.pop("all of it"), min(rates, key=rates.get)
    what = f"evaluate over {count} scenes, {network}, {precision}; bound by {slowest}"
    return row(what, "images/s", ours, rates[slowest], "none")


def run(device="cpu", out=None):
    """Measure -> the table as text; with `out` also a CSV there, `agreement` and `growth` beside it."""
    if out:
        out = outputs.named(out, ".csv")
        agreed, grown = out.with_name("agreement.csv"), out.with_name("growth.csv")
        marks = (outputs.BENCH, outputs.AGREEMENT, outputs.GROWTH)
        outputs.require_free(zip((out, agreed, grown), marks, strict=True))
    table = bench(device)
    if out:  # each when it is measured
        files.write(out, files.as_csv(table, index=False))
        files.write(agreed, files.as_csv(agreement(), index=False, float_format="%.5f"))
        files.write(grown, files.as_csv(growth(), index=False))
    return table.to_string(index=False)


def bench(device="cpu"):
    """All measurements -> DataFrame: what, unit, ours, reference, ratio, target, device. bf16 and
    torch.compile on a GPU alone."""
    rows = [
        itsm_throughput(device),
        shift_overhead(device),
        bi_model_batches(device),
        scoring(),
        training.cached_epochs(device),
        training.all_poolings(device),
        training.training_rate(device),
        training.learned_pair_cost(device),
        encoder_share(device),
        encoder_share(device, "RN50"),
        dataset_pass(device),
    ]
    name = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if device.startswith("cuda"):
        rows += [encoder_share(device, precision="bf16"), encoder_share(device, "RN50", "bf16")]
        rows.append(encoder_share(device, precision="bf16", compiled=True))
        rows.append(dataset_pass(device, precision="bf16", workers=8))
        name = torch.cuda.get_device_name()
    return pd.DataFrame(rows).assign(device=name).round({"ours": 2, "reference": 2, "ratio": 3})


def agreement(network="scenes-ViT-16", images=400, batch=50):
    """How far mIoU and mSC of CLIP's maps move with the setting, in points, and the largest change of a map's
    pixel, against float32 on this CPU with its default threads -> DataFrame: setting, mIoU, mSC, pixel."""
    dataset = load_dataset("scenes", limit=images)

    def measure(device="cpu", precision="fp32", threads=None, size=batch):
        clip, maps = load_clip(network, device=device, precision=precision), []
        keep = lambda part, *_: maps.append(part[:, ::8, ::8].cpu())  # noqa: E731
        with set_torch_threads(threads or torch.get_num_threads()):
            rows = evaluate(explainer("clip", clip), dataset, clip, batch_size=size, observe=keep)
        return summarize(rows, 1), torch.cat(maps)

    settings = {"1 thread": {"threads": 1}, "batches of 1": {"size": 1}, "bf16": {"precision": "bf16"}}
    if torch.cuda.is_available():
        settings |= {"cuda": {"device": "cuda"}, "cuda, bf16": {"device": "cuda", "precision": "bf16"}}
    known, known_maps = measure()
    lines = []
    for name, options in settings.items():
        summary, maps = measure(**options)
        moved = {value: abs(summary[value] - known[value]) for value in ("mIoU", "mSC")}
        lines.append({"setting": name, **moved, "pixel": float((maps - known_maps).abs().max())})
    return pd.DataFrame(lines)
