"""Another backbone in the place of CLIP's image encoder (paper §3.2 “Backbone”, Fig. 2, notebook 02): is the encoder the reason?"""

import math
import time
from dataclasses import dataclass

import pandas as pd
import torch
from timm.optim import create_optimizer_v2
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from . import demo, discovery
from .ablation import cached
from .attention import load_attention
from .cache import PairViews, augmentation
from .clip import Clip, Projection
from .datasets.pairs import load_pairs
from .evaluation import evaluate, summarize
from .explainers import explainer
from .pooling_study import masks_for
from .training import contrastive_loss, new_pair, train_pair


class Transplant(Clip):
    """CLIP's text encoder beside another image encoder (a `SelfAttention`), whose class token is the pooled feature.

    Everything that takes a `Clip` takes it; `projection` stays CLIP's own, so a map needs a new pair."""

    def __init__(self, clip, backbone):
        self.__dict__ |= vars(clip)
        self.clip, self.model, self.pools, self.is_vit = clip, backbone, "tokens", False
        self.network = f"{clip.network} with {backbone.name}"

    def encode_image(self, images):
        mean, std = (torch.tensor(s, device=self.device).view(3, 1, 1) for s in self.statistics)
        return self.model.features(images.to(self.device) * std + mean)

    def encode_text(self, texts):
        return self.clip.encode_text(texts)


def unlock(clip, backbone, source, epochs=1, batch_size=64, lr=1e-3, weight_decay=0.05, seed=0, workers=0, augment=None):
    """Train a backbone and a new pair together by Eq. 3's contrastive loss on its class token; CLIP's text encoder stays locked.

    Changes `backbone` in place. source: see `datasets.pairs`. Returns (`Projection`, DataFrame of step, loss, seconds)."""
    torch.manual_seed(seed)
    model = Transplant(clip, backbone.requires_grad_(True))
    pair = new_pair(clip, backbone.model.embed_dim, "tokens", seed).to(clip.device)
    learned = torch.nn.ModuleList([backbone.model, pair])
    optimizer = create_optimizer_v2(learned, "nmuon", lr=lr, weight_decay=weight_decay)
    parts = list(source.parts)
    transform, step, lines, begin = augmentation(clip, augment), 0, [], time.perf_counter()
    total = None
    for epoch in range(epochs):
        for number, part in enumerate(tqdm(parts, desc=f"unlocking {backbone.name}", unit="shard")):
            items = list(source.read(part))
            total = total or epochs * len(parts) * max(1, len(items) // batch_size)
            views = PairViews(source, items, transform, seed + epoch, 1)
            for batch in DataLoader(views, batch_size, shuffle=True, num_workers=workers, collate_fn=list):
                batch = [item for item in batch if item is not None]
                if len(batch) < 2:
                    continue
                for group in optimizer.param_groups:
                    group["lr"] = lr * min(1, (step + 1) / 100) * (1 + math.cos(math.pi * min(1, step / total))) / 2
                images, captions, _ = zip(*batch, strict=True)
                with torch.no_grad():
                    text = clip.encode_text(list(captions))
                feature = model.encode_image(torch.stack(images)).class_token
                loss = contrastive_loss(pair, feature, text, clip.logit_scale)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                lines.append((epoch, number, step, loss.item(), time.perf_counter() - begin))
    backbone.requires_grad_(False)
    pair.metadata = {"network": model.network, "weights": clip.pretrained, "pooling": "attention, backbone unlocked"}
    return pair.requires_grad_(False), pd.DataFrame(lines, columns=["epoch", "shard", "step", "loss", "seconds"])


@dataclass(frozen=True)
class Arm:
    """One arm of Fig. 2: an image encoder (as a `Clip`), the pair its map is taken with, and how that pair came to be, in words."""

    clip: Clip
    projection: Projection
    loss: str


def arms(run, clip, models):
    """The four arms for one network: CLIP with its own pair, CLIP with a new pair, DINO locked, DINO unlocked; {name: `Arm`}."""
    settings = {k: v for k, v in run.training.items() if k not in ("views", "augment")}
    found = {"CLIP, own pair": Arm(clip, clip.projection, "as trained")}
    name, model = next((n, m) for n, m in reversed(models.items()))
    other = Transplant(clip, model)
    caches = {"CLIP, new pair": (clip, masks_for(run, clip, models)), f"{name}, locked": (other, {})}
    for title, (encoder, masks) in caches.items():
        pair, history = train_pair(encoder, cached(run, encoder, masks), "attention", seed=run.seed, **settings)
        found[title] = Arm(encoder, pair, f"final training loss {history['loss'].iloc[-1]:.1f}")
    found[f"{name}, unlocked"] = _unlocked(run, clip, run.load_masks()[name])
    return found


def _unlocked(run, clip, model):
    shipped = demo.FOLDER / f"{model.name}-unlocked-seed0.safetensors"
    # training it takes a quarter of an hour
    if shipped.exists() and run.pretrained == "default" and clip.network == "scenes-ViT-32":
        arm = Transplant(clip, load_attention(model.name, shipped, run.device))
        return Arm(arm, Projection.load(shipped.with_suffix(".pair.safetensors"), arm), "as shipped, see its card")
    pair, history = unlock(clip, model, load_pairs(run.pairs), seed=run.seed, workers=run.workers)
    return Arm(Transplant(clip, model), pair, f"final training loss {history['loss'].iloc[-1]:.1f}")


def evaluate_arms(run, found):
    """{(arm, dataset): rows of `evaluate`}."""
    return {
        (title, name): evaluate(explainer("eclip", arm.clip, projection=arm.projection), run.load_dataset(name), arm.clip,
                                run.workers, run.batch_size, description=f"{title} on {name}")
        for title, arm in found.items() for name in run.datasets
    }  # fmt: skip


def table(run, rows):
    """One line an arm and dataset: `summarize`'s measures in %."""
    lines = [
        {"dataset": name, "backbone": title, **summarize(part, seed=run.seed)[discovery.MEASURES]}
        for (title, name), part in rows.items()
    ]
    return pd.DataFrame(lines).sort_values("dataset", kind="stable", ignore_index=True)


def map_sheet(run, found, name, count=4):
    """Arguments of `plots.sheet`: image, ground truth, the map of every arm."""
    rows, picked = [], []
    for example in discovery.examples(run.load_dataset(name), count):
        class_name = max(example.masks, key=lambda n: example.masks[n].sum())
        maps = [discovery.maps_of(arm.clip, example, arm.projection)[class_name] for arm in found.values()]
        rows.append((example.image, [None, example.masks[class_name], *maps]))
        picked.append(class_name)
    return rows, ["image", "ground truth", *(title.replace(", ", ",\n") for title in found)], picked


def verdict(result):
    """One sentence an arm and dataset: which way its map points."""
    lines = [
        f"{r['dataset']}, {r['backbone']}: {discovery.direction(r['mSC_low'], r['mSC_high'])}" for _, r in result.iterrows()
    ]
    return "\n".join(lines)
