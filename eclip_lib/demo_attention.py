"""How the demo's two self-supervised models were trained: DINO's and MoCo v3's objectives on unlabelled scenes.

    python -m eclip_lib.demo_attention scenes-DINO

Losses and heads are lightly's (`pip install -e '.[demo-models]'`). Neither captions nor masks are read. In a rendered scene the
easiest thing two crops share is the background, and attention goes there; so each view shows the salient pixels of one scene before
another one (`demo_views.py`).
"""

import argparse
import copy
import hashlib
import json
import math
import os
import platform
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from torch import nn
from tqdm.auto import tqdm

from . import demo
from .attention import SelfAttention, load_attention
from .clip import load_clip
from .datasets import load_dataset, scenes
from .demo_views import IMAGES, LEVELS, Views, load_images
from .masks import attention_quality

warnings.filterwarnings("ignore", "`torch.nn.utils.weight_norm` is deprecated", FutureWarning)  # lightly's DINO head uses it

RECIPE = {"batch": 64, "optimizer": "nmuon", "lr": 2e-3, "weight_decay": 0.05, "warmup": 100, "momentum": 0.99,
          "clip": 3.0, "tokens_dropped": 0.5}  # fmt: skip
OBJECTIVES = {
    "scenes-DINO": RECIPE
    | {"steps": 1800, "as_it_is": 0.4, "prototypes": 256, "teacher_temperature": 0.02, "student_temperature": 0.1},
    "scenes-MoCo": RECIPE | {"steps": 2400, "as_it_is": 1.0, "temperature": 0.2},
}


# ---------------------------------------------------------------------------------------------------- objectives


def dino(width, recipe):
    """-> (new head, predictor or None, loss of (teacher outputs, student outputs)), each output list one tensor a view."""
    from lightly.loss import DINOLoss
    from lightly.loss.swav_loss import sinkhorn
    from lightly.models.modules.heads import DINOProjectionHead

    size, t = recipe["prototypes"], recipe["teacher_temperature"]
    # Sinkhorn-Knopp in place of the running mean as the centre, as in DINOv2: plain centring ended in a uniform output
    plain = DINOLoss(
        size, warmup_teacher_temp=t, teacher_temp=t, warmup_teacher_temp_epochs=1, student_temp=recipe["student_temperature"],
        center_momentum=1.0,
    )  # fmt: skip

    def loss(teacher, student):
        shares = sinkhorn(torch.cat(teacher), iterations=3, epsilon=t).clamp_min(1e-30)
        return plain(list((t * shares.log()).chunk(len(teacher))), student)

    def new_head():
        head = DINOProjectionHead(width, 512, 64, size, batch_norm=True)
        head.last_layer.requires_grad_(False)  # learned prototypes turned away from every feature: a uniform output again
        return head

    return new_head, None, loss


def moco(width, recipe):
    """The same for MoCo v3: InfoNCE between one view's prediction and the momentum encoder's feature of the other, both ways."""
    from lightly.models.modules.heads import MoCoProjectionHead

    def one_way(query, key):
        logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).T / recipe["temperature"]
        return 2 * recipe["temperature"] * F.cross_entropy(logits, torch.arange(len(query)))

    def loss(teacher, student):
        return one_way(student[0], teacher[1]) + one_way(student[1], teacher[0])

    return lambda: MoCoProjectionHead(width, 512, 128, 3, True), MoCoProjectionHead(128, 512, 128, 2, True), loss


def watch(model):
    """How well a model in training finds objects: IoU (%) of its attention with them on 100 validation scenes of each level."""
    locked, clip = SelfAttention(copy.deepcopy(model), "in training"), load_clip("scenes-ViT-32")
    found = []
    for level in scenes.LEVELS:
        quality = attention_quality({"A": locked}, clip, load_dataset("scenes", split="validation", level=level, length=100))
        found.append(round(100 * quality["IoU"].mean(), 1))
    return found


def train(network, seed=0, folder="runs/demo_training", steps=None, every=50):
    """Train one model from random weights -> (locked ViT, mean loss of every `every` steps, {step: `watch`}, seconds). DINO ships its teacher, MoCo v3
    its base encoder, as their authors do. Saves itself every `every` steps; an interrupted run goes on from there."""
    from lightly.models.utils import update_momentum

    recipe = OBJECTIVES[network] | ({"steps": steps} if steps else {})
    torch.manual_seed(seed)
    views = Views(load_images(folder), recipe["batch"], recipe["as_it_is"], seed)
    new_head, predictor, loss_of = (dino if "DINO" in network else moco)(demo.ATTENTION["embed_dim"], recipe)
    # half of the student's tokens are dropped, as in masked siamese networks: it cannot rest on a few of them
    student = nn.Sequential(demo.attention_model(patch_drop_rate=recipe["tokens_dropped"]), new_head())
    teacher = nn.Sequential(demo.attention_model(), new_head())
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    shipped = teacher if "DINO" in network else student
    learned = nn.ModuleList([student, predictor or nn.Identity()])
    optimizer = create_optimizer_v2(learned, recipe["optimizer"], lr=recipe["lr"], weight_decay=recipe["weight_decay"])
    curve, watched, recent, begin, saved = [], {}, [], time.time(), Path(folder, f"{network}-seed{seed}.pt")
    parts = {"student": student, "teacher": teacher, "learned": learned, "optimizer": optimizer}
    if saved.exists():
        kept = torch.load(saved, weights_only=False)  # our own file: it holds the generators' states too
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        watched = kept.get("watched", {})
        curve, begin, views.rng.bit_generator.state = kept["curve"], begin - kept["seconds"], kept["views"]
        torch.set_rng_state(kept["torch"])
    for step in tqdm(
        range(len(curve) * every, recipe["steps"]), desc=network, unit="step", initial=len(curve) * every, total=recipe["steps"]
    ):
        wave = (1 + math.cos(math.pi * step / recipe["steps"])) / 2
        for group in optimizer.param_groups:
            group["lr"] = recipe["lr"] * min(1, (step + 1) / recipe["warmup"]) * (1e-3 + wave)
        sources = views.scenes()
        both = torch.cat([views.view(sources, 0.3, 1.0) for _ in range(2)])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                target = list(teacher(both).float().chunk(2))
            given = list(learned[1](student(both)).float().chunk(2))
            loss = loss_of(target, given)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned.parameters(), recipe["clip"])
        optimizer.step()
        update_momentum(student, teacher, 1 - (1 - recipe["momentum"]) * wave)
        recent.append(loss.item())
        if not math.isfinite(recent[-1]):
            raise RuntimeError(f"{network}: the loss is {recent[-1]} at step {step}")
        if len(recent) == every:
            curve.append(round(sum(recent) / every, 3))
            recent = []
            state = {name: part.state_dict() for name, part in parts.items()}
            generators = {"views": views.rng.bit_generator.state, "torch": torch.get_rng_state()}
            if (step + 1) % 200 == 0:
                watched[step + 1] = watch(shipped[0])
            torch.save(
                {**state, **generators, "curve": curve, "watched": watched, "seconds": time.time() - begin},
                partial := f"{saved}.partial",
            )
            os.replace(partial, saved)
    return shipped[0].eval().requires_grad_(False), curve, watched, time.time() - begin


def ship(network, seed=0, folder="runs/demo_training"):
    """Train, write `data/demo/<network>-seed<seed>.safetensors` (fp16) and its card. Returns the card's path."""
    model, curve, watched, seconds = train(network, seed, folder)
    path = demo.FOLDER / f"{network}-seed{seed}.safetensors"
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, str(path))
    recipe = OBJECTIVES[network]
    card = {
        "network": network, "seed": seed, "command": f"python -m eclip_lib.demo_attention {network} --seed {seed}",
        "data": f"{IMAGES} scenes of seed {scenes.SEEDS['train']}, levels {' and '.join(LEVELS)} in turn, neither captions nor masks; "
        "salient pixels of plain scenes before other scenes",
        "recipe": recipe, "views_seen": 2 * recipe["steps"] * recipe["batch"],
        "wall_seconds": round(seconds), "machine": f"{platform.machine()} CPU, 1 of {os.cpu_count()} cores, torch {torch.__version__}",
        "tried": "data/demo/README.md lists every recipe that was tried", "parameters": sum(t.numel() for t in state.values()),
        "final_loss": round(sum(curve[-5:]) / 5, 3), "loss_every_50_steps": curve,
        "attention_IoU_on_validation": {"levels": list(scenes.LEVELS), "by_step": watched}, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    return path.with_suffix(".json")


def ship_unlocked(folder="runs/demo_training", pairs=20_000):
    """DINO trained on as CLIP's image encoder (Fig. 2, unlocked): backbone and new pair on captioned scenes, shipped with a card."""
    from .backbone import unlock
    from .datasets.pairs import WebPairs

    load_images(folder)  # renders the scenes where they are missing
    source = WebPairs(Path(folder, "scenes", "0000?.tar"))
    model, clip = load_attention("scenes-DINO"), load_clip("scenes-ViT-32")
    pair, history = unlock(clip, model, source)
    path = demo.FOLDER / "scenes-DINO-unlocked-seed0.safetensors"
    state = {name: tensor.half().contiguous() for name, tensor in model.model.state_dict().items()}
    save_file(state, str(path))
    pair.save(demo.FOLDER / "scenes-DINO-unlocked-seed0.pair.safetensors")
    curve = [round(float(x), 3) for x in history["loss"].groupby(history.index // 50).mean()]
    card = {
        "network": "scenes-DINO-unlocked", "command": "python -m eclip_lib.demo_attention unlocked",
        "data": f"the first {pairs} scenes of seed {scenes.SEEDS['train']} with their captions, once each; text encoder of scenes-ViT-32, locked",
        "recipe": {"optimizer": "nmuon", "lr": 1e-3, "weight_decay": 0.05, "warmup": 100, "batch": 64, "steps": len(history)},
        "wall_seconds": round(history["seconds"].iloc[-1]), "parameters": sum(t.numel() for t in state.values()),
        "machine": f"{platform.machine()} CPU, 1 of {os.cpu_count()} cores, torch {torch.__version__}",
        "final_loss": round(sum(curve[-5:]) / 5, 3), "loss_every_50_steps": curve,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    return path.with_suffix(".json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=[*OBJECTIVES, "unlocked"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(ship_unlocked() if options.network == "unlocked" else ship(options.network, options.seed))
