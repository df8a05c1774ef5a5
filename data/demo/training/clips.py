"""How the demo's mini CLIPs were trained: open_clip's own trainer on rendered scenes, and a card each.

    python data/demo/training/clips.py scenes-ViT-32 --seed 0

renders the training scenes (once), trains, writes `data/demo/scenes-ViT-32-seed0.safetensors` (fp16) and its
card `.json`. Chosen by loss and recognition alone; mSC and mIoU are never read here.

The arms of notebook 08 (scenes-ViT-32-token, -average, -max, -attention; the first 32,000 scenes) stay in
`runs/demo_training`; `arms.py` measures them and keeps their cards.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from shards import write_scenes
from timm.optim import muon
from views import LEVELS

from eclip_lib import files
from eclip_lib.datasets import load_dataset, scenes
from eclip_lib.evaluation import recognize
from eclip_lib.networks import demo
from eclip_lib.networks.encoders import max_pool
from eclip_lib.networks.loading import load_clip
from eclip_lib.studies import arms

SCENES = scenes.PRETRAINING
RECIPE = {
    "train-num-samples": SCENES,
    "batch-size": 64,
    "opt": "timm/nmuon",
    "lr": 2e-3,
    "wd": 0.1,
    "beta1": 0.9,
    "beta2": 0.98,
    "eps": 1e-6,
    "warmup": 100,
    "grad-clip-norm": 1.0,
    "precision": "fp32",
}
# Table 4: the same network on nothing but the small set that ECLIP's pair is trained on, again and again
SCRATCH = RECIPE | {"train-num-samples": 3000, "epochs": 20}
NETWORKS = {
    "scenes-ViT-32": RECIPE,
    "scenes-ViT-16": RECIPE | {"precision": "amp_bf16"},
    "scenes-RN": RECIPE | {"precision": "amp_bf16", "train-num-samples": 48_000},
}
ARM = {"iteration of Muon": "fp32", "attention": "plain products"}  # not the trainer's settings
NETWORKS |= dict.fromkeys(demo.ARMS, RECIPE | {"train-num-samples": 32_000})
HELD_OUT = [(level, colours) for level in scenes.LEVELS for colours in scenes.COLOURINGS]


# ------------------------------------------------------------------------------------ training


def run_trainer(network, seed, folder, scratch=False):
    """`open_clip_train.main`: one pass over scenes drawn once, so they need no augmentation; `scratch`: many
    passes over the small set. A finished run is kept. Returns (checkpoint, seconds, log)."""
    import open_clip
    from open_clip_train.main import main

    recipe = SCRATCH if scratch else NETWORKS[network]
    name = f"{network}-{'scratch' if scratch else f'seed{seed}'}"
    last = Path(folder, name, "checkpoints", f"epoch_{recipe.get('epochs', 1)}.pt")
    if not last.exists():
        shutil.rmtree(Path(folder, name), ignore_errors=True)  # an interrupted run starts again
        if scratch:
            shards = write_scenes(Path(folder, "small"), 3000, start=SCENES, levels=LEVELS, shard=1000)
        else:
            count = recipe["train-num-samples"] if network in demo.ARMS else SCENES
            shards = write_scenes(Path(folder, "scenes"), count, levels=LEVELS)
        if network.endswith("-max"):  # a pool that the trainer's library does not have
            open_clip.transformer.VisionTransformer._global_pool = staticmethod(max_pool)
        arguments = {
            "model": network.removesuffix("-max"),
            "seed": seed,
            "train-data": f"{shards[0].parent}/{{00000..{len(shards) - 1:05d}}}.tar",
            "workers": 1,
            "dataset-type": "webdataset",
            "epochs": 1,
            "logs": folder,
            "name": name,
            "device": "cpu",
            "log-every-n-steps": 50,
            **recipe,
        }
        words = [str(word) for key, value in arguments.items() for word in (f"--{key}", value)]
        main([*words, "--aug-cfg", "scale=(1.0,1.0)", "ratio=(1.0,1.0)"])
    log = Path(folder, name, "out.log").read_text()
    stamps = [
        time.mktime(time.strptime(stamp, "%Y-%m-%d,%H:%M:%S"))
        for stamp in re.findall(r"^(\S+) \| INFO \| Train Epoch", log, re.M)
    ]
    return last, stamps[-1] - stamps[0], log


def held_out(network, pretrained, split="validation", length=1000):
    """Zero-shot mAP in % for every level and colouring of held-out scenes; chance is the mean share of
    positive images."""
    clip, scores = load_clip(network, pretrained), {}
    for level, colours in HELD_OUT:
        dataset = load_dataset("scenes", split=split, level=level, colours=colours, length=length)
        _, labels, scores[f"{level}, {colours}"] = recognize(dataset, clip)
        scores[f"{level}, chance"] = 100 * labels.mean()
    return {name: round(float(score), 1) for name, score in scores.items()}


def train(network, seed, folder="runs/demo_training", scratch=False):
    """Train one mini CLIP from random weights, ship it (an arm stays in `folder`, and what it recognizes is in
    its rows) and write its card. Returns the card's path."""
    demo.register()
    recipe = SCRATCH if scratch else NETWORKS[network]
    last, seconds, log = run_trainer(network, seed, folder, scratch)
    state = torch.load(last, map_location="cpu", weights_only=True)["state_dict"]
    arm = network in demo.ARMS
    place = Path(folder) if arm else demo.FOLDER
    path = place / f"{network}-{'scratch' if scratch else f'seed{seed}'}.safetensors"
    save_weights(state, path)
    which = "from scene 100,000 on" if scratch else "the first"
    about = {
        "network": network,
        "seed": seed,
        "command": f"python data/demo/training/clips.py {network} --seed {seed}{' --scratch' * scratch}",
        "data": f"{recipe['train-num-samples']} scenes of seed {scenes.SEEDS['train']}, {which}, "
        f"{recipe.get('epochs', 1)} times each; levels {' and '.join(LEVELS)} in turn, typical colours, "
        "one caption each",
        "recipe": recipe,
        "tried": "data/demo/README.md lists every world and recipe that was tried",
        **({"besides": ARM} if arm else {}),
    }
    curve = [round(float(x), 3) for x in re.findall(r"Contrastive_loss: ([\d.]+) ", log)]
    splits = () if arm else ("validation", "test")
    measured = {"zero_shot_mAP": {split: held_out(network, path, split) for split in splits}}
    return write_card(path, about, state, seconds, curve, measured)


# ------------------------------------------------------------------------------------ what is shipped


def save_weights(state, path):
    """A model's weights as they are shipped: in half precision."""
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    save_file({name: tensor.contiguous() for name, tensor in half.items()}, str(path))


def write_card(path, about, state, seconds, curve, measured=None):
    """The JSON card beside a checkpoint: what it is, how it was made and what came out. Returns its path."""
    card = about | {
        "wall_seconds": round(seconds),
        "machine": f"{platform.machine()} CPU, 1 of {os.cpu_count()} cores, torch {torch.__version__}",
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "final_loss": round(sum(curve[-5:]) / 5, 3),
        "loss_every_50_steps": curve,
        **(measured or {}),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    files.write(path.with_suffix(".json"), files.as_json(card))
    return path.with_suffix(".json")


OVERVIEW = """# The demo's mini models

Trained from random weights by `make demo-models`; one JSON card beside each checkpoint. Written by
`python data/demo/training/clips.py overview`.

## CLIPs

Zero-shot mAP (%) over the 16 classes on 1,000 test scenes a column; *swapped* scenes give every class \
the colours of another one.

| model | parameters | scenes | wall time | final loss | plain | swapped | cluttered | swapped | chance |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{clips}

## Arms: other pools at pre-training

scenes-ViT-32 with the class token, the average, the maximum or an attention pool of its tokens as the image feature, from the first step \
on and all else equal: the recipe above, Muon's iteration in float32 in place of bfloat16, on the first 32,000 scenes (the class token too, so \
that pools alone differ). Notebook 08 is about them. Their weights are not shipped; their cards and what was measured are in [arms](arms/rows.csv), by `python \
data/demo/training/arms.py`. Zero-shot mAP is on notebook 01's test scenes. The recipe was chosen on the class token, and all was frozen before a \
map was read.

| arm | final loss | wall time | plain | cluttered |
| --- | --- | --- | --- | --- |
{arms}

## Self-supervised models, and a backbone trained on from one

Neither captions nor masks are read by the first two. What their attention finds is measured in notebook 02.

| model | parameters | steps | batch | wall time | first and final loss |
| --- | --- | --- | --- | --- | --- |
{others}

{tried}"""


def overview():
    """Write `data/demo/README.md`: one line a model from its card, then what was tried. Returns its text."""
    cards = {path.stem: json.loads(path.read_text()) for path in sorted(demo.FOLDER.glob("*.json"))}
    lines = {True: [], False: []}
    for name, card in cards.items():
        own = "zero_shot_mAP" in card
        lines[own].append(f"| {' | '.join(map(str, (_clip_cells if own else _other_cells)(name, card)))} |")
    text = OVERVIEW.format(
        clips="\n".join(lines[True]),
        arms="\n".join(_arm_lines()),
        others="\n".join(lines[False]),
        tried=(demo.FOLDER / "tried.md").read_text(),
    )
    files.write(demo.FOLDER / "README.md", text)
    return text


def _arm_lines():
    rows = arms.arms().set_index(["pool", "training", "dataset"])["mAP"].sort_index()
    for pool in demo.POOLS:
        for path in sorted(arms.ROWS.parent.glob(f"{arms.NETWORK[pool]}-*.json")):
            card = json.loads(path.read_text())
            score = rows[pool, f"seed{card['seed']}"]
            cells = [path.stem, f"{card['final_loss']:.2f}", f"{card['wall_seconds'] / 60:.0f} min"]
            yield f"| {' | '.join([*cells, *score.map('{:.1f}'.format)])} |"


def _clip_cells(name, card):
    score, recipe = card["zero_shot_mAP"]["test"], card["recipe"]
    return [
        name,
        f"{card['parameters']:,}",
        f"{recipe['train-num-samples'] * recipe.get('epochs', 1):,}",
        f"{card['wall_seconds'] / 60:.0f} min",
        f"{card['final_loss']:.2f}",
        *(score[f"{level}, {colours}"] for level in scenes.LEVELS for colours in ("typical", "swapped")),
        f"{score['plain, chance']} / {score['cluttered, chance']}",
    ]


def _other_cells(name, card):
    return [
        name,
        f"{card['parameters']:,}",
        card["recipe"]["steps"],
        card["recipe"]["batch"],
        f"{card['wall_seconds'] / 60:.0f} min",
        f"{card['loss_every_50_steps'][0]:.2f}, {card['final_loss']:.2f}",
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=[*NETWORKS, "overview"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", action="store_true", help="on the small caption set alone (Table 4)")
    options = parser.parse_args()
    # several trainings share a machine better than several threads share such small matrices
    torch.set_num_threads(1)
    if (
        options.network in demo.ARMS
    ):  # as `ARM` says: most CPUs only emulate bfloat16, and flash is slower there
        muon.zeropower_via_newtonschulz = partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)
        torch.backends.cuda.enable_flash_sdp(False)
    if options.network == "overview":
        print(overview())
    else:
        print(train(options.network, options.seed, scratch=options.scratch))
