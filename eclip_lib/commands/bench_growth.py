"""What `eclip bench` measures about growth: time and memory of each step as its data grow. Every size runs in
a fresh process on one thread; processor time counts, so that a busy machine changes little."""

import re
import resource
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from ..datasets import load_dataset
from ..evaluation import evaluate
from ..explainers import explainer
from ..method import similarity
from ..networks.loading import load_clip
from ..training import train_pair
from .bench_training import RandomCache, random_inputs

NETWORK = "scenes-ViT-32"


def images(count):
    """Scenes that `evaluate` renders, maps and scores."""
    clip = load_clip(NETWORK)
    dataset = load_dataset("scenes", length=count)
    return count, lambda: evaluate(explainer("clip", clip), dataset, clip)


class ManyClasses:
    """Scenes under `count` class names, those of the scenes among them."""

    def __init__(self, dataset, count):
        self.dataset, names = dataset, dataset.classes
        self.classes = [*names, *(f"thing {k}" for k in range(count - len(names)))]

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]


def classes(count, *measures, length=100):
    """Classes that a dataset has; only those in a picture are scored."""
    clip = load_clip(NETWORK)
    dataset = ManyClasses(load_dataset("scenes", length=length), count)
    return count, lambda: evaluate(explainer("clip", clip), dataset, clip, measures=measures)


def argmax(count):
    """Classes among which argmax mIoU looks for the best at every pixel."""
    return classes(count, "argmax")


@torch.no_grad()
def texts(count):
    """Texts that 16 pictures are compared with, up to Eq. 4, the texts' encoding included."""
    clip = load_clip(NETWORK)

    def compare():
        pictures, text = random_inputs(clip, 16, count)
        return similarity(clip.encode_image(pictures), text, clip.projection)

    return count, compare


def pairs(count):
    """Cached pairs that an epoch of training reads."""
    clip, folder = load_clip(NETWORK), tempfile.TemporaryDirectory()
    cache = RandomCache(folder.name, clip, count, 128)

    def train():
        with folder:
            train_pair(clip, cache, "max", epochs=1, batch_size=256)

    return count, train


def grid(side):
    """Tokens of 16 pictures of a ViT-B/16 that are mapped for 20 texts."""
    clip = load_clip("ViT-B-16", None, size=(16 * side, 16 * side))
    with torch.no_grad():
        pictures, text = random_inputs(clip, 16, 20)
    return side**2, lambda: explainer("clip", clip)(pictures, text)


STEPS = {
    images: (200, 2_000, 20_000),
    classes: (16, 80, 1_000),
    argmax: (16, 80, 1_000),
    texts: (1, 80, 1_000),
    pairs: (10_000, 100_000, 1_000_000),
    grid: (7, 14, 24),
}


def peak_memory():
    """Peak resident memory of this process, in MiB."""
    if sys.platform == "linux":  # ru_maxrss would start at the size of the process that started this one
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measured(step, size):
    """(what a size counts, processor seconds, peak MiB) of a step, in a process of its own."""
    warnings.simplefilter("ignore")  # the demo's networks never saw such words
    torch.set_num_threads(1)
    work, run = step(size)
    begin = time.process_time()
    run()
    return work, time.process_time() - begin, peak_memory()


def growth(steps=STEPS):
    """Seconds and memory of each step and size -> DataFrame: step, size, work (images, classes, texts, pairs
    or tokens), seconds, MiB, and `steepness`, the power of the work by which the time grew since the size
    before: 1 where it grows as its work does."""
    lines = []
    sizes = [(step, size) for step, each in steps.items() for size in each]
    for step, size in tqdm(sizes, desc="growth", unit="size"):
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            work, seconds, memory = fresh.submit(measured, step, size).result()
        lines.append(dict(step=step.__name__, size=size, work=work, seconds=seconds, MiB=memory))
    table = pd.DataFrame(lines)
    steps_up = np.log(table[["work", "seconds"]]).groupby(table["step"], sort=False).diff()
    return table.assign(steepness=steps_up["seconds"] / steps_up["work"]).round(3)
