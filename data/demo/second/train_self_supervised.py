"""How the demo's self-supervised models are trained: DINO's and MoCo v3's objectives on unlabelled,
object-centric scenes.

    python train_self_supervised.py scenes-DINO --seed 0

Losses and heads are lightly's. Two views of a scene are two crops of it in other colours; nothing is
composed, and neither captions nor masks are read. Chosen by loss and by linear-probe accuracy alone: nothing
here reads attention. A run saves itself every few minutes and goes on from there.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import eclip_lib  # noqa: F401 (torchvision then imports beside a CPU-only torch)

# isort: split
import networks
import numpy as np
import torch
import world
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead, MoCoProjectionHead
from lightly.models.utils import update_momentum
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_clip import rendered

warnings.filterwarnings(
    "ignore", "`torch.nn.utils.weight_norm` is deprecated", FutureWarning
)  # lightly's DINO head

HERE = Path(__file__).parent
SCENES, PROBED = (
    60_000,
    4000,
)  # unlabelled scenes to train on; later ones for the probe, half of them to fit it
SIDE = 80  # pixels of a view: 10x10 tokens
EVERY, SAVE = 50, 250  # steps between two entries of the loss curve, between two savings
RECIPE = {
    "batch": 64,
    "optimizer": "nmuon",
    "lr": 2e-3,
    "weight_decay": 0.05,
    "warmup": 100,
    "momentum": 0.99,
    "clip": 3.0,
    "tokens_dropped": 0.5,
    "crop": [0.4, 1.0],
}
OBJECTIVES = {
    "scenes-DINO": RECIPE
    | {"steps": 2000, "prototypes": 256, "teacher_temperature": 0.025, "student_temperature": 0.1},
    "scenes-MoCo": RECIPE | {"steps": 2000, "temperature": 0.2},
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_default_device(DEVICE)
MEAN, STD = (torch.tensor(s).view(3, 1, 1) for s in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def create(**options):
    """timm's ViT, as wide, deep and finely cut as scenes-ViT-16 and with the same stem; random weights. It
    reads crops of other sizes too."""
    shape = {
        "img_size": world.SIZE,
        "patch_size": 8,
        "embed_dim": 128,
        "depth": 4,
        "num_heads": 4,
        "num_classes": 0,
    }
    model = VisionTransformer(**shape, dynamic_img_size=True, **options)
    model.patch_embed.proj = networks.Stem(128, 8)
    return model


# ---------------------------------------------------------------------------------------- data


def _render(index):
    scene = world.sample(world.SEEDS["unlabelled"], index, "centric", cooccurrence=0.0)
    return scene.pixels, world.CLASSES.index(scene.objects[0].name)


def centric_scenes(folder):
    """Pixels (memory-mapped uint8 [64000, 112, 112, 3]) and classes (int64 [64000], which only the probe
    reads) of object-centric scenes; rendered once."""
    path = Path(folder, f"centric-{SCENES + PROBED}.scenes")
    pixels, classes = rendered(path, _render, range(SCENES + PROBED))
    return pixels, np.array(classes)


def _uniform(n, low, high):
    return torch.empty(n, 1, 1, 1).uniform_(low, high)


def _crop(images, low, high):
    """Random resized crop of `low` to `high` of the area, mirrored or not: [B, 3, S, S] -> [B, 3, 80, 80]."""
    n = len(images)
    area, ratio = (
        _uniform(n, low, high).flatten(),
        _uniform(n, math.log(3 / 4), math.log(4 / 3)).flatten().exp(),
    )
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    frame = torch.zeros(n, 2, 3)
    frame[:, 0, 0], frame[:, 1, 1] = width * (torch.randint(0, 2, (n,)) * 2 - 1), height
    frame[:, 0, 2], frame[:, 1, 2] = (
        (torch.rand(n) * 2 - 1) * (1 - width),
        (torch.rand(n) * 2 - 1) * (1 - height),
    )
    grid = F.affine_grid(frame, (n, 3, SIDE, SIDE), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="reflection")


def _recolour(images):
    """Channels in any order, inverted or not, and other saturation, brightness and contrast, so that two
    views share no colour; then ImageNet's normalisation, as DINO and MoCo v3 read it."""
    n = len(images)
    order = torch.rand(n, 3).argsort(1)
    images = images[torch.arange(n)[:, None], order]
    images = torch.where(_uniform(n, 0, 1) < 0.5, images, 1 - images)
    gray = images.mean(1, keepdim=True)
    images = gray + (images - gray) * _uniform(n, 0.4, 1.3) * (_uniform(n, 0, 1) > 0.1)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * _uniform(n, 0.6, 1.3)) * _uniform(n, 0.7, 1.3)
    return (images.clamp(0, 1) - MEAN) / STD


def _tensor(pixels):
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in [0, 1]."""
    return torch.from_numpy(np.array(pixels)).to(DEVICE).permute(0, 3, 1, 2).float().div_(255)


# ---------------------------------------------------------------------------------------- objectives


def dino(width, recipe):
    """-> (new head, predictor, loss of (teacher outputs, student outputs)), each output list one tensor a
    view."""
    size, t = recipe["prototypes"], recipe["teacher_temperature"]
    cross_entropy = DINOLoss(
        size, warmup_teacher_temp=t, teacher_temp=t, warmup_teacher_temp_epochs=1,
        student_temp=recipe["student_temperature"], center_momentum=1.0,
    )  # fmt: skip

    def loss(teacher, student):  # Sinkhorn-Knopp in place of the running mean as the centre, as in DINOv2
        shares = sinkhorn(torch.cat(teacher) / t).clamp_min(1e-30)
        return cross_entropy(list((t * shares.log()).chunk(len(teacher))), student)

    def new_head():
        head = DINOProjectionHead(width, 512, 64, size, batch_norm=True)
        head.last_layer.requires_grad_(
            False
        )  # learned prototypes turned away from every feature in an earlier world
        return head

    return new_head, nn.Identity(), loss


def sinkhorn(logits, iterations=3):
    """Shares [B, K] with rows that sum to 1 and columns that sum to B / K."""
    shares = (logits - logits.max()).exp()
    for _ in range(iterations):
        shares = shares / shares.sum(0, keepdim=True).clamp_min(1e-30)
        shares = shares / shares.sum(1, keepdim=True).clamp_min(1e-30)
    return shares


def moco(width, recipe):
    """The same for MoCo v3: InfoNCE between one view's prediction and the momentum encoder's feature of the
    other."""

    def one_way(query, key):
        logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).T / recipe["temperature"]
        return 2 * recipe["temperature"] * F.cross_entropy(logits, torch.arange(len(query)))

    def loss(teacher, student):
        return one_way(student[0], teacher[1]) + one_way(student[1], teacher[0])

    return (
        lambda: MoCoProjectionHead(width, 512, 128, 3, True),
        MoCoProjectionHead(128, 512, 128, 2, True),
        loss,
    )


@torch.no_grad()
def probe(model, pixels, classes):
    """Accuracy in % of a linear classifier of the class token's output; fitted on half of the scenes."""
    was_training, mean, std = model.training, MEAN, STD
    model.eval()
    batches = [(_tensor(pixels[i : i + 100]) - mean) / std for i in range(0, len(pixels), 100)]
    features = torch.cat([model.forward_features(batch)[:, 0] for batch in batches])
    features = F.layer_norm(features, features.shape[1:]).cpu().numpy()
    model.train(was_training)
    half = len(features) // 2
    linear = LogisticRegression(C=0.1, max_iter=500).fit(features[:half], classes[:half])
    return round(100 * float(linear.score(features[half:], classes[half:])), 1)


# ---------------------------------------------------------------------------------------- training


def train(network, seed, folder):
    """Train one model from random weights -> (locked ViT, loss curve, {step: probe accuracy}, seconds). DINO
    ships its teacher, MoCo v3 its base encoder, as their authors do."""
    recipe = OBJECTIVES[network]
    pixels, classes = centric_scenes(folder)
    torch.manual_seed(seed)
    new_head, predictor, loss_of = (dino if "DINO" in network else moco)(128, recipe)
    # half of the student's tokens are dropped, as in masked siamese networks: it cannot rest on a few
    student = nn.Sequential(create(patch_drop_rate=recipe["tokens_dropped"]), new_head())
    teacher = nn.Sequential(create(), new_head())
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    shipped = teacher[0] if "DINO" in network else student[0]
    learned = nn.ModuleList([student, predictor])
    optimizer = create_optimizer_v2(
        learned, recipe["optimizer"], lr=recipe["lr"], weight_decay=recipe["weight_decay"]
    )
    parts = {"teacher": teacher, "learned": learned, "optimizer": optimizer}
    curve, probed, begin, saved, first = (
        [],
        {},
        time.process_time(),
        Path(folder, f"{network}-seed{seed}.pt"),
        0,
    )
    if saved.exists():
        kept = torch.load(saved, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        curve, probed, first, begin = kept["curve"], kept["probed"], kept["step"], begin - kept["seconds"]
    recent, on_cpu = [], DEVICE == "cpu"
    for step in range(first, recipe["steps"]):
        torch.manual_seed(seed * 10**6 + step)  # views and dropped tokens: a resumed run sees the same ones
        wave = (1 + math.cos(math.pi * step / recipe["steps"])) / 2
        for group in optimizer.param_groups:
            group["lr"] = recipe["lr"] * min(1, (step + 1) / recipe["warmup"]) * (1e-3 + wave)
        chosen = np.sort(np.random.default_rng((seed, step)).choice(SCENES, recipe["batch"], replace=False))
        images = _tensor(pixels[chosen])
        views = torch.cat([_recolour(_crop(images, *recipe["crop"])) for _ in range(2)])
        with torch.autocast("cpu", torch.bfloat16, on_cpu and networks.BF16):
            with torch.no_grad():
                target = list(teacher(views).float().chunk(2))
            # the backward pass of the fused kernel is slower on a CPU
            with sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext():
                given = list(predictor(student(views)).float().chunk(2))
            loss = loss_of(target, given)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned.parameters(), recipe["clip"])
        optimizer.step()
        update_momentum(student, teacher, 1 - (1 - recipe["momentum"]) * wave)
        recent.append(loss.item())
        if not math.isfinite(recent[-1]):
            raise RuntimeError(f"{network}: the loss is {recent[-1]} at step {step}")
        if (step + 1) % EVERY == 0:
            curve.append(round(sum(recent) / len(recent), 3))
            recent = []
        if (step + 1) % SAVE == 0 or step + 1 == recipe["steps"]:
            probed[step + 1] = probe(shipped, pixels[SCENES:], classes[SCENES:])
            print(time.strftime("%H:%M"), network, step + 1, curve[-1], probed, flush=True)
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {
                "curve": curve,
                "probed": probed,
                "step": step + 1,
                "seconds": time.process_time() - begin,
            }
            torch.save(state, partial := saved.with_suffix(".partial"))
            os.replace(partial, saved)
    return shipped.eval().requires_grad_(False), curve, probed, time.process_time() - begin


def ship(network, seed, folder):
    """Train, write the checkpoint (fp16) and its card. Returns the card's path."""
    model, curve, probed, seconds = train(network, seed, folder)
    path, recipe = HERE / f"{network}-seed{seed}.safetensors", OBJECTIVES[network]
    state = {
        name: t.half().contiguous().cpu() if t.is_floating_point() else t.cpu()
        for name, t in model.state_dict().items()
    }
    save_file(state, str(path))
    pixels, classes = centric_scenes(folder)
    torch.manual_seed(seed)
    card = {
        "network": network,
        "seed": seed,
        "command": f"python train_self_supervised.py {network} --seed {seed} --steps {recipe['steps']}",
        "data": f"the first {SCENES:,} scenes of the unlabelled split; neither captions nor masks",
        "recipe": recipe,
        "views_seen": 2 * recipe["steps"] * recipe["batch"],
        "core_seconds": round(seconds),
        "machine": f"{torch.cuda.get_device_name() if DEVICE == 'cuda' else platform.machine() + ' CPU, 1 core'}, "
        f"torch {torch.__version__}",
        "tried": "README.md lists every recipe that was tried",
        "parameters": sum(t.numel() for t in state.values()),
        "final_loss": round(sum(curve[-5:]) / 5, 3),
        f"loss_every_{EVERY}_steps": curve,
        "linear_probe_accuracy": {
            "by_step": probed,
            "random_weights": probe(create(), pixels[SCENES:], classes[SCENES:]),
            "chance": round(100 / len(world.CLASSES), 1),
        },
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    return path.with_suffix(".json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=OBJECTIVES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", default="runs/demo_training", help="scratch: rendered scenes, unfinished runs"
    )
    parser.add_argument("--steps", type=int, help="in place of the recipe's")
    options = parser.parse_args()
    if options.steps:
        OBJECTIVES[options.network]["steps"] = options.steps
    torch.set_num_threads(1)
    print(ship(options.network, options.seed, options.folder))
