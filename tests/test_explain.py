"""`eclip explain` as a user types it."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import eclip_lib as eclip
from eclip_lib import cli
from eclip_lib.commands import explain as command

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
    with pytest.warns(UserWarning, match="mini model"):
        result = run(photos / "photo0.jpg", *TEXTS, "--out", out, "--json", scores, "--npz", maps)
    assert result.exit_code == 0 and str(out) in result.output
    assert Image.open(out).width > 300
    clip = eclip.load_clip("scenes-ViT-32")
    assert list(json.loads(scores.read_text())[str(photos / "photo0.jpg")]) == TEXTS
    saved = np.load(maps)[str(photos / "photo0.jpg")]
    prepared = clip.preprocess(Image.open(photos / "photo0.jpg"))[None]
    own = eclip.itsm(eclip.explainer("rclip", clip)(prepared, clip.encode_text(TEXTS)), (60, 90))[0]
    np.testing.assert_allclose(saved, own, atol=2e-3)


def test_a_folder_and_a_glob_with_every_method(photos):
    for method in ("clip", "rclip", "grad_cam", "bi_model"):
        out = photos / "maps"  # the last method's overlays may be written over
        assert run(photos / "*.jpg", TEXTS[0], "--method", method, "--out", out).exit_code == 0
        assert sorted(p.name for p in out.iterdir()) == ["photo0.png", "photo1.png"]
    clip = eclip.load_clip("scenes-ViT-32")
    clip.projection.save(photos / "pair.safetensors")
    out = photos / "eclip"
    options = ["--method", "eclip", "--projection", photos / "pair.safetensors"]
    assert run(photos, TEXTS[0], *options, "--out", out).exit_code == 0
    assert len(list(out.iterdir())) == 2


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_folder_of_all_sorts_loses_nothing(photos):
    """Pictures of every kind, two of one name, one broken, one of macOS's shadows, and a note."""
    picture = Image.open(photos / "photo0.jpg")
    for kind in ("gif", "tif", "avif", "png", "webp", "bmp"):
        picture.save(photos / f"{kind}.{kind}")
    picture.save(photos / "other.jfif", "JPEG"), picture.save(photos / "photo1.png")
    (photos / "broken.jpg").write_bytes((photos / "photo0.jpg").read_bytes()[:700])
    (photos / "._photo0.jpg").write_bytes(b"shadow"), (photos / "notes.doc").write_bytes(b"")
    before, out = content(photos), photos / "out"
    with pytest.warns(UserWarning, match="left out, no pictures by .*: 1 files .notes.doc"):
        result = run(photos, TEXTS[0], "--out", out, "--json", out / "s.json", "--npz", out / "m.npz")
    assert result.exit_code and "broken.jpg cannot be read as an image" in str(result.exception)
    assert len(list(out.glob("*.png"))) == 10 == len(json.loads((out / "s.json").read_text()))
    assert len(np.load(out / "m.npz")) == 11  # and the texts
    with pytest.raises(ValueError, match="would be written over"):
        command.run(photos / "*.png", TEXTS, photos, network="scenes-ViT-32", method="clip")
    assert content(photos) == before


def test_pictures_called_as_arrays_are(photos, monkeypatch):
    monkeypatch.chdir(photos)
    for name, key in {"file": "file", "texts": "./texts"}.items():
        (photos / name).hardlink_to("photo0.jpg")
        assert run(name, *TEXTS, "--npz", "m.npz").exit_code == 0
        assert np.load("m.npz")[key].std(axis=(1, 2)).min() > 0 and list(np.load("m.npz")["texts"]) == TEXTS


def test_a_demo_network_has_a_pair_of_its_own_and_the_help_names_every_method(photos):
    from eclip_lib.explainers import REGISTRY

    assert (
        run(photos / "photo0.jpg", TEXTS[0], "--method", "eclip", "--out", photos / "own.png").exit_code == 0
    )
    assert set(cli.METHODS.replace(" or ", ", ").split(", ")) == set(REGISTRY)
    using = (cli.Path(cli.__file__).parents[1] / "docs" / "using.md").read_text()
    assert all(f"| `{method}` |" in using for method in REGISTRY)
