"""How the demo's self-supervised models were trained: DINO's and MoCo v3's objectives on unlabelled scenes.

    python data/demo/training/self_supervised.py scenes-DINO

Losses and heads are lightly's (`pip install -e '.[demo-models]'`). Neither captions nor masks are read. In a
rendered scene the easiest thing two crops share is the background, and attention goes there; so each view
shows the salient pixels of one scene before another one (`views.py`). "unlocked" trains the finished DINO on
with captions.
"""

import argparse
import copy
import math
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from clips import save_weights, write_card
from timm.optim import create_optimizer_v2
from torch import nn
from tqdm.auto import tqdm
from views import IMAGES, LEVELS, Views, load_images

from eclip_lib import files
from eclip_lib.datasets import load_dataset, scenes
from eclip_lib.datasets.image_text import WebPairs
from eclip_lib.networks import demo
from eclip_lib.networks.attention import SelfAttention, load_attention
from eclip_lib.networks.loading import load_clip
from eclip_lib.studies.attention_quality import attention_quality
from eclip_lib.studies.dino_backbone import unlock

# lightly's DINO head uses it
warnings.filterwarnings("ignore", "`torch.nn.utils.weight_norm` is deprecated", FutureWarning)

RECIPE = {
    "batch": 64,
    "optimizer": "nmuon",
    "lr": 2e-3,
    "weight_decay": 0.05,
    "warmup": 100,
    "momentum": 0.99,
    "clip": 3.0,
    "tokens_dropped": 0.5,
}
DINO = {"prototypes": 256, "teacher_temperature": 0.02, "student_temperature": 0.1}
OBJECTIVES = {
    "scenes-DINO": RECIPE | {"steps": 1800, "as_it_is": 0.4} | DINO,
    "scenes-MoCo": RECIPE | {"steps": 2400, "as_it_is": 1.0, "temperature": 0.2},
}


# ------------------------------------------------------------------------------------ objectives


def dino(width, recipe):
    """-> (new head, predictor or None, loss of (teacher outputs, student outputs)), each output list a tensor
    a view."""
    from lightly.loss import DINOLoss
    from lightly.loss.swav_loss import sinkhorn
    from lightly.models.modules.heads import DINOProjectionHead

    size, temperature = recipe["prototypes"], recipe["teacher_temperature"]
    # Sinkhorn-Knopp in place of the running mean as the centre, as in DINOv2: plain centring ended uniform
    plain = DINOLoss(
        size,
        warmup_teacher_temp=temperature,
        teacher_temp=temperature,
        warmup_teacher_temp_epochs=1,
        student_temp=recipe["student_temperature"],
        center_momentum=1.0,
    )

    def loss(teacher, student):
        shares = sinkhorn(torch.cat(teacher), iterations=3, epsilon=temperature).clamp_min(1e-30)
        return plain(list((temperature * shares.log()).chunk(len(teacher))), student)

    def new_head():
        head = DINOProjectionHead(width, 512, 64, size, batch_norm=True)
        head.last_layer.requires_grad_(
            False
        )  # learned prototypes turned away from every feature: uniform again
        return head

    return new_head, None, loss


def moco(width, recipe):
    """The same for MoCo v3: InfoNCE between one view's prediction and the momentum encoder's feature of the
    other, both ways."""
    from lightly.models.modules.heads import MoCoProjectionHead

    temperature = recipe["temperature"]

    def one_way(query, key):
        logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).T / temperature
        return 2 * temperature * F.cross_entropy(logits, torch.arange(len(query)))

    def loss(teacher, student):
        return one_way(student[0], teacher[1]) + one_way(student[1], teacher[0])

    def new_head():
        return MoCoProjectionHead(width, 512, 128, 3, True)

    return new_head, MoCoProjectionHead(128, 512, 128, 2, True), loss


# ------------------------------------------------------------------------------------ training


def watch(model):
    """How well a model in training finds objects: IoU (%) of its attention with them on 100 validation scenes
    of each level."""
    locked, clip = SelfAttention(copy.deepcopy(model), "in training"), load_clip("scenes-ViT-32")
    found = []
    for level in scenes.LEVELS:
        dataset = load_dataset("scenes", split="validation", level=level, length=100)
        quality = attention_quality({"A": locked}, clip, dataset)
        found.append(round(100 * quality["IoU"].mean(), 1))
    return found


def train(network, seed=0, folder="runs/demo_training", steps=None, every=50):
    """Train one model from random weights -> (locked ViT, mean loss of every `every` steps, {step: `watch`},
    seconds). DINO ships its teacher, MoCo v3 its base encoder, as their authors do. Saves itself every
    `every` steps; an interrupted run goes on from there."""
    from lightly.models.utils import update_momentum

    recipe = OBJECTIVES[network] | ({"steps": steps} if steps else {})
    torch.manual_seed(seed)
    views = Views(load_images(folder), recipe["batch"], recipe["as_it_is"], seed)
    objective = dino if "DINO" in network else moco
    new_head, predictor, loss_of = objective(demo.ATTENTION["embed_dim"], recipe)
    # half of the student's tokens are dropped, as in masked siamese networks: it cannot rest on a few of them
    student = nn.Sequential(demo.attention_model(patch_drop_rate=recipe["tokens_dropped"]), new_head())
    teacher = nn.Sequential(demo.attention_model(), new_head())
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    shipped = (teacher if "DINO" in network else student)[0]
    learned = nn.ModuleList([student, predictor or nn.Identity()])
    optimizer = create_optimizer_v2(
        learned, recipe["optimizer"], lr=recipe["lr"], weight_decay=recipe["weight_decay"]
    )
    parts = {"student": student, "teacher": teacher, "learned": learned, "optimizer": optimizer}
    saved = Path(folder, f"{network}-seed{seed}.pt")
    curve, watched, recent, begin = [], {}, [], time.time()
    if saved.exists():
        kept = torch.load(saved, weights_only=False)  # our own file: it holds the generators' states too
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        curve, watched, begin = kept["curve"], kept.get("watched", {}), begin - kept["seconds"]
        views.rng.bit_generator.state = kept["views"]
        torch.set_rng_state(kept["torch"])
    left = range(len(curve) * every, recipe["steps"])
    for step in tqdm(left, desc=network, unit="step", initial=left.start, total=recipe["steps"]):
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
        if len(recent) < every:
            continue
        curve.append(round(sum(recent) / every, 3))
        recent = []
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"views": views.rng.bit_generator.state, "torch": torch.get_rng_state()}
        if (step + 1) % 200 == 0:
            watched[step + 1] = watch(shipped)
        state |= {"curve": curve, "watched": watched, "seconds": time.time() - begin}
        with files.replacing(saved) as partial:
            torch.save(state, partial)
    return shipped.eval().requires_grad_(False), curve, watched, time.time() - begin


# ------------------------------------------------------------------------------------ what is shipped


def ship(network, seed=0, folder="runs/demo_training"):
    """Train, write `data/demo/<network>-seed<seed>.safetensors` (fp16) and its card. Returns the card's
    path."""
    model, curve, watched, seconds = train(network, seed, folder)
    path, recipe = demo.FOLDER / f"{network}-seed{seed}.safetensors", OBJECTIVES[network]
    save_weights(model.state_dict(), path)
    about = {
        "network": network,
        "seed": seed,
        "command": f"python data/demo/training/self_supervised.py {network} --seed {seed}",
        "data": f"{IMAGES} scenes of seed {scenes.SEEDS['train']}, levels {' and '.join(LEVELS)} in turn, "
        "neither captions nor masks; salient pixels of plain scenes before other scenes",
        "recipe": recipe,
        "views_seen": 2 * recipe["steps"] * recipe["batch"],
        "tried": "data/demo/README.md lists every recipe that was tried",
    }
    found = {"attention_IoU_on_validation": {"levels": list(scenes.LEVELS), "by_step": watched}}
    return write_card(path, about, model.state_dict(), seconds, curve, found)


def ship_unlocked(folder="runs/demo_training", pairs=20_000):
    """DINO trained on as CLIP's image encoder (Fig. 2, unlocked): backbone and new pair on captioned scenes,
    shipped with a card."""
    load_images(folder)  # renders the scenes where they are missing
    source = WebPairs(Path(folder, "scenes", "0000?.tar"))
    backbone = load_attention("scenes-DINO")
    pair, history = unlock(load_clip("scenes-ViT-32"), backbone, source)
    path = demo.FOLDER / "scenes-DINO-unlocked-seed0.safetensors"
    state = backbone.model.state_dict()
    save_weights(state, path)
    pair.save(demo.FOLDER / "scenes-DINO-unlocked-seed0.pair.safetensors")
    curve = [round(float(x), 3) for x in history["loss"].groupby(history.index // 50).mean()]
    about = {
        "network": "scenes-DINO-unlocked",
        "command": "python data/demo/training/self_supervised.py unlocked",
        "data": f"the first {pairs} scenes of seed {scenes.SEEDS['train']} with their captions, once each; "
        "text encoder of scenes-ViT-32, locked",
        "recipe": {
            "optimizer": "nmuon",
            "lr": 1e-3,
            "weight_decay": 0.05,
            "warmup": 100,
            "batch": 64,
            "steps": len(history),
        },
    }
    return write_card(path, about, state, history["seconds"].iloc[-1], curve)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=[*OBJECTIVES, "unlocked"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(ship_unlocked() if options.network == "unlocked" else ship(options.network, options.seed))
