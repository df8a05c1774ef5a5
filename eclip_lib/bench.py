"""`eclip bench`: how fast and how large, as ratios measured in one run on one machine."""

import platform
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from .clip import load_clip
from .explainers import explainer
from .itsm import itsm, similarity
from .metrics import best_iou, score_contrast
from .shift import channels, shift_statistics


def fastest(functions, rounds):
    """Seconds of each function's fastest call; the functions take turns, so that all see the same machine."""
    best = [float("inf")] * len(functions)
    for _ in tqdm(range(rounds), desc="timing", unit="round", leave=False):
        for k, function in enumerate(functions):
            begin = time.perf_counter()
            function()
            best[k] = min(best[k], time.perf_counter() - begin)
    return best


def _synchronized(function, device):
    def timed():
        function()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return timed


@torch.no_grad()
def itsm_throughput(device="cpu", network="ViT-B-16", batch=32, texts=80, rounds=5):
    """ITSM up to Eq. 4 for 80 texts against bare `encode_image`; target: at least 0.95 of its images/s."""
    clip = load_clip(network, None, device)
    side = clip.image_size
    images = torch.randn(batch, 3, side, side, device=device)
    text = clip.encode_text([f"a photo of the thing {k}" for k in range(texts)])
    bare = _synchronized(lambda: clip.model.encode_image(images), device)
    ours = _synchronized(lambda: similarity(clip.encode_image(images), text, clip.projection), device)
    bare(), ours()
    seconds = fastest([bare, ours], rounds)
    return {"what": f"ITSM for {texts} texts, {network}, batch {batch}", "unit": "images/s", "ours": batch / seconds[1],
            "reference": batch / seconds[0], "ratio": seconds[0] / seconds[1], "target": ">= 0.95"}  # fmt: skip


@torch.no_grad()
def shift_overhead(device="cpu", network="ViT-B-16", batch=32, texts=20, size=(480, 640), rounds=3):
    """ITSM at the image's size with shift statistics against without; target: at most 20 % more time."""
    clip = load_clip(network, None, device)
    images = torch.randn(batch, 3, clip.image_size, clip.image_size, device=device)
    text = clip.encode_text([f"a photo of the thing {k}" for k in range(texts)])
    foreground = torch.rand(batch, clip.encode_image(images[:1]).tokens.shape[1], device=device) < 0.3

    def maps(features):
        return [itsm(similarity(features, text, clip.projection)[k : k + 1, :2], size) for k in range(batch)]

    def with_shift():
        features = clip.encode_image(images)
        return maps(features), shift_statistics(*channels(features, clip.projection), foreground, features.grid)

    plain = _synchronized(lambda: maps(clip.encode_image(images)), device)
    ours = _synchronized(with_shift, device)
    plain(), ours()
    seconds = fastest([plain, ours], rounds)
    return {"what": f"ITSM with shift statistics, {network}, batch {batch}", "unit": "images/s", "ours": batch / seconds[1],
            "reference": batch / seconds[0], "ratio": seconds[1] / seconds[0], "target": "<= 1.20"}  # fmt: skip


def bi_model_batches(device="cpu", network="ViT-B-32", images=16, texts=3, rounds=3):
    """Bi-Model on 16 images x 3 texts at once against one image and text at a time; target: 3 times faster, equal maps."""
    clip = load_clip(network, None, device)
    explain = explainer("bi_model", clip)
    pictures = torch.randn(images, 3, clip.image_size, clip.image_size, device=device)
    text = clip.encode_text([f"a photo of the thing {k}" for k in range(texts)])

    def single():
        return torch.stack([torch.stack([explain(i[None], t[None])[0, 0] for t in text]) for i in pictures])

    together, alone = explain(pictures, text), single()
    equal = torch.allclose(together, alone, atol=1e-4)
    seconds = fastest([_synchronized(single, device), _synchronized(lambda: explain(pictures, text), device)], rounds)
    return {"what": f"Bi-Model on {images} images x {texts} texts, {network}; maps equal: {equal}", "unit": "maps/s",
            "ours": images * texts / seconds[1], "reference": images * texts / seconds[0], "ratio": seconds[0] / seconds[1],
            "target": ">= 3"}  # fmt: skip


def loop_of_comparisons(similarity, mask):
    """What `scoring` is measured against: resize, min-max, 101 comparisons and the contrast of one map in NumPy."""
    resized = F.interpolate(torch.from_numpy(similarity)[None, None], mask.shape, mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()
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
    """Scoring one 14x14 similarity against one mask on one core; target: 6 times faster than the loop, equal result."""
    rng = np.random.default_rng(0)
    raw, mask = rng.standard_normal((14, 14), dtype=np.float32), np.zeros(size, bool)
    mask[size[0] // 4 : size[0] // 2, size[1] // 3 :] = True
    cells, masks = torch.from_numpy(raw)[None, None], torch.from_numpy(mask)[None, None]

    def ours():
        maps = itsm(cells, size)
        return (*best_iou(maps, masks), score_contrast(maps, masks))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = fastest([lambda: loop_of_comparisons(raw, mask), ours], rounds)
    finally:
        torch.set_num_threads(threads)
    slow, fast = loop_of_comparisons(raw, mask), [float(v) for v in ours()]
    equal = slow[0] == fast[0] and slow[1] == fast[1] and abs(slow[2] - fast[2]) < 1e-6
    return {"what": f"scoring a {size[0]}x{size[1]} map, one core; results equal: {equal}", "unit": "maps/s",
            "ours": 1 / seconds[1], "reference": 1 / seconds[0], "ratio": seconds[0] / seconds[1], "target": ">= 6"}  # fmt: skip


PEAK = """
import re, resource, sys, eclip_lib as eclip
clip = eclip.load_clip("scenes-ViT-32", None)
eclip.evaluate(eclip.explainer("clip", clip), eclip.load_dataset("scenes", limit=None, length={length}), clip)
if sys.platform == "linux":  # ru_maxrss would start at the size of the process that started this one
    print(int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1))
"""


def evaluation_memory(small=200, large=2000):
    """Peak resident memory of `evaluate` over 2,000 scenes against 200; target: within 10 %."""
    peaks = []
    for length in tqdm((small, large), desc="evaluating", unit="run", leave=False):
        run = subprocess.run([sys.executable, "-c", PEAK.format(length=length)], capture_output=True, text=True, check=True)
        peaks.append(int(run.stdout.split()[-1]) / 1024)
    return {"what": f"peak memory of evaluate, {large} against {small} scenes", "unit": "MiB", "ours": peaks[1],
            "reference": peaks[0], "ratio": peaks[1] / peaks[0], "target": "<= 1.10"}  # fmt: skip


def bench(device="cpu"):
    """All measurements -> DataFrame: what, unit, ours, reference, ratio, target, device."""
    from . import bench_device, bench_training  # they take `fastest` from here

    rows = [itsm_throughput(device), shift_overhead(device), bi_model_batches(device), scoring(), evaluation_memory()]
    table = pd.DataFrame(rows + bench_training.measurements(device) + bench_device.measurements(device))
    name = (
        torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    return table.assign(device=name).round({"ours": 2, "reference": 2, "ratio": 3})
