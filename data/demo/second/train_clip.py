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
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score
from timm.optim import create_optimizer_v2
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
}
SCRATCH = {"scenes": 3000, "passes": 20}  # Table 4: nothing but as many scenes as ECLIP's pair is trained on
EPOCH = 20_000  # samples between two savings
PART = 200  # scenes that a process draws at a time
EVERY = 50  # steps between two entries of the loss curve
MEAN, STD = (
    (255 * torch.tensor(s)).view(1, 3, 1, 1)
    for s in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
)


def prepare(pixels, device="cpu"):
    """uint8 [B, 112, 112, 3] -> normalised float32 [B, 3, 112, 112]."""
    images = torch.from_numpy(np.array(pixels)).to(device).permute(0, 3, 1, 2).float()
    return (images - MEAN.to(device)) / STD.to(device)


# ---------------------------------------------------------------------------------------- data


def _rendered_part(begin, render, indices, path):
    pixels = np.load(path, mmap_mode="r+")
    part = [render(index) for index in indices[begin : begin + PART]]
    pixels[begin : begin + PART] = [image for image, _ in part]
    return [said for _, said in part]


def rendered(path, render, indices):
    """Memory-mapped uint8 [n, 112, 112, 3] and what else is said of each scene, [n, ...]: `render(index)` ->
    (pixels, numbers); drawn once a path, by all cores."""
    pixels, words = path.with_suffix(".npy"), path.with_suffix(".said.npy")
    if not words.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing = path.with_suffix(f".{os.getpid()}.npy")
        np.lib.format.open_memmap(drawing, "w+", np.uint8, (len(indices), world.SIZE, world.SIZE, 3))
        draw = partial(_rendered_part, render=render, indices=indices, path=drawing)
        with ProcessPoolExecutor() as pool:
            said = [one for part in pool.map(draw, range(0, len(indices), PART)) for one in part]
        os.replace(drawing, pixels)
        np.save(words, np.array(said))
    return np.load(pixels, mmap_mode="r"), np.load(words)


def _training_scene(index, cooccurrence, plans):
    """Training scene `index`, levels in turn -> its pixels and the tokens int16 [captions, 32] of one caption
    for each pass of each plan."""
    seed = world.SEEDS["train"]
    scene = world.sample(seed, index, LEVELS[index % 2], cooccurrence=cooccurrence)
    rates = [(k, rate) for plan in plans for k, rate in enumerate(naming_rates(*plan))]
    captions = [world.caption(scene, seed, index, k, background=rate) for k, rate in rates]
    return scene.pixels, networks.tokenizer()(captions).numpy().astype(np.int16)


def naming_rates(naming, passes):
    """Share of captions that name the background, pass by pass: from 0.1 (or less) to `naming`. Asked for
    from the start, it can keep a network at chance."""
    return [round(float(rate), 3) for rate in np.linspace(min(0.1, naming), naming, passes)]


def training_scenes(folder, recipe, start=0, plans=()):
    """Pixels (memory-mapped uint8 [scenes, 112, 112, 3]) and tokens (int64 [passes, scenes, 32]) of a recipe's
    scenes. `plans`: (naming, passes) of other recipes that the same scenes serve, which are
    then drawn once."""
    count, rho, plan = recipe["scenes"], recipe["cooccurrence"], (recipe["naming"], recipe["passes"])
    plans = sorted({plan, *plans})
    named = "-".join(f"named{naming}x{passes}" for naming, passes in plans)
    path = Path(folder, f"train-{start}-{count}-cooccurrence{rho}-{named}.scenes")
    render = partial(_training_scene, cooccurrence=rho, plans=plans)
    pixels, tokens = rendered(path, render, range(start, start + count))
    first = sum(passes for _, passes in plans[: plans.index(plan)])
    return pixels, torch.from_numpy(tokens[:, first : first + plan[1]].swapaxes(0, 1).astype(np.int64))


class Batches:
    """What `train_one_epoch` reads. An epoch is the next 20,000 samples of a permutation of all scenes; every
    pass over them has its own captions. A sample is mirrored or not, a batch shifted by up to 8 pixels
    (around the edge)."""

    def __init__(self, pixels, tokens, batch, seed):
        self.pixels, self.tokens, self.batch, self.seed, self.dataloader = pixels, tokens, batch, seed, self
        self.epoch_size = min(EPOCH, len(pixels))
        self.epochs = len(pixels) // self.epoch_size  # of a pass
        self.num_batches = self.epoch_size // batch
        self.num_samples = self.num_batches * batch

    def set_epoch(self, epoch):
        self.epoch = epoch

    def plan(self, epoch):
        """Of every batch of an epoch: its pass, scenes [B], which of them are mirrored [B] and the shift of
        all (rows, columns)."""
        a_pass, part = divmod(epoch, self.epochs)
        order = np.random.default_rng((self.seed, a_pass)).permutation(len(self.pixels))[
            part * self.epoch_size :
        ]
        rng = np.random.default_rng((self.seed, a_pass, part))
        for k in range(self.num_batches):
            chosen = np.sort(order[k * self.batch : (k + 1) * self.batch])
            yield a_pass % len(self.tokens), chosen, rng.random(len(chosen)) < 0.5, rng.integers(-8, 9, 2)

    def __iter__(self):
        for a_pass, chosen, mirrored, shift in self.plan(self.epoch):
            images = self.pixels[chosen]
            images[mirrored] = images[mirrored, :, ::-1]
            yield prepare(np.roll(images, shift, (1, 2))), self.tokens[a_pass][chosen]


# ---------------------------------------------------------------------------------------- recognition

SPLITS = {  # name -> what `world.sample` is told
    "": {},
    ", rho 0": {"cooccurrence": 0.0},
    ", gray": {"colours": "gray"},
}


def _scored_scene(index, split, level, options):
    scene = world.sample(world.SEEDS[split], index, level, **options)
    return scene.pixels, [c in scene.masks for c in world.CLASSES]


@torch.no_grad()
def recognition(model, folder, split, length, variants=SPLITS):
    """Zero-shot mAP in % on `length` scenes of a split, for each level and variant; chance is the mean share
    of images that show a class."""
    was_training, scores, tokens = model.training, {}, networks.tokenizer()
    model.eval()
    device = model.logit_scale.device
    words = tokens([f"a photo of the {name}" for name in world.CLASSES]).to(device)
    texts = model.encode_text(words, normalize=True)
    for level in LEVELS:
        for name, options in variants.items():
            path = Path(folder, f"{split}-{length}-{level}{name}.scenes".replace(", ", "-").replace(" ", ""))
            scored = partial(_scored_scene, split=split, level=level, options=options)
            pixels, shown = rendered(path, scored, range(length))
            shown = np.array(shown)
            with torch.autocast(device.type, torch.bfloat16, device.type == "cpu" and networks.BF16):
                features = torch.cat(
                    [
                        model.encode_image(prepare(pixels[i : i + 50], device)).float()
                        for i in range(0, length, 50)
                    ]
                )
            cosines = (F.normalize(features, dim=-1) @ texts.T).cpu().numpy()
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
    torch.manual_seed(seed)
    model = networks.create(network, recipe["pool"]).to(memory_format=torch.channels_last)
    # on a CPU the fused attention's backward pass takes a third of a step; plain products a tenth
    torch.backends.cuda.enable_flash_sdp(False)
    batches = Batches(*training_scenes(folder, recipe, start), recipe["batch"], seed)
    optimizer = create_optimizer_v2(
        model, recipe["optimizer"], lr=recipe["lr"], weight_decay=recipe["weight_decay"]
    )
    epochs = recipe["passes"] * batches.epochs
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
        watched[(epoch + 1) * batches.num_samples] = recognition(model, folder, "validation", 200, {"": {}})
        print(time.strftime("%H:%M"), name, epoch + 1, epochs, np.mean(curve[-6:]), watched, flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        state |= {"curve": list(curve), "watched": watched, "seconds": time.process_time() - begin}
        torch.save(state, partial_file := saved.with_suffix(".partial"))
        os.replace(partial_file, saved)
    return model.eval(), list(curve), watched, time.process_time() - begin


class Asked:
    """A training as the command line names it: its network, seed, recipe, and the checkpoint's path. What
    differs from the network's recipe makes an arm, written to `arms`."""

    def __init__(self, network, seed=0, folder="", scratch=False, **changes):
        changes = {key: value for key, value in changes.items() if value is not None}
        self.network, self.seed, self.folder = network, seed, folder
        self.recipe = RECIPE | changes | (SCRATCH if scratch else {})
        self.start = SCENES if scratch else 0
        words = [network, *(f"{key}-{value}" for key, value in changes.items())]
        words.append("scratch" if scratch else f"seed{seed}")
        self.path = Path(HERE, "arms" if changes else ".", "-".join(words) + ".safetensors")
        flags = "".join(f" --{key} {value}" for key, value in changes.items()) + " --scratch" * scratch
        self.command = f"python train_clip.py {network} --seed {seed}{flags}"


def ship(asked, model, curve, watched, **costs):
    """Write a trained model's checkpoint (fp16) and its card; `costs`: what the training took. Returns the
    card's path."""
    path, recipe = asked.path, asked.recipe
    path.parent.mkdir(exist_ok=True)
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    halves = {name: t.half().contiguous() if t.is_floating_point() else t for name, t in state.items()}
    save_file(halves, str(path))
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in halves.items()})
    card = {
        "network": asked.network,
        "seed": asked.seed,
        "command": asked.command,
        "data": f"{recipe['scenes']:,} scenes of the train split from {asked.start:,} on, levels "
        f"{' and '.join(LEVELS)} in turn, {recipe['passes']} times each with new captions",
        "background_named_in_each_pass": naming_rates(recipe["naming"], recipe["passes"]),
        "recipe": recipe,
        "samples_seen": max(watched),
        **costs,
        "tried": "README.md lists every world and recipe that was tried",
        "parameters": sum(t.numel() for t in state.values()),
        "final_loss": round(sum(curve[-10:]) / 10, 3),
        f"loss_every_{EVERY}_steps": curve,
        "validation_mAP_by_samples": watched,
        "zero_shot_mAP": {s: recognition(model, asked.folder, s, 1000) for s in ("validation", "test")},
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    return path.with_suffix(".json")


def parser():
    """What a training is asked with -> `argparse.ArgumentParser`."""
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
    return parser


if __name__ == "__main__":
    asked = Asked(**vars(parser().parse_args()))
    torch.set_num_threads(1)  # two trainings share a machine better than two threads
    *trained, seconds = train(
        asked.network, asked.path.stem, asked.seed, asked.folder, asked.recipe, asked.start
    )
    machine = f"{platform.machine()} CPU, 1 of {os.cpu_count()} cores, torch {torch.__version__}"
    print(ship(asked, *trained, core_seconds=round(seconds), machine=machine))
