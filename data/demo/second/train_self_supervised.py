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
from functools import cache
from pathlib import Path

import eclip_lib  # noqa: F401 (torchvision then imports beside a CPU-only torch)

# isort: split
import networks
import numpy as np
import torch
import world
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead, MoCoProjectionHead
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
    return rendered(path, _render, range(SCENES + PROBED))


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
    return normalised(images.clamp(0, 1))


@cache
def statistics(device):
    return MEAN.to(device), STD.to(device)


def normalised(images):
    mean, std = statistics(images.device)
    return (images - mean) / std


def tensor(pixels):
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div(255)


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
        return (
            2 * recipe["temperature"] * F.cross_entropy(logits, torch.arange(len(query), device=query.device))
        )

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
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    batches = [torch.from_numpy(np.array(pixels[i : i + 100])).to(device) for i in range(0, len(pixels), 100)]
    features = torch.cat([model.forward_features(normalised(tensor(batch)))[:, 0] for batch in batches])
    features = F.layer_norm(features, features.shape[1:]).cpu().numpy()
    model.train(was_training)
    half = len(features) // 2
    linear = LogisticRegression(C=0.1, max_iter=500).fit(features[:half], classes[:half])
    return round(100 * float(linear.score(features[half:], classes[half:])), 1)


# ---------------------------------------------------------------------------------------- training


class Learner:
    """Student, teacher and their objective. `shipped`: DINO's teacher, MoCo v3's base encoder, as their
    authors do."""

    def __init__(self, network, recipe, device="cpu"):
        self.recipe, self.device = recipe, device
        with torch.device(device):
            new_head, predictor, self.loss_of = (dino if "DINO" in network else moco)(128, recipe)
        # half of the student's tokens are dropped, as in masked siamese networks: it cannot rest on a few
        self.student = nn.Sequential(create(patch_drop_rate=recipe["tokens_dropped"]), new_head()).to(device)
        self.teacher = nn.Sequential(create(), new_head()).to(device)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.learned = nn.ModuleList([self.student, predictor.to(device)])
        self.shipped = self.teacher[0] if "DINO" in network else self.student[0]

    def loss(self, images):
        """images: float32 [B, 3, 112, 112] in [0, 1] -> the objective of two views of each."""
        with torch.device(self.device):
            views = torch.cat([_recolour(_crop(images, *self.recipe["crop"])) for _ in range(2)])
        with torch.autocast("cpu", torch.bfloat16, self.device == "cpu" and networks.BF16):
            with torch.no_grad():
                target = list(self.teacher(views).float().chunk(2))
            given = list(self.learned[1](self.student(views)).float().chunk(2))
        return self.loss_of(target, given)

    def step(self, images, optimizer, momentum):
        """One step; `momentum`: of the teacher. Returns the loss."""
        loss = self.loss(images)
        loss.backward()
        nn.utils.clip_grad_norm_(self.learned.parameters(), self.recipe["clip"])
        optimizer.step()
        with torch.no_grad():
            ours, theirs = list(self.student.parameters()), list(self.teacher.parameters())
            torch._foreach_mul_(theirs, momentum)
            torch._foreach_add_(theirs, torch._foreach_mul(ours, 1 - momentum))
        return loss.detach()


def schedule(step, recipe):
    """Learning rate and the teacher's momentum of a step: half a cosine."""
    wave = (1 + math.cos(math.pi * step / recipe["steps"])) / 2
    rate = recipe["lr"] * min(1, (step + 1) / recipe["warmup"]) * (1e-3 + wave)
    return rate, 1 - (1 - recipe["momentum"]) * wave


def order(recipe, seed):
    """Scenes of every step, int64 [steps, B]: permutations of all, one after the other."""
    a_pass = SCENES // recipe["batch"]
    passes = math.ceil(recipe["steps"] / a_pass)
    chosen = [np.random.default_rng((seed, k)).permutation(SCENES) for k in range(passes)]
    chosen = [part[: a_pass * recipe["batch"]].reshape(a_pass, -1) for part in chosen]
    return np.concatenate(chosen)[: recipe["steps"]]


def train(network, seed, folder, recipe):
    """Train one model from random weights -> (locked ViT, loss curve, {step: probe accuracy}, seconds)."""
    pixels, classes = centric_scenes(folder)
    torch.manual_seed(seed)
    learner, chosen = Learner(network, recipe), order(recipe, seed)
    optimizer = create_optimizer_v2(
        learner.learned, recipe["optimizer"], lr=recipe["lr"], weight_decay=recipe["weight_decay"]
    )
    parts = {"teacher": learner.teacher, "learned": learner.learned, "optimizer": optimizer}
    curve, probed, begin, saved, first = (
        [],
        {},
        time.process_time(),
        Path(folder, f"{network}-{recipe['steps']}x{recipe['batch']}-seed{seed}.pt"),
        0,
    )
    if saved.exists():
        kept = torch.load(saved, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        curve, probed, first, begin = kept["curve"], kept["probed"], kept["step"], begin - kept["seconds"]
    recent = []
    for step in range(first, recipe["steps"]):
        torch.manual_seed(seed * 10**6 + step)  # views and dropped tokens: a resumed run sees the same ones
        rate, momentum = schedule(step, recipe)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        images = tensor(torch.from_numpy(pixels[np.sort(chosen[step])]))
        with sdpa_kernel(SDPBackend.MATH):  # the backward pass of the fused kernel is slower on a CPU
            recent.append(learner.step(images, optimizer, momentum).item())
        if not math.isfinite(recent[-1]):
            raise RuntimeError(f"{network}: the loss is {recent[-1]} at step {step}")
        if (step + 1) % EVERY == 0:
            curve.append(round(sum(recent) / len(recent), 3))
            recent = []
        if (step + 1) % SAVE == 0 or step + 1 == recipe["steps"]:
            probed[step + 1] = probe(learner.shipped, pixels[SCENES:], classes[SCENES:])
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
    return learner.shipped, curve, probed, time.process_time() - begin


class Asked:
    """A training as the command line names it: its network, seed, recipe, and the checkpoint's path."""

    def __init__(self, network, seed=0, folder="", **changes):
        changes = {key: value for key, value in changes.items() if value is not None}
        self.network, self.seed, self.folder = network, seed, folder
        self.recipe = OBJECTIVES[network] | changes
        words = [network, *(f"{key}-{value}" for key, value in changes.items()), f"seed{seed}"]
        self.path = HERE / ("-".join(words) + ".safetensors")
        flags = "".join(f" --{key} {value}" for key, value in changes.items())
        self.command = f"python train_self_supervised.py {network} --seed {seed}{flags}"


def ship(asked, model, curve, probed, **costs):
    """Write a trained model's checkpoint (fp16) and its card; `costs`: what the training took. Returns the
    card's path."""
    path, recipe = asked.path, asked.recipe
    state = {
        name: t.half().contiguous().cpu() if t.is_floating_point() else t.cpu()
        for name, t in model.state_dict().items()
    }
    save_file(state, str(path))
    pixels, classes = centric_scenes(asked.folder)
    torch.manual_seed(asked.seed)
    card = {
        "network": asked.network,
        "seed": asked.seed,
        "command": asked.command,
        "data": f"the first {SCENES:,} scenes of the unlabelled split; neither captions nor masks",
        "recipe": recipe,
        "views_seen": 2 * recipe["steps"] * recipe["batch"],
        **costs,
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


def parser():
    """What a training is asked with -> `argparse.ArgumentParser`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=OBJECTIVES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", default="runs/demo_training", help="scratch: rendered scenes, unfinished runs"
    )
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--tokens_dropped", type=float)
    return parser


if __name__ == "__main__":
    asked = Asked(**vars(parser().parse_args()))
    torch.set_num_threads(1)
    *trained, seconds = train(asked.network, asked.seed, asked.folder, asked.recipe)
    machine = f"{platform.machine()} CPU, 1 of {os.cpu_count()} cores, torch {torch.__version__}"
    print(ship(asked, *trained, core_seconds=round(seconds), machine=machine))
