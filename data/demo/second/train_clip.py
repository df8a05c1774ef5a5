"""How the demo's mini CLIPs are trained: open_clip's own training loop on scenes in memory, then a card with
what came out.

    python train_clip.py scenes-ViT-32 --seed 0

renders the training scenes (once), trains with `open_clip_train.train.train_one_epoch`, and writes the
checkpoint (fp16) and its card beside this file. A run saves itself every few minutes and goes on from there.
Chosen by loss and zero-shot recognition alone: nothing here reads a map.
"""

import argparse
import hashlib
import json
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import eclip_lib  # noqa: F401 (torchvision then imports beside a CPU-only torch)

# isort: split
import networks
import numpy as np
import torch
import world
from open_clip.loss import ClipLoss
from open_clip.transformer import PatchDropout
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
LEVELS = ("plain", "cluttered")
SCENES = 100_000
RECIPE = {
    "scenes": SCENES,
    "passes": 4,
    "cooccurrence": world.COOCCURRENCE,
    "naming": 0.5,
    "pool": "token",
    "batch": 64,
    "optimizer": "nmuon",
    "lr": 2e-3,
    "weight_decay": 0.1,
    "warmup": 100,
    "clip": 1.0,
    "precision": "amp_bf16" if networks.BF16 else "fp32",
    "tokens_dropped": 0.0,
}
# four times the tokens: half are dropped in all but the last tenth of the steps (Li et al., FLIP, 2023)
RECIPES = {"scenes-ViT-32": RECIPE, "scenes-ViT-16": RECIPE | {"tokens_dropped": 0.5}, "scenes-RN": RECIPE}
SCRATCH = {"scenes": 3000, "passes": 20}  # Table 4: nothing but as many scenes as ECLIP's pair is trained on
EPOCH = 20_000  # samples between two savings
EVERY = 50  # steps between two entries of the loss curve
MEAN, STD = (
    (255 * torch.tensor(s)).view(1, 3, 1, 1)
    for s in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
)


def prepare(pixels):
    """uint8 [B, 112, 112, 3] -> normalised float32 [B, 3, 112, 112]."""
    return (torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() - MEAN) / STD


# ---------------------------------------------------------------------------------------- data


def _render(index, cooccurrence, rates):
    """Training scene `index`, levels in turn -> its pixels and one caption for each rate of naming the
    background."""
    seed = world.SEEDS["train"]
    scene = world.sample(seed, index, LEVELS[index % 2], cooccurrence=cooccurrence)
    captions = [world.caption(scene, seed, index, k, background=rate) for k, rate in enumerate(rates)]
    return scene.pixels, captions


def naming_rates(naming, passes):
    """Share of captions that name the background, pass by pass: from 0.1 (or less) to `naming`. Asked for
    from the start, it can keep a network at chance."""
    return [round(float(rate), 3) for rate in np.linspace(min(0.1, naming), naming, passes)]


def training_scenes(folder, count, start, cooccurrence, naming, passes):
    """Pixels (memory-mapped uint8 [count, 112, 112, 3]) and captions ([count][passes] words) of training
    scenes; rendered once a folder."""
    rates = naming_rates(naming, passes)
    stem = Path(folder, f"train-{start}-{count}-cooccurrence{cooccurrence}-naming{naming}-{passes}")
    pixels, words = stem.with_name(stem.name + ".npy"), stem.with_name(stem.name + ".json")
    if not words.exists():
        stem.parent.mkdir(parents=True, exist_ok=True)
        array = np.lib.format.open_memmap(pixels, "w+", np.uint8, (count, world.SIZE, world.SIZE, 3))
        render, captions = partial(_render, cooccurrence=cooccurrence, rates=rates), []
        with ProcessPoolExecutor(2) as pool:
            for k, (image, texts) in enumerate(pool.map(render, range(start, start + count), chunksize=500)):
                array[k] = image
                captions.append(texts)
        array.flush()
        words.write_text(json.dumps(captions))
    return np.load(pixels, mmap_mode="r"), json.loads(words.read_text())


class Batches:
    """What `train_one_epoch` reads. An epoch is the next 20,000 samples of a permutation of all scenes; every
    pass over them has its own captions. A sample is mirrored or not, a batch shifted by up to 8 pixels
    (around the edge)."""

    def __init__(self, pixels, captions, batch, seed):
        self.pixels, self.batch, self.seed, self.dataloader = pixels, batch, seed, self
        tokens = networks.tokenizer()
        self.tokens = [tokens(list(texts)) for texts in zip(*captions, strict=True)]
        self.epoch_size = min(EPOCH, len(pixels))
        self.num_batches = self.epoch_size // batch
        self.num_samples = self.num_batches * batch

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        a_pass, part = divmod(self.epoch, len(self.pixels) // self.epoch_size)
        order = np.random.default_rng((self.seed, a_pass)).permutation(len(self.pixels))[
            part * self.epoch_size :
        ]
        rng = np.random.default_rng((self.seed, a_pass, part))
        for k in range(self.num_batches):
            chosen = np.sort(order[k * self.batch : (k + 1) * self.batch])
            images = self.pixels[chosen]
            mirrored = rng.random(len(images)) < 0.5
            images[mirrored] = images[mirrored, :, ::-1]
            images = np.roll(images, rng.integers(-8, 9, 2), (1, 2))
            yield prepare(images), self.tokens[a_pass % len(self.tokens)][chosen]


# ---------------------------------------------------------------------------------------- recognition

SPLITS = {  # name -> what `world.sample` is told
    "": {},
    ", rho 0": {"cooccurrence": 0.0},
    ", gray": {"colours": "gray"},
}


@torch.no_grad()
def recognition(model, split, length, variants=SPLITS):
    """Zero-shot mAP in % on `length` scenes of a split, for each level and variant; chance is the mean share
    of images that show a class."""
    was_training, scores, tokens = model.training, {}, networks.tokenizer()
    model.eval()
    texts = model.encode_text(tokens([f"a photo of the {name}" for name in world.CLASSES]), normalize=True)
    for level in LEVELS:
        for name, options in variants.items():
            scenes = [world.sample(world.SEEDS[split], i, level, **options) for i in range(length)]
            shown = np.array([[c in s.masks for c in world.CLASSES] for s in scenes])
            batches = [np.stack([s.pixels for s in scenes[i : i + 50]]) for i in range(0, length, 50)]
            with torch.autocast("cpu", torch.bfloat16, networks.BF16):
                features = torch.cat([model.encode_image(prepare(b)).float() for b in batches])
            cosines = (F.normalize(features, dim=-1) @ texts.T).numpy()
            precision = [
                average_precision_score(shown[:, k], cosines[:, k]) for k in range(len(world.CLASSES))
            ]
            scores[level + name] = round(100 * float(np.mean(precision)), 1)
        scores[f"{level}, chance"] = round(100 * float(shown.mean()), 1)
    model.train(was_training)
    return scores


# ---------------------------------------------------------------------------------------- training


class Curve(list):
    """The loss curve, where `train_one_epoch` writes its log."""

    def add_scalar(self, name, value, step):
        if name == "train/loss":
            self.append(round(value, 3))


def train(network, name, seed, folder, recipe, start=0):
    """Train one network from random weights -> (model, loss every 50 steps, {samples: validation mAP},
    seconds)."""
    pixels, captions = training_scenes(
        folder, recipe["scenes"], start, recipe["cooccurrence"], recipe["naming"], recipe["passes"]
    )
    torch.manual_seed(seed)
    model = networks.create(network, recipe["pool"]).to(memory_format=torch.channels_last)
    # on a CPU the fused attention's backward pass takes a third of a step; plain products a tenth
    torch.backends.cuda.enable_flash_sdp(False)
    batches = Batches(pixels, captions, recipe["batch"], seed)
    optimizer = create_optimizer_v2(
        model, recipe["optimizer"], lr=recipe["lr"], weight_decay=recipe["weight_decay"]
    )
    epochs = recipe["passes"] * (len(pixels) // batches.epoch_size)
    schedule = cosine_lr(optimizer, recipe["lr"], recipe["warmup"], epochs * batches.num_batches)
    arguments = SimpleNamespace(
        device="cpu",
        precision=recipe["precision"],
        batch_size=recipe["batch"],
        grad_clip_norm=recipe["clip"],
        log_every_n_steps=EVERY,
        **{"accum_freq": 1, "world_size": 1, "rank": 0},
        **dict.fromkeys(("distributed", "distill", "horovod", "skip_scheduler", "wandb"), False),
    )
    curve, watched, begin, saved = Curve(), {}, time.process_time(), Path(folder, f"{name}.pt")
    first = 0
    if saved.exists():
        kept = torch.load(saved, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        curve, watched, first, begin = (
            Curve(kept["curve"]),
            kept["watched"],
            kept["epoch"],
            begin - kept["seconds"],
        )
    for epoch in range(first, epochs):
        if recipe["tokens_dropped"]:
            whole = epoch >= 0.9 * epochs
            model.visual.patch_dropout = nn.Identity() if whole else PatchDropout(recipe["tokens_dropped"])
        train_one_epoch(
            model,
            {"train": batches},
            ClipLoss(),
            epoch,
            optimizer,
            None,
            schedule,
            None,
            arguments,
            tb_writer=curve,
        )
        watched[(epoch + 1) * batches.num_samples] = recognition(model, "validation", 200, {"": {}})
        print(time.strftime("%H:%M"), name, epoch + 1, epochs, np.mean(curve[-6:]), watched, flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        state |= {"curve": list(curve), "watched": watched, "seconds": time.process_time() - begin}
        torch.save(state, partial_file := saved.with_suffix(".partial"))
        os.replace(partial_file, saved)
    return model.eval(), list(curve), watched, time.process_time() - begin


def ship(network, seed, folder, scratch=False, **changes):
    """Train, write the checkpoint (fp16) and its card. `changes`: what differs from the network's recipe;
    such arms are written to `arms`. Returns the card's path."""
    changes = {key: value for key, value in changes.items() if value is not None}
    recipe = RECIPES[network] | changes | (SCRATCH if scratch else {})
    words = [
        network,
        *(f"{key}-{value}" for key, value in changes.items()),
        "scratch" if scratch else f"seed{seed}",
    ]
    path = Path(HERE, "arms" if changes else ".", "-".join(words) + ".safetensors")
    path.parent.mkdir(exist_ok=True)
    start = SCENES if scratch else 0
    model, curve, watched, seconds = train(network, path.stem, seed, folder, recipe, start)
    state = model.state_dict()
    halves = {name: t.half().contiguous() if t.is_floating_point() else t for name, t in state.items()}
    save_file(halves, str(path))
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in halves.items()})
    flags = "".join(f" --{key} {value}" for key, value in changes.items()) + " --scratch" * scratch
    card = {
        "network": network,
        "seed": seed,
        "command": f"python train_clip.py {network} --seed {seed}{flags}",
        "data": f"{recipe['scenes']:,} scenes of the train split from {start:,} on, levels "
        f"{' and '.join(LEVELS)} in turn, {recipe['passes']} times each with new captions",
        "background_named_in_each_pass": naming_rates(recipe["naming"], recipe["passes"]),
        "recipe": recipe,
        "samples_seen": max(watched),
        "core_seconds": round(seconds),
        "machine": f"{platform.machine()} CPU, 1 of {os.cpu_count()} cores, torch {torch.__version__}",
        "tried": "README.md lists every world and recipe that was tried",
        "parameters": sum(t.numel() for t in state.values()),
        "final_loss": round(sum(curve[-10:]) / 10, 3),
        f"loss_every_{EVERY}_steps": curve,
        "validation_mAP_by_samples": watched,
        "zero_shot_mAP": {split: recognition(model, split, 1000) for split in ("validation", "test")},
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    return path.with_suffix(".json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=networks.VISION)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", default="runs/demo_training", help="scratch: rendered scenes, unfinished runs"
    )
    parser.add_argument("--scratch", action="store_true", help="on the small caption set alone (Table 4)")
    parser.add_argument(
        "--pool", choices=networks.POOLS, help="what a ViT's image feature is, from the start"
    )
    parser.add_argument(
        "--cooccurrence", type=float, help="share of scenes with their first class's favourite background"
    )
    parser.add_argument("--naming", type=float, help="share of captions that name the background, in the end")
    parser.add_argument("--passes", type=int, help="how often every scene is seen")
    options = vars(parser.parse_args())
    torch.set_num_threads(1)  # two trainings share a machine better than two threads
    print(ship(**options))
