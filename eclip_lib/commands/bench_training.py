"""What `eclip bench` measures about the feature cache and training, and how each row is measured.

The clock is torch.utils.benchmark's, which waits for a GPU before it is read. Functions that are compared
take turns, so that all of them see the same machine."""

import copy
import io
import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch.utils.benchmark import set_torch_threads, timer
from tqdm.auto import tqdm

from ..datasets.image_text import ScenePairs, load_pairs
from ..datasets.pair_views import augmentation
from ..explainers import explainer
from ..feature_cache import Cache, View, cache_features
from ..networks.attention import load_attention
from ..networks.clip import to_batch
from ..networks.loading import load_clip
from ..poolings import encode_pairs
from ..training import train_pair

# ---------------------------------------------------------------------- how it is measured


def fastest(functions, rounds):
    """Seconds of each function's fastest call, after one that does not count."""
    for function in functions:
        function()
    best = [float("inf")] * len(functions)
    for _ in tqdm(range(rounds), desc="timing", unit="round", leave=False):
        for k, function in enumerate(functions):
            begin = timer()
            function()
            best[k] = min(best[k], timer() - begin)
    return best


def row(what, unit, ours, reference, target, ratio=None):
    """A line of the bench's table. ratio: ours by the reference's, where it is not the other way round."""
    ratio = ours / reference if ratio is None else ratio
    names = ("what", "unit", "ours", "reference", "ratio", "target")
    return dict(zip(names, (what, unit, ours, reference, ratio, target), strict=True))


def random_inputs(clip, images, texts):
    """(random images, features of texts that differ), as a network reads them."""
    text = clip.encode_text([f"a photo of the thing {k}" for k in range(texts)])
    return torch.randn(images, 3, *clip.size, device=clip.device), text


# ---------------------------------------------------------------------- the cache


class Uncached:
    """A cache and its view that hold nothing: every read runs CLIP and DINO again, but for the first, which
    only asks for the width. made: the cache of the same pairs."""

    def __init__(self, made, clip, masks, source):
        self.made, self.clip, self.masks, self.source, self.reads = made, clip, masks, source, False
        self.shards = made.view().shards

    def __getattr__(self, name):
        return getattr(self.made, name)

    def __len__(self):
        return len(self.made)

    def view(self, epoch=0):
        return self

    def read(self, shard, column):
        if not self.reads:
            self.reads = True
            return self.made.view().read(shard, column)
        part = self.source.parts[self.shards.index(shard)]
        columns = encode_pairs(self.clip, self.masks, self.source, part, self.about)[0]
        return columns[str(column)], columns["text"]


def cached_epochs(device="cpu", network="ViT-B-32", mask="vit_small_patch16_224", epochs=10, count=64):
    """Ten epochs with the cache, its making included, against ten that run CLIP and DINO on every batch;
    target: 8 times faster, same losses to 1e-3."""
    clip, masks = load_clip(network, None, device), {"DINO": load_attention(mask, None, device)}
    clip.identity  # noqa: B018  the digest of its weights takes a second, once, however many pairs there are
    source = ScenePairs(count, size=32)
    options = {"epochs": epochs, "batch_size": 32, "lr": 1e-3}
    with tempfile.TemporaryDirectory() as folder:
        begin = timer()
        cache = cache_features(clip, source, folder, masks, augment=None)
        ours = train_pair(clip, cache, "masked_max:DINO", **options)[1]
        middle = timer()
        theirs = train_pair(clip, Uncached(cache, clip, masks, source), "masked_max:DINO", **options)[1]
        end = timer()
    same = bool(((ours["loss"] - theirs["loss"]).abs() < 1e-3).all())
    what = f"{epochs} epochs of MMP with the cache, {network}; same losses: {same}"
    return row(what, "pairs/s", epochs * count / (middle - begin), epochs * count / (end - middle), ">= 8")


class Drawn:
    """A source whose images are drawn and prepared already."""

    def __init__(self, images, captions):
        self.images, self.captions = images, captions

    def read(self, part):
        return [(str(k), k, caption) for k, caption in enumerate(self.captions)]

    def place(self, part, key):
        return key

    def open(self, payload):
        return self.images[payload]


@torch.no_grad()
def all_poolings(device="cpu", network="ViT-B-16", mask="vit_small_patch16_224", count=32, rounds=2):
    """All five rows of Table 3 in one pass against the bare forward passes of CLIP, DINO and MoCo v3; target:
    at most 1.1 times their time."""
    clip = load_clip(network, None, device)
    masks = {name: load_attention(mask, None, device) for name in ("MoCo v3", "DINO")}
    source = ScenePairs(count, size=count)
    scenes = list(source.read(source.parts[0]))
    captions = [caption for *_, caption in scenes]
    drawn = Drawn([clip.preprocess(scene.image) for _, scene, _ in scenes], captions)
    images = to_batch(drawn.images, clip.device)
    undecoding = copy.copy(clip)  # decoding is no part of this
    undecoding.preprocess = lambda image: image
    about = {"seed": 0, "batch_size": count, "augment": None}

    def passes():
        clip.encode_image(images)
        clip.encode_text(captions)
        for model in masks.values():
            model.model.forward_features(images)

    seconds = fastest([passes, lambda: encode_pairs(undecoding, masks, drawn, None, about)], rounds)
    what = f"five poolings in one pass, {network} and two ViT-S/16 masks"
    return row(what, "pairs/s", count / seconds[1], count / seconds[0], "<= 1.10", seconds[1] / seconds[0])


def picture_cost(pairs, network="ViT-B-16", count=200):
    """What a picture of a web dataset costs beside the networks -> (bytes, seconds): its JPEG as img2dataset
    writes it (256 pixels with a border, quality 95), and to decode and augment it (DeiT's recipe) on one
    core. pairs: a source of photographs, see `load_pairs`."""
    source, transform = load_pairs(pairs), augmentation(load_clip(network, None))
    photos = (photo for part in source.parts for _, photo, _ in source.read(part) if photo)
    sizes, seconds = [], 0.0
    for photo in itertools.islice(photos, count):
        file = io.BytesIO()
        ImageOps.pad(source.open(photo), (256, 256)).save(file, "JPEG", quality=95)
        with set_torch_threads(1):
            begin = timer()
            transform(Image.open(file).convert("RGB"))
            seconds += timer() - begin
        sizes.append(file.tell())
    return sum(sizes) / len(sizes), seconds / len(sizes)


# ---------------------------------------------------------------------- training


class RandomCache(Cache):
    """A cache of random features, written in shards of `size`."""

    def __init__(self, folder, clip, pairs, width, size=8192):
        self.keep, self.views, self.pairs, shards = True, 1, pairs, []
        for first in range(0, pairs, size):
            rows, path = min(size, pairs - first), Path(folder, f"{first:09d}.safetensors")
            save_file({name: torch.randn(rows, width) for name in ("max", "text")}, str(path))
            shards.append(path)
        about = {"columns": ["max"], "reads": "tokens", "augment": None, "masks": {}, "pairs": {}}
        self.about = clip.identity | about
        self._there, self._notes = {0: View(Path(folder), shards, [])}, []

    def __len__(self):
        return self.pairs


def training_rate(device="cpu", network="ViT-B-16", batch=1024, width=512, pairs=16384):
    """Training a pair over a cache against its bare matrix products, forward and backward; target: at least
    60 % of their rate. width: of the network's texts and of its joint space."""
    clip = load_clip(network, None, device)
    a, b, weight = (torch.randn(n, width, device=device) for n in (batch, batch, width))

    def products():  # two projections and the logits, each once forward and twice backward
        for _ in range(3):
            torch.mm(a, weight)
            torch.mm(b, weight)
            torch.mm(a, b.T)

    ends = []
    with tempfile.TemporaryDirectory() as folder:
        cache = RandomCache(folder, clip, pairs, width)
        train_pair(clip, cache, "max", epochs=5, batch_size=batch, on_epoch=lambda *_: ends.append(timer()))
    bare = fastest([products], 20)[0] * (pairs // batch)
    what = f"training over the cache, C={width}, batch {batch}"
    return row(what, "pairs/s", pairs / np.diff(ends).min(), pairs / bare, ">= 0.60")


@torch.no_grad()
def learned_pair_cost(device="cpu", network="ViT-B-16", batch=16, texts=80, rounds=4):
    """RCLIP's and ECLIP's maps against CLIP's; target: within 5 %."""
    clip = load_clip(network, None, device)
    images, text = random_inputs(clip, batch, texts)
    explainers = [explainer(method, clip) for method in ("clip", "rclip")]
    explainers.append(explainer("eclip", clip, projection=clip.projection))
    seconds = fastest([lambda explain=explain: explain(images, text) for explain in explainers], rounds)
    own, learned = seconds[0], max(seconds[1:])
    what = f"RCLIP and ECLIP against CLIP, {network}, {texts} texts"
    return row(what, "images/s", batch / learned, batch / own, "<= 1.05", learned / own)
