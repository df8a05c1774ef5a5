"""A wheel without a clone around it: all that the library reads is inside, and what is not says where it is to be had."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import eclip_lib as eclip

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the installed wheel in `site`, a photograph and a checkpoint of random weights."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT / "eclip_lib", place / "source" / "eclip_lib", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", place, place / "source"], check=True, capture_output=True
    )
    (wheel,) = place.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", place / "site", wheel], check=True, capture_output=True
    )
    shutil.rmtree(place / "source")
    Image.new("RGB", (64, 48), "red").save(place / "photo.jpg")
    torch.save(eclip.load_clip("ViT-S-32-alt", None).model.state_dict(), place / "weights.pt")
    return place


def run(place, *arguments):
    code = (
        "import eclip_lib, sys\nassert 'site' in eclip_lib.__file__\nfrom eclip_lib.cli import main\nmain()"
    )
    environment = {**os.environ, "PYTHONPATH": str(place / "site"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)


def test_a_photograph_is_explained_with_a_local_checkpoint(place):
    done = run(
        place,
        "explain",
        "photo.jpg",
        "a dog",
        "--network",
        "ViT-S-32-alt",
        "--pretrained",
        "weights.pt",
        "--out",
        "a.png",
    )
    assert done.returncode == 0, done.stderr
    assert (place / "a.png").exists()


def test_profiles_and_the_registry_are_inside(place):
    done = run(place, "data", "status")
    assert done.returncode == 0 and "ViT-B-16.pt" in done.stdout, done.stderr


def test_the_demo_says_where_its_models_are(place):
    done = run(place, "explain", "photo.jpg", "a circle")
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith(
        "eclip: scenes-ViT-32 comes with a clone"
    )
