"""The trainings of `train_clip.py` and `train_self_supervised.py` on a GPU: every step is one CUDA graph.

    python train_gpu.py --folder runs/demo_training "scenes-ViT-32 --seed 1" "scenes-RN --seed 0 --passes 8" ...

The networks are too small to keep a GPU busy: what costs is to start a thousand kernels a step, and a graph
starts them all. The scenes, captions, order, losses and optimizer of open_clip's loop on a CPU, whose losses
it gives to three digits; float32, on tensor cores as TF32, and Muon's iteration in bfloat16 where the CPU beside it knows that. It is not taken up
again where it was broken off.
"""

import argparse
import functools
import math
import shlex
import time
from types import SimpleNamespace

import networks
import numpy as np
import torch
import train_clip
import train_self_supervised as self_supervised
from open_clip.loss import ClipLoss
from open_clip_train.scheduler import cosine_lr
from timm.optim import create_optimizer_v2, muon
from torch import nn

PARTS = 4  # of a training, after each of which recognition is measured


def grouped_muon(params, grads, buffers, *, lr, weight_decay, momentum, nesterov, ns_steps, ns_coefficients,
                 eps, safety_factor, adjust_lr_fn, scale_eps, **_):  # fmt: skip
    """timm's Muon with the matrices of one shape iterated together: a third of the kernels."""
    coefficients = muon.resolve_ns_coefficients(ns_coefficients, muon._COEFFICIENTS)
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_lerp_(buffers, grads, 1 - momentum)
    updates = torch._foreach_lerp(grads, buffers, momentum) if nesterov else buffers
    shapes = {}
    for k, update in enumerate(updates):
        shapes.setdefault((len(update), update[0].numel()), []).append(k)
    for shape, members in shapes.items():
        together = torch.stack([updates[k].reshape(shape) for k in members])
        together = muon.zeropower_via_newtonschulz(
            together, ns_steps, coefficients, eps=eps, safety_factor=safety_factor, scale_eps=scale_eps
        )
        together = together.to(params[0].dtype) * (-lr * muon.get_lr_scale(torch.Size(shape), adjust_lr_fn))
        ours = [params[k] for k in members]
        torch._foreach_add_(ours, [u.reshape(p.shape) for u, p in zip(together, ours, strict=True)])


@functools.cache
def order(scenes, batch, seed, passes):
    """`Batches.plan` of a whole training: passes int64 [steps], scenes int64 [steps, B], mirrored bool
    [steps, B], shift int64 [steps, 2]."""
    batches = train_clip.Batches(range(scenes), range(passes), batch, seed)
    steps = [step for epoch in range(passes * batches.epochs) for step in batches.plan(epoch)]
    return [torch.from_numpy(np.array(part)) for part in zip(*steps, strict=True)]


class Training:
    """A training whose step reads everything from the device: scenes, order, learning rate, where it is.
    Subclasses say how it learns, is watched and shipped."""

    def __init__(self, asked, learned, rates, device):
        self.asked, self.device, self.count = asked, device, len(rates)
        self.optimizer = create_optimizer_v2(
            learned,
            asked.recipe["optimizer"],
            lr=asked.recipe["lr"],
            weight_decay=asked.recipe["weight_decay"],
            capturable=device == "cuda",
        )
        self.rates, self.lr = torch.tensor(rates, device=device), torch.zeros((), device=device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.losses = torch.zeros(self.count, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        self.watched, self.done, self.seconds = {}, 0, 0.0

    def step(self):
        self.lr.copy_(self.rates[self.at][0])
        loss = self.learn()
        with torch.no_grad():
            self.losses[self.at] = loss
            self.at += 1

    def capture(self, warm_up=3):
        """The first steps as they are, then the graph of one."""
        self.stream, self.graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            for _ in range(warm_up):
                self.optimizer.zero_grad(set_to_none=True)
                self.step()
        self.stream.synchronize()
        self.done = warm_up
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.step()

    def replay(self, steps):
        """So many steps more; returns when they have ended."""
        begin = time.monotonic()
        with torch.cuda.stream(self.stream):
            for _ in range(steps):
                self.graph.replay()
        self.stream.synchronize()
        self.done += steps
        self.seconds += time.monotonic() - begin

    def curve(self, every):
        return [round(loss, 3) for loss in self.losses[::every].tolist()]

    def costs(self):
        machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, TF32"
        return {"seconds": round(self.seconds), "machine": machine}


class ClipTraining(Training):
    def __init__(self, asked, pixels, tokens, device="cuda"):
        """pixels, tokens: of `train_clip.training_scenes`, on the device, shared by trainings."""
        self.pixels, recipe = pixels, asked.recipe
        torch.manual_seed(asked.seed)
        self.model = networks.create(asked.network, recipe["pool"]).to(device)
        steps = order(recipe["scenes"], recipe["batch"], asked.seed, recipe["passes"])
        a_pass, self.chosen, *self.moved = (part.to(device) for part in steps)
        self.said, self.tokens = a_pass[:, None] * len(pixels) + self.chosen, tokens.flatten(0, 1)
        self.mean, self.std = train_clip.MEAN.to(device), train_clip.STD.to(device)
        self.loss_of, count = ClipLoss(), len(self.chosen)
        groups = SimpleNamespace(param_groups=[{}])
        schedule = cosine_lr(groups, recipe["lr"], recipe["warmup"], count)
        super().__init__(asked, self.model, [schedule(k) for k in range(count)], device)

    def batch(self):
        """Images float32 [B, 3, 112, 112] and tokens int64 [B, 32] of the step."""
        mirrored, shift = (part[self.at][0] for part in self.moved)
        images = self.pixels[self.chosen[self.at][0]]
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(2), images)
        for axis, by in enumerate(shift, 1):
            size = images.shape[axis]
            images = images.index_select(axis, (torch.arange(size, device=self.device) - by) % size)
        images = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return images.contiguous(), self.tokens[self.said[self.at][0]]

    def learn(self):
        """One step of open_clip's `train_one_epoch`."""
        with torch.device(self.device):  # open_clip makes indices where it is told
            loss = self.loss_of(**self.model(*self.batch()))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.asked.recipe["clip"])
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        return loss.detach()

    def watch(self):
        """Recognition so far, on validation scenes."""
        found = train_clip.recognition(self.model, self.asked.folder, "validation", 200, {"": {}})
        self.watched[self.done * self.asked.recipe["batch"]] = found
        return found

    def shipped(self):
        """Write the checkpoint and its card; returns the card's path."""
        curve = self.curve(train_clip.EVERY)
        return train_clip.ship(self.asked, self.model, curve, self.watched, **self.costs())


class SelfSupervisedTraining(Training):
    def __init__(self, asked, pixels, device="cuda"):
        """pixels: of `self_supervised.centric_scenes`, on the device."""
        self.pixels, recipe = pixels, asked.recipe
        torch.manual_seed(asked.seed)
        self.learner = self_supervised.Learner(asked.network, recipe, device)
        self.chosen = torch.from_numpy(self_supervised.order(recipe, asked.seed)).to(device)
        steps = [self_supervised.schedule(k, recipe) for k in range(recipe["steps"])]
        super().__init__(asked, self.learner.learned, [rate for rate, _ in steps], device)
        self.momenta = torch.tensor([momentum for _, momentum in steps], device=device)

    def learn(self):
        images = self_supervised.tensor(self.pixels[self.chosen[self.at][0]])
        return self.learner.step(images, self.optimizer, self.momenta[self.at][0])

    def watch(self):
        """Accuracy of a linear probe so far."""
        pixels, classes = self_supervised.centric_scenes(self.asked.folder)
        first = self_supervised.SCENES
        self.watched[self.done] = self_supervised.probe(self.learner.shipped, pixels[first:], classes[first:])
        return self.watched[self.done]

    def shipped(self):
        curve = self.curve(self_supervised.EVERY)
        return self_supervised.ship(self.asked, self.learner.shipped, curve, self.watched, **self.costs())


def asked(line, folder):
    """What `train_clip.py` or `train_self_supervised.py` is asked for in `line`."""
    words = [*shlex.split(line), "--folder", folder]
    of = train_clip if words[0] in networks.VISION else self_supervised
    return of.Asked(**vars(of.parser().parse_args(words)))


def scenes(asked):
    """The scenes of a training on the device, as its class takes them."""
    if asked.network not in networks.VISION:
        return [torch.from_numpy(np.array(self_supervised.centric_scenes(asked.folder)[0])).cuda()]
    pixels, tokens = train_clip.training_scenes(asked.folder, asked.recipe, asked.start)
    return torch.from_numpy(np.array(pixels)).cuda(), tokens.cuda()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("asked", nargs="+", help="what the other two are asked with, each in quotes")
    parser.add_argument("--folder", default="runs/demo_training", help="scratch: rendered scenes")
    given = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    muon._single_tensor_muon = grouped_muon
    for line in given.asked:
        one = asked(line, given.folder)
        training = (ClipTraining if one.network in networks.VISION else SelfSupervisedTraining)(
            one, *scenes(one)
        )
        training.capture()
        for part in range(1, 1 + PARTS):
            training.replay(training.count * part // PARTS - training.done)
            print(time.strftime("%H:%M:%S"), one.path.stem, training.done, training.watch(), flush=True)
        print(training.shipped())
