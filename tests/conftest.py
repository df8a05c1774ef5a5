"""Shared fixtures. Real samples lie beside the repository where there are any; tests that need them skip with a reason."""

from pathlib import Path

import pytest

import eclip_lib  # noqa: F401  first of all: it lets torchvision be imported beside a CPU-only torch

# isort: split
import open_clip

SAMPLES = Path(__file__).parents[2] / "shared" / "samples"


@pytest.fixture
def samples():
    if not SAMPLES.exists():
        pytest.skip("the real COCO and VOC samples are not beside this checkout (../shared/samples)")
    return SAMPLES


@pytest.fixture
def shallow(monkeypatch):
    """open_clip's own towers two blocks deep (a ResNet's stages one): how they are read does not depend on depth."""
    whole = open_clip.factory.get_model_config

    def config(name):
        found = whole(name)
        for tower in ("vision_cfg", "text_cfg") if found else ():
            layers = found[tower].get("layers")
            found[tower] |= {"layers": [1] * 4 if isinstance(layers, list) else 2} if layers else {}
        return found

    monkeypatch.setattr(open_clip.factory, "get_model_config", config)
    monkeypatch.setattr(open_clip, "get_model_config", config)
