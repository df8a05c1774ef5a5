"""Shared fixtures. Real samples lie beside the repository where there are any; tests that need them skip with a reason."""

from pathlib import Path

import pytest

import eclip_lib  # noqa: F401  first of all: it lets torchvision be imported beside a CPU-only torch

SAMPLES = Path(__file__).parents[2] / "shared" / "samples"


@pytest.fixture
def samples():
    if not SAMPLES.exists():
        pytest.skip("the real COCO and VOC samples are not beside this checkout (../shared/samples)")
    return SAMPLES
