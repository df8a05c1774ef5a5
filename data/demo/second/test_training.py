"""The step that a GPU repeats is the step of open_clip's own loop."""

import numpy as np
import pytest
import torch
import train_clip
import train_gpu
from timm.optim import muon

STEPS = 4


@pytest.mark.parametrize("grouped", [False, True])
def test_losses_are_those_of_open_clips_loop(grouped, tmp_path, monkeypatch):
    scenes = STEPS * train_clip.RECIPE["batch"]
    changes = {"scenes": scenes, "passes": 1, "warmup": 2, "precision": "fp32"}
    monkeypatch.setattr(train_clip, "RECIPE", train_clip.RECIPE | changes)
    monkeypatch.setattr(train_clip, "EVERY", 1)
    monkeypatch.setattr(train_clip, "recognition", lambda *_: {})
    if grouped:
        monkeypatch.setattr(muon, "_single_tensor_muon", train_gpu.grouped_muon)
    asked = train_clip.Asked("scenes-ViT-32", 3, tmp_path)
    _, curve, _, _ = train_clip.train("scenes-ViT-32", "one", 3, tmp_path, asked.recipe)
    pixels, tokens = train_clip.training_scenes(tmp_path, asked.recipe)
    training = train_gpu.ClipTraining(asked, torch.from_numpy(np.array(pixels)), tokens, "cpu")
    for _ in range(STEPS):
        training.optimizer.zero_grad()
        training.step()
    assert training.losses.tolist() == pytest.approx(curve, abs=2e-3)
