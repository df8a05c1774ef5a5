"""The paper profile from the installation to the report, on tiny networks; and what the rehearsal once found."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from installation import TEXT

import eclip_lib as eclip
from eclip_lib.networks import clip as networks
from eclip_lib.networks import demo
from eclip_lib.studies import dino_backbone
from eclip_lib.training import new_pair


def test_the_paper_profile_from_the_weights_to_the_report(tmp_path):
    """In a process of its own, whose RN50 and ViT-B-32 are small."""
    script = Path(__file__).with_name("rehearsal.py")
    command = [sys.executable, script, "--tiny", "--quick", tmp_path / "rehearsal"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr[-4000:]


def test_a_backbone_of_another_width_than_clips_has_a_map():
    clip, backbone = eclip.load_clip("scenes-RN"), eclip.load_attention("vit_tiny_patch16_224", None)
    other = clip.with_image_encoder(backbone)
    pair = new_pair(clip, backbone.model.embed_dim, "tokens")
    example = eclip.load_dataset("scenes", limit=1)[0]
    heat = eclip.map_of(
        other, eclip.explainer("eclip", other, projection=pair), example.image, "a photo of the star"
    )
    assert heat.shape == example.image.size[::-1]


@pytest.mark.parametrize(
    ("networks", "pretrained", "chosen"),
    [
        (["scenes-RN", "scenes-ViT-32", "scenes-ViT-16"], None, "scenes-ViT-16"),  # DINO's own grid
        (["scenes-RN", "scenes-ViT-32", "scenes-ViT-16"], "default", "scenes-ViT-32"),  # as shipped
        (["scenes-RN", "scenes-ViT-32"], None, "scenes-ViT-32"),
        (["scenes-RN"], None, "scenes-RN"),
    ],
)
def test_fig_2_takes_the_vit_of_the_backbones_grid(networks, pretrained, chosen):
    clips = {network: eclip.load_clip(network, None) for network in networks}
    masks = {"MoCo v3": SimpleNamespace(grid=(7, 7)), "DINO": SimpleNamespace(grid=(14, 14))}
    assert dino_backbone.partner(SimpleNamespace(pretrained=pretrained), clips, masks) is clips[chosen]


def test_networks_beside_the_weights_are_known_everywhere(tmp_path, monkeypatch):
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT}
    (tmp_path / "my-ViT.json").write_text(json.dumps(config))
    for name, text in (("other.json", "[]"), ("half.json", '{"embed_dim"')):  # what else may lie there
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("ECLIP_WEIGHTS", str(tmp_path))
    demo.register.cache_clear()
    assert eclip.load_clip("my-ViT", None).image_size == 64


def test_no_more_workers_than_cores(monkeypatch):
    asked = []
    monkeypatch.setattr(networks, "DataLoader", lambda *a, num_workers, **k: asked.append(num_workers) or [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    for workers in (8, 1, 0):
        list(networks.loaded(torch.arange(3), 1, workers))
    assert asked == [2, 1, 0]
