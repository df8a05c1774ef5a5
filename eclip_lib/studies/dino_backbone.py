"""Notebook 02: is the encoder the reason? Attention against objects, and another backbone in CLIP's place
(§3.2 “Backbone”, Fig. 2)."""

import json
import math
import time
import warnings
from dataclasses import dataclass

import pandas as pd
import torch
from timm.optim import create_optimizer_v2

from .. import files, plots
from ..datasets import examples
from ..datasets.pair_views import LeftOut, PairViews, augmentation, usable
from ..evaluation import counts, in_words, t_interval, table
from ..explainers import explainer
from ..method import contrastive_loss
from ..networks import demo
from ..networks.attention import load_attention
from ..networks.clip import Clip, loaded
from ..poolings import Pooling
from ..progress import tqdm
from ..projection import Projection
from ..recipe import new_pair
from ..training import read_state, write_state
from .itsm_discovery import direction

OWN = "CLIP, own pair"
SHIPPED = "scenes-ViT-32"  # the network that the demo's unlocked backbone was trained beside


@dataclass(frozen=True)
class Arm:
    """One arm of Fig. 2: an image encoder (as a `Clip`), the pair its map is taken with, and what that pair
    learned from, in words."""

    clip: Clip
    projection: Projection
    learned: str


def partner(run, clips, models):
    """The CLIP whose image encoder the backbone replaces (Fig. 2): a ViT of as many tokens, as the paper's
    ViT-B/16 and DINO have, else the first ViT, else the first network. In the demo the shipped backbone's."""
    if run.pretrained == "default" and SHIPPED in clips:
        return clips[SHIPPED]
    grid = list(models.values())[-1].grid
    vits = [clip for clip in clips.values() if clip.is_vit]
    equal = [clip for clip in vits if tuple(clip.model.visual.grid_size) == grid]
    return [*equal, *vits, *clips.values()][0]


def new_pair_arm(run, encoder, features, seed):
    """A pair that learns on an encoder's class token -> `Arm`."""
    trained = run.train(encoder, features, Pooling("attention"), seed)
    return Arm(encoder, trained.pair, _learned(run, run.training.epochs, trained.losses))


def _learned(run, epochs, losses):
    pairs = run.pairs if run.limit_pairs is None else f"{run.limit_pairs} of {run.pairs}"
    said = f"{pairs}, {epochs} epochs in batches of {run.training.batch_size}"
    return f"{said}; final training loss {losses['loss'].iloc[-1]:.1f}"


def unlocked(run, clip, name):
    """The backbone trained on with its pair: the demo's as shipped, else on the run's captions -> `Arm`."""
    model = run.load_masks()[name]
    shipped = demo.FOLDER / f"{model.name}-unlocked-seed0.safetensors"
    # training it takes a quarter of an hour
    if shipped.exists() and run.pretrained == "default" and clip.network == SHIPPED:
        other = clip.with_image_encoder(load_attention(model.name, shipped, run.device))
        pair = Projection.load(shipped.with_suffix(".pair.safetensors"), other)
        card = json.loads(shipped.with_suffix(".json").read_text())
        said = f"as shipped: {card['data']}, in batches of {card['recipe']['batch']}"
        return Arm(other, pair, f"{said}; final training loss {card['final_loss']:.1f}")
    settings = run.training.model_dump() | {"seed": run.seed, "workers": run.workers}
    settings["epochs"] = run.training.views  # one encoder pass a view, as the other arms take
    resume = run.out / "trained"
    pair, history = unlock(clip, model, run.load_pairs(), **settings, optimizer="adamw", resume=resume)
    return Arm(clip.with_image_encoder(model), pair, _learned(run, settings["epochs"], history))


def encoders_in_words(encoders):
    """In what two image encoders, {title: `Clip`}, differ besides what they learned."""
    sizes, grids = [], []
    for clip in encoders.values():
        model = clip.model.visual if clip.backbone is None else clip.backbone
        millions = sum(weight.numel() for weight in model.parameters()) / 1e6
        sizes.append(f"{millions:.{1 if millions < 10 else 0}f} million parameters")
        grids.append("×".join(map(str, clip.encode_image(torch.zeros(1, 3, *clip.size)).grid)) + " tokens")
    each = "; ".join(map("{}: {}, {}".format, encoders, sizes, grids))
    unlike = [what for what, (one, other) in (("size", sizes), ("grid", grids)) if one != other]
    return f"{each}. They differ in {' and '.join(unlike) or 'neither'}."


def unlock(
    clip,
    backbone,
    source,
    epochs=1,
    batch_size=64,
    lr=1e-3,
    weight_decay=0.05,
    views=1,
    augment=None,
    seed=0,
    workers=0,
    optimizer="nmuon",
    resume=None,
    every=600,
):
    """Train a backbone and a new pair together by Eq. 3's contrastive loss on its class token; CLIP's text
    encoder stays locked.

    Changes `backbone` in place. source: see `datasets.image_text`; views: of its pairs, one an epoch in turn.
    optimizer: a name of timm's. resume: a folder with a file for each training, from which a broken one goes
    on, written after a part where `every` seconds have passed, and at the end. Returns (`Projection`,
    DataFrame of step, loss, seconds)."""
    about = [epochs, batch_size, lr, weight_decay, views, augment, seed, optimizer, source.about]
    about += [[source.stamp(part) for part in source.parts], clip.identity, files.digest(backbone)]
    code = ("studies/dino_backbone.py", "method.py", "recipe.py", "projection.py", "networks", "datasets")
    key = files.digest([about, str(clip.device).partition(":")[0], files.code_digest(*code)])
    resume = resume and resume / f"unlocked-{key}.pt"
    torch.manual_seed(seed)
    model = clip.with_image_encoder(backbone.requires_grad_(True))
    pair = new_pair(clip, backbone.model.embed_dim, "tokens", seed).to(clip.device)
    backbone.model.set_grad_checkpointing(batch_size > 256)  # else its activations fill a GPU
    learned = torch.nn.ModuleList([backbone.model, pair])
    stepper = create_optimizer_v2(learned, optimizer, lr=lr, weight_decay=weight_decay)
    transform, total, lines, begin = augmentation(clip, augment), None, [], time.perf_counter()
    kept, saved = (resume and read_state(resume, key)) or {"done": 0}, begin
    if kept["done"]:
        learned.load_state_dict(kept["learned"]), stepper.load_state_dict(kept["optimizer"])
        total, lines = kept["total"], kept["lines"]
    todo = [(epoch, part) for epoch in range(epochs) for part in source.parts]
    for done, (epoch, part) in enumerate(tqdm(todo, desc=f"unlocking {backbone.name}", unit="shard"), 1):
        if done <= kept["done"]:
            continue
        try:
            items = usable(source.read(part), LeftOut())
        except (OSError, ValueError) as error:
            warnings.warn(f"{error}; the others go on", stacklevel=2)
            continue
        total = total or len(todo) * max(1, len(items) // batch_size)
        seen = PairViews(source, items, transform, seed, epoch % views)
        order = torch.Generator().manual_seed(1_000_000 * seed + done)
        for batch in loaded(seen, batch_size, workers, shuffle=True, generator=order):
            batch = [item for item in batch if item is not None]
            if len(batch) < 2:
                continue
            step = len(lines)
            wave = (1 + math.cos(math.pi * min(1, step / total))) / 2
            for group in stepper.param_groups:
                group["lr"] = lr * min(1, (step + 1) / 100) * wave
            images, captions, _ = zip(*batch, strict=True)
            with torch.no_grad():
                text = clip.encode_text(list(captions))
            feature = model.encode_image(torch.stack(images)).class_token
            loss = contrastive_loss(pair, feature, text, clip.logit_scale)
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            lines.append((epoch, step + 1, loss.item(), time.perf_counter() - begin))
        if resume and (time.perf_counter() - saved >= every or done == len(todo)):
            state = {"key": key, "done": done, "total": total, "lines": lines}
            state |= {"learned": learned.state_dict(), "optimizer": stepper.state_dict()}
            write_state(resume, state)
            saved = time.perf_counter()
    backbone.requires_grad_(False).model.set_grad_checkpointing(False)
    pair.metadata = {"network": model.network, "weights": clip.pretrained}
    pair.metadata["pooling"] = "attention, backbone unlocked"
    return pair.requires_grad_(False), pd.DataFrame(lines, columns=["epoch", "step", "loss", "seconds"])


def arms_table(run, rows):
    """One line a dataset and arm, its first training: `summarize`'s measures in %."""
    result = table(rows[rows["seed"] == 0], ("dataset", "method"), seed=run.seed)
    result = result.rename(columns={"method": "backbone"})
    return result.sort_values("dataset", kind="stable", ignore_index=True)


def arms_seeds(run, rows):
    """One line a dataset, encoder and training of every arm that learned."""
    trained = rows[rows["method"] != OWN]
    found = table(trained, ("dataset", "network", "method", "seed"), seed=run.seed)
    found = found.rename(columns={"method": "backbone"}).astype({"seed": int})
    return found.sort_values(["backbone", "seed"], ignore_index=True)


def arms_sheet(run, arms, name, count=4):
    """Image, ground truth and the map of every arm's first training. Returns the figure."""
    shown = {}
    for (title, seed), arm in arms.items():
        if seed == 0:
            explain = explainer("eclip", arm.clip, projection=arm.projection)
            shown[title.replace(", ", ",\n")] = arm.clip, explain
    return plots.map_sheet(examples(run.load_dataset(name), count), shown, size=1.4)


def verdict(gained, seeds):
    """Is it the backbone? Sentences computed from the tables: whose attention is better, and which way the
    map of every arm points over its trainings."""
    lines, other = [], []
    for mask, part in gained[gained["than"] == "CLIP"].groupby("mask", sort=False):
        up, open_, down = counts(part, "IoU")
        said = (
            f"{mask}'s attention finds objects better than CLIP's own in {up} of {len(part)} cases (datasets "
        )
        lines.append(f"{said}and networks, over images), worse in {down}; {open_} open.")
    for (title, dataset), part in seeds.groupby(["backbone", "dataset"], sort=False):
        mean, low, high = t_interval(part["mSC"])
        many = f"{len(part)} trainings: {direction(low, high)}"
        many = many if len(part) > 1 else "one training, no interval"
        lines.append(f"{dataset}, {title}: mSC {mean:.0f}, {many}.")
        other += [] if title.startswith("CLIP") or len(part) < 2 else [in_words(low, high)]
    up, down = other.count("above"), other.count("below")
    says = (
        "it is not the backbone" if down == len(other) else "it is the backbone" if up == len(other) else ""
    )
    says = says if other and says else "whether it is the backbone stays open"
    counted = f"{down} of {len(other)} cases, not opposite in {up} (arms and datasets, over trainings)"
    return "\n".join([*lines, f"So {says} here: with another one the map is opposite in {counted}."])
