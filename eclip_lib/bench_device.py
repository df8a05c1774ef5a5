"""The part of `eclip bench` about the device: how near the image encoder comes to the matrix peak, and what bounds a pass over a dataset."""

import io
import itertools
import time

import pandas as pd
import torch
from PIL import Image, ImageOps

from .bench import _synchronized, fastest
from .cache import augmentation
from .clip import load_clip
from .data import encoder_flops
from .datasets import load_dataset
from .datasets.pairs import load_pairs
from .evaluation import batches, evaluate, summarize
from .explainers import explainer


def matrix_peak(device, dtype, rounds=5):
    """FLOP/s of large square matrix products, the fastest of a few."""
    n = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    call = _synchronized(lambda: a @ b, device)
    call()
    return 2 * n**3 / fastest([call], rounds)[0]


@torch.no_grad()
def encoder_share(device="cpu", network="ViT-B-16", precision="fp32", compiled=False, rounds=3):
    """Tokens of a batch (Eq. 2) in FLOP/s against the matrix peak of the same precision."""
    batch = 256 if device.startswith("cuda") else 8
    clip = load_clip(network, None, device, precision=precision)
    if compiled:
        clip.model.visual = torch.compile(clip.model.visual)
    images = torch.randn(batch, 3, *clip.size, device=device)
    call = _synchronized(lambda: clip.encode_image(images), device)
    call()
    rate = batch / fastest([call], rounds)[0] * encoder_flops(network)
    peak = matrix_peak(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    how = f"{precision}{', compiled' if compiled else ''}"
    return {"what": f"image encoder against the matrix peak, {network}, {how}", "unit": "TFLOP/s", "ours": rate / 1e12,
            "reference": peak / 1e12, "ratio": rate / peak, "target": "none"}  # fmt: skip


@torch.no_grad()
def dataset_pass(device="cpu", network="ViT-B-16", precision="fp32", workers=2):
    """ITSM with scoring over a dataset against its slowest stage alone (decoding on the workers, encoding, scoring), which is named."""
    count, batch = (2048, 64) if device.startswith("cuda") else (48, 16)
    clip, dataset = load_clip(network, None, device, precision=precision), load_dataset("scenes", limit=None, length=count)
    explain = explainer("clip", clip)
    images = torch.randn(batch, 3, *clip.size, device=device)
    features, text = clip.encode_image(images), clip.encode_text([f"a photo of the {name}" for name in dataset.classes])

    def timed(function):
        begin = time.perf_counter()
        _synchronized(function, device)()
        return count / (time.perf_counter() - begin)

    stages = {
        "decoding": timed(lambda: [None for _ in batches(dataset, clip, batch, workers, "decoding")]),
        "encoding": timed(lambda: [clip.encode_image(images) for _ in range(count // batch)]),
    }
    known = explain.of_features(features, text)[:1]
    still = lambda images, text: known.expand(len(images), -1, -1, -1)  # noqa: E731
    stages["decoding and scoring"] = timed(lambda: evaluate(still, dataset, clip, workers, batch))
    whole = timed(lambda: evaluate(explain, dataset, clip, workers, batch))
    slowest = min(stages, key=stages.get)
    return {"what": f"evaluate over {count} scenes, {network}, {precision}; bound by {slowest}", "unit": "images/s", "ours": whole,
            "reference": stages[slowest], "ratio": whole / stages[slowest], "target": "none"}  # fmt: skip


def measurements(device="cpu"):
    """All of the above, as rows of `bench.bench`; bf16 and torch.compile where there is a GPU."""
    rows = [encoder_share(device), encoder_share(device, "RN50"), dataset_pass(device)]
    if device.startswith("cuda"):
        rows += [encoder_share(device, precision="bf16"), encoder_share(device, "RN50", "bf16")]
        rows += [encoder_share(device, precision="bf16", compiled=True), dataset_pass(device, precision="bf16", workers=8)]
    return rows


def picture_cost(pairs, network="ViT-B-16", count=200):
    """What a picture of a web dataset costs beside the networks -> (bytes, seconds): its JPEG as img2dataset writes it (256 pixels with a
    border, quality 95), and to decode and augment it (DeiT's recipe) on one core. pairs: a source of photographs, see `load_pairs`."""
    source, threads = load_pairs(pairs), torch.get_num_threads()
    transform, sizes, seconds = augmentation(load_clip(network, None)), [], 0.0
    torch.set_num_threads(1)
    for _, photo, _ in itertools.islice((item for part in source.parts for item in source.read(part)), count):
        file = io.BytesIO()
        ImageOps.pad(source.open(photo), (256, 256)).save(file, "JPEG", quality=95)
        begin = time.perf_counter()
        transform(Image.open(file).convert("RGB"))
        seconds += time.perf_counter() - begin
        sizes.append(file.tell())
    torch.set_num_threads(threads)
    return sum(sizes) / len(sizes), seconds / len(sizes)


def agreement(network="scenes-ViT-16", images=400, batch=50):
    """How far mIoU and mSC of CLIP's maps move with the setting, in points, and the largest change of a pixel of a map, against float32 on
    this CPU with its default threads. Returns a DataFrame: setting, mIoU, mSC, pixel."""

    def measure(device="cpu", precision="fp32", threads=None, size=batch):
        maps, before = [], torch.get_num_threads()
        clip, dataset = load_clip(network, device=device, precision=precision), load_dataset("scenes", limit=images)
        torch.set_num_threads(threads or before)
        try:
            keep = lambda part, *_: maps.append(part[:, ::8, ::8].cpu())  # noqa: E731
            rows = evaluate(explainer("clip", clip), dataset, clip, batch_size=size, observe=keep)
        finally:
            torch.set_num_threads(before)
        return summarize(rows, 1), torch.cat(maps)

    settings = {"1 thread": {"threads": 1}, "batches of 1": {"size": 1}, "bf16": {"precision": "bf16"}}
    if torch.cuda.is_available():
        settings |= {"cuda": {"device": "cuda"}, "cuda, bf16": {"device": "cuda", "precision": "bf16"}}
    known, known_maps = measure()
    lines = []
    for name, options in settings.items():
        summary, maps = measure(**options)
        moved = {measure: abs(summary[measure] - known[measure]) for measure in ("mIoU", "mSC")}
        lines.append({"setting": name, **moved, "pixel": float((maps - known_maps).abs().max())})
    return pd.DataFrame(lines)
