"""`eclip explain` as a user types it."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import eclip_lib as eclip
from eclip_lib import cli

TEXTS = ["a photo of the star", "a photo of the drop"]


@pytest.fixture
def photos(tmp_path):
    for k, size in enumerate([(90, 60), (50, 80)]):
        eclip.load_dataset("scenes")[k].image.resize(size).save(tmp_path / f"photo{k}.jpg")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(cli.app, ["explain", *map(str, arguments)])


def test_one_photo(photos):
    out, scores, maps = photos / "heat.png", photos / "s.json", photos / "m.npz"
    result = run(photos / "photo0.jpg", *TEXTS, "--out", out, "--json", scores, "--npz", maps)
    assert result.exit_code == 0 and str(out) in result.output and "mini model" in result.output
    assert Image.open(out).width > 300
    clip = eclip.load_clip("scenes-ViT-32")
    assert list(json.loads(scores.read_text())[str(photos / "photo0.jpg")]) == TEXTS
    saved = np.load(maps)[str(photos / "photo0.jpg")]
    prepared = clip.preprocess(Image.open(photos / "photo0.jpg"))[None]
    own = eclip.itsm(eclip.explainer("rclip", clip)(prepared, clip.encode_text(TEXTS)), (60, 90))[0]
    np.testing.assert_allclose(saved, own, atol=2e-3)


def test_a_folder_and_a_glob_with_every_method(photos):
    for method in ("clip", "rclip", "grad_cam", "bi_model"):
        assert run(photos / "*.jpg", TEXTS[0], "--method", method, "--out", photos / method).exit_code == 0
        assert sorted(p.name for p in (photos / method).iterdir()) == ["photo0.png", "photo1.png"]
    clip = eclip.load_clip("scenes-ViT-32")
    clip.projection.save(photos / "pair.safetensors")
    out = photos / "eclip"
    assert run(photos, TEXTS[0], "--method", "eclip", "--projection", photos / "pair.safetensors", "--out", out).exit_code == 0
    assert len(list(out.iterdir())) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.jpg", "a star"], "no picture at nowhere.jpg"),
        (["{photo}", " "], "none that is empty"),
        (["{photo}", "a star", "--method", "eclip", "--network", "ViT-B-32"], "needs --projection"),
        (["{photo}", "a star", "--method", "lime"], "no method 'lime'"),
        (["{photo}", "a star", "--network", "ViT-B-61"], "no network"),
        (["{broken}", "a star"], "cannot be read as an image"),
    ],
)
def test_mistakes_are_one_sentence(photos, arguments, message):
    (photos / "broken.jpg").write_bytes(b"no picture")
    arguments = [a.format(photo=photos / "photo0.jpg", broken=photos / "broken.jpg") for a in arguments]
    result = run(*arguments, "--out", photos / "x.png")
    assert isinstance(result.exception, (ValueError, FileNotFoundError)) and message in str(result.exception)


def test_a_demo_network_has_a_pair_of_its_own_and_the_help_names_every_method(photos):
    from eclip_lib.explainers import NEEDS, REGISTRY

    assert run(photos / "photo0.jpg", TEXTS[0], "--method", "eclip", "--out", photos / "own.png").exit_code == 0
    assert set(cli.METHODS.replace(" or ", ", ").split(", ")) == set(REGISTRY) == set(NEEDS)
    readme = (cli.Path(cli.__file__).parents[1] / "README.md").read_text()
    assert all(f"| `{method}` |" in readme for method in REGISTRY)
