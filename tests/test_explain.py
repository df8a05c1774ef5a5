"""`eclip explain` as a user types it."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import eclip_lib as eclip
from eclip_lib import cli
from eclip_lib.commands import explain as command

NETWORK = {"network": "scenes-ViT-32"}
TEXTS = ["a photo of the star", "a photo of the drop"]


@pytest.fixture
def photos(tmp_path):
    for k, size in enumerate([(90, 60), (50, 80)]):
        eclip.load_dataset("scenes")[k].image.resize(size).save(tmp_path / f"photo{k}.jpg")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(cli.app, ["explain", *map(str, arguments)])


def test_one_photo_by_several_methods(photos):
    out, scores, maps = photos / "heat.png", photos / "s.json", photos / "m.npz"
    methods, name = ["clip", "rclip", "grad_cam"], str(photos / "photo0.jpg")
    wanted = ["--method", ",".join(methods), "--out", out, "--json", scores, "--npz", maps]
    with pytest.warns(UserWarning, match="mini model"):
        result = run(name, *TEXTS, *wanted)
    assert result.exit_code == 0 and result.output == f"{out}\n"
    assert Image.open(out).width > 900  # the picture and three maps, and a row a text
    clip, saved = eclip.load_clip("scenes-ViT-32"), np.load(maps)
    prepared, text = clip.preprocess(Image.open(name))[None], clip.encode_text(TEXTS)
    for method in methods:
        own = eclip.explainer(method, clip)(prepared, text)
        np.testing.assert_allclose(saved[f"{name}/{method}/grid"], own[0], atol=1e-6)
        np.testing.assert_allclose(saved[f"{name}/{method}"], eclip.itsm(own, (60, 90))[0], atol=2e-3)
    features = clip.encode_image(prepared)
    cosines = eclip.score(features.class_token, text, clip.projection)[0].tolist()
    assert json.loads(scores.read_text())[name] == pytest.approx(
        dict(zip(TEXTS, cosines, strict=True)), abs=1e-5
    )
    raw = eclip.similarity(features, text, clip.projection)[0].numpy()  # Eq. 4, no more than rounding lost
    assert saved[f"{name}/clip/grid"].dtype == np.float32
    assert abs(saved[f"{name}/clip/grid"] - raw).max() < 1e-6


def test_a_sheet_names_methods_texts_and_the_number(photos, monkeypatch):
    from eclip_lib import plots

    drawn, sheet = [], plots.sheet
    monkeypatch.setattr(plots, "sheet", lambda *a, **k: drawn.append(sheet(*a, **k)) or drawn[-1])
    for method in ("clip", "clip,rclip"):
        command.run(photos / "photo0.jpg", TEXTS, photos / "s.png", **NETWORK, method=method, alpha=0.3)
    one, several = ([(ax.get_title(), ax.get_ylabel()) for ax in figure.axes[:-1]] for figure in drawn)
    said = [f"{text}\nCLIP's cosine 0." for text in TEXTS]
    assert one[0] == ("picture", "CLIP") and all(
        a[0].startswith(b) for a, b in zip(one[1:], said, strict=True)
    )
    assert [title for title, _ in several[:3]] == ["picture", "CLIP", "RCLIP"]
    assert all(several[3 * k][1].startswith(said[k]) for k in (0, 1))
    assert drawn[0].axes[1].images[1].get_alpha() == 0.3


def test_bare_overlays_have_the_pictures_size_and_pixels(photos):
    import matplotlib.pyplot as plt

    look = {"bare": True, "colormap": "cividis", "alpha": 0.4}
    made = command.run(photos / "photo0.jpg", TEXTS, photos / "o.png", method="clip,rclip", **look, **NETWORK)
    assert [path.name for path in made] == ["o-clip-1.png", "o-clip-2.png", "o-rclip-1.png", "o-rclip-2.png"]
    picture, clip = Image.open(photos / "photo0.jpg"), eclip.load_clip("scenes-ViT-32")
    heat = eclip.map_of(clip, eclip.explainer("clip", clip), picture, TEXTS[1])
    grey = np.asarray(picture.convert("L"), float)[..., None]
    slow = 0.6 * grey + 0.4 * 255 * plt.get_cmap("cividis")(heat.numpy())[..., :3]
    assert abs(np.asarray(Image.open(made[1]), float) - slow).max() < 2.5  # 8 bits, rounded twice
    (one,) = command.run(photos / "photo1.jpg", TEXTS[:1], photos / "one.jpg", **look, **NETWORK)
    assert one.name == "one.jpg" and Image.open(one).size == (50, 80)
    with pytest.raises(ValueError, match="s.pdf: what is written there is a .png file"):
        command.run(photos / "photo1.jpg", TEXTS, photos / "s.pdf", **look, **NETWORK)


def test_a_folder_is_taken_up_where_it_stopped(photos):
    def again(*options, texts=TEXTS):
        result = run(photos / "photo*.jpg", *texts, "--out", out, "--json", photos / "s.json", *options)
        assert result.exit_code == 0, result.exception
        scores, now = json.loads((photos / "s.json").read_text()), times()
        return {name for name, time in now.items() if time != before.get(name)}, scores

    times = lambda: {path.name: path.stat().st_mtime_ns for path in out.iterdir()}  # noqa: E731
    out, before, every = photos / "maps", {}, {"photo0.png", "photo1.png"}
    made, scores = again()
    assert made == every
    before = times()
    with pytest.warns(UserWarning, match="2 of 2 pictures have their overlays already"):
        assert again() == (set(), scores)
    (out / "photo0.png").write_bytes((out / "photo0.png").read_bytes()[:-99])  # cut off
    before = times()
    assert again() == ({"photo0.png"}, scores)
    eclip.load_dataset("scenes")[5].image.save(photos / "photo1.jpg")  # another picture of that name
    before = times()
    made, other = again()
    assert made == {"photo1.png"} and other != scores
    for changed in (["--alpha", "0.5"], ["--method", "clip"], ["--pretrained", "seed1"], ["--size", "256"]):
        before = times()
        assert again(*changed)[0] == every, changed
    before = times()
    assert again(*changed, texts=TEXTS[:1])[0] == every


@pytest.mark.parametrize(
    "options, message",
    [
        ({"alpha": 1.5}, "--alpha is 0 .* not 1.5"),
        ({"colormap": "inferno2"}, "no colormap 'inferno2'"),
        ({"batch_size": 0}, "--batch-size is at least 1"),
        ({"precision": "fp8"}, "precision is 'fp32' or 'bf16'"),
        ({"method": "clip,gradcam", "network": "nobody's"}, "no method 'gradcam'"),
        (
            {"method": "rclip,bi_model", "network": "scenes-RN"},
            "bi_model reads the attention of OpenAI's ViTs",
        ),
    ],
)
def test_settings_that_do_not_fit(photos, options, message):
    with pytest.raises(ValueError, match=message):
        command.run(photos / "photo0.jpg", TEXTS, photos / "o.png", **NETWORK | options)


def test_a_folder_and_a_glob_with_every_method(photos):
    for method in ("clip", "bi_model"):
        out = photos / "maps"  # the last method's overlays may be written over
        assert run(photos / "*.jpg", TEXTS[0], "--method", method, "--out", out).exit_code == 0
        assert sorted(p.name for p in out.iterdir()) == ["photo0.png", "photo1.png"]
    clip = eclip.load_clip("scenes-ViT-32")
    clip.projection.save(photos / "pair.safetensors")
    out = photos / "eclip"
    options = ["--method", "eclip", "--projection", photos / "pair.safetensors"]
    assert run(photos, TEXTS[0], *options, "--out", out).exit_code == 0
    assert len(list(out.iterdir())) == 2


def test_overlays_beside_their_pictures_are_none_and_names_may_be_any(photos):
    (
        (photos / "photo0.jpg").rename(photos / "a\udce9.jpg"),
        (photos / "photo1.jpg").rename(photos / "a\udcea.jpg"),
    )
    Image.open(photos / "a\udce9.jpg").save(photos / f"{'é' * 125}.jpg", "JPEG")
    options = {"npz": photos / "m.npz", "method": "clip,rclip", "bare": True} | NETWORK
    made = command.run(photos, TEXTS[:1], photos, **options)
    with pytest.warns(UserWarning, match="left out, overlays of an earlier run: 6 files"):
        assert command.run(photos, TEXTS[:1], photos, **options) == made
    assert len(list(photos.glob("*.png"))) == 6
    assert len(np.load(photos / "m.npz")) == 13


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_folder_of_all_sorts_loses_nothing(photos):
    """Pictures of every kind, two of one name, one broken, one of macOS's shadows, and a note."""
    picture = Image.open(photos / "photo0.jpg")
    for kind in ("gif", "tif", "avif", "png", "webp", "bmp"):
        picture.save(photos / f"{kind}.{kind}")
    picture.save(photos / "other.jfif", "JPEG"), picture.save(photos / "photo1.png")
    (photos / "broken.jpg").write_bytes((photos / "photo0.jpg").read_bytes()[:700])
    (photos / "empty.png").write_bytes(b"")
    (photos / "._photo0.jpg").write_bytes(b"shadow"), (photos / "notes.doc").write_bytes(b"")
    before, out = content(photos), photos / "out"
    with pytest.warns(UserWarning, match="left out, no pictures by .*: 1 files .notes.doc"):
        result = run(photos, TEXTS[0], "--out", out, "--json", out / "s.json", "--npz", out / "m.npz")
    assert result.exit_code and "broken.jpg cannot be read as an image" in str(result.exception)
    assert str(result.exception).endswith("; nor can empty.png, of 12 pictures")
    assert len(list(out.glob("*.png"))) == 10 == len(json.loads((out / "s.json").read_text()))
    assert len(np.load(out / "m.npz")) == 21  # maps and raw scores, and the texts
    with pytest.raises(ValueError, match="would be written over"):
        command.run(photos / "*.png", TEXTS, photos, **NETWORK)
    assert content(photos) == before


def test_an_overlay_that_cannot_be_drawn_costs_no_other(photos):
    Image.new("RGB", (16384, 2)).save(photos / "photo00.png")  # a pixel more than a WebP holds
    more = ["--json", photos / "s.json", "--npz", photos / "m.npz"]
    result = run(photos, TEXTS[0], "--bare", "--out", photos / "o.webp", *more)
    assert "o-photo00.webp cannot be drawn" in str(result.exception)
    assert sorted(path.name for path in photos.glob("*.webp")) == ["o-photo0.webp", "o-photo1.webp"]
    assert len(json.loads((photos / "s.json").read_text())) == 3 and len(np.load(photos / "m.npz")) == 7


def test_pictures_called_as_arrays_are(photos, monkeypatch):
    monkeypatch.chdir(photos)
    for name in ("file", "texts"):
        (photos / name).hardlink_to("photo0.jpg")
        assert run(name, *TEXTS, "--npz", "m.npz").exit_code == 0
        assert np.load("m.npz")["./texts" if name == "texts" else name].std(axis=(1, 2)).min() > 0
        assert list(np.load("m.npz")["texts"]) == TEXTS


def test_a_demo_network_has_a_pair_of_its_own_and_the_help_names_every_method(photos):
    from eclip_lib.explainers import REGISTRY

    assert (
        run(photos / "photo0.jpg", TEXTS[0], "--method", "eclip", "--out", photos / "own.png").exit_code == 0
    )
    assert set(cli.METHODS.replace(" or ", ", ").split(", ")) == set(REGISTRY)
    using = (cli.Path(cli.__file__).parents[1] / "docs" / "using.md").read_text()
    assert all(f"| `{method}` |" in using for method in REGISTRY)
