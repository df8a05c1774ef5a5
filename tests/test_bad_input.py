"""A table of bad input: each ends in a result or in one clear sentence, never in a traceback, never in a wrong number."""

import io
import json
import re
import shutil
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import eclip_lib as eclip
from eclip_lib import cli, demo
from eclip_lib.datasets.export import write_coco, write_voc

RED = Image.new("RGB", (40, 30), (200, 30, 30))


def png(width, height, body=b""):
    """A PNG that claims a size, with any body."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees for looking at it
    return saved(RED, "JPEG", exif=exif)


gradient = np.tile(np.linspace(0, 65535, 40).astype(np.uint16), (30, 1))
PICTURES = {  # file name: (its bytes, what must be said, or None where a result is due)
    "zero.jpg": (b"", "zero.jpg cannot be read as an image"),
    "truncated.jpg": (saved(RED.resize((400, 300)), "JPEG")[:900], "truncated.jpg cannot be read as an image"),
    "text.jpg": (b"this is no picture", "text.jpg cannot be read as an image"),
    "bomb.png": (png(60000, 60000), "bomb.png cannot be read as an image .*decompression bomb"),
    "no_rows.png": (png(40, 30), "no_rows.png cannot be read as an image"),
    "cmyk.jpg": (saved(RED.convert("CMYK"), "JPEG"), None),
    "sixteen_bit.png": (saved(Image.fromarray(gradient), "PNG"), None),
    "animated.gif": (saved(RED, "GIF", save_all=True, append_images=[RED.rotate(90)]), None),
    "one_pixel.png": (saved(RED.resize((1, 1)), "PNG"), None),
    "long.png": (saved(RED.resize((20000, 100)), "PNG"), None),
    "grey.png": (saved(RED.convert("L"), "PNG"), None),
    "one_bit.png": (saved(RED.convert("1"), "PNG"), None),
    "transparent.png": (saved(RED.convert("RGBA"), "PNG"), None),
    "palette.png": (saved(RED.convert("P"), "PNG", transparency=0), None),
    "rotated.jpg": (rotated(), None),
}


def run(monkeypatch, *arguments):
    """Run the command line -> None where it succeeded, else what it said."""
    monkeypatch.setattr("sys.argv", ["eclip", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    return None if not done.value.code else str(done.value.code)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name, tmp_path, monkeypatch):
    content, message = PICTURES[name]
    (tmp_path / name).write_bytes(content)
    said = run(
        monkeypatch, "explain", tmp_path / name, "a circle", "--out", tmp_path / "out.png", "--npz", tmp_path / "out.npz"
    )
    if message is None:
        assert said is None
        maps = np.load(tmp_path / "out.npz")[str(tmp_path / name)]
        with Image.open(tmp_path / name) as image:
            size = image.size if name == "rotated.jpg" else image.size[::-1]  # a turned photo is explained as it is looked at
        assert maps.shape == (1, *size) and np.isfinite(maps).all()
    else:
        assert said.startswith("eclip: ") and "\n" not in said
        assert re.search(message, said), said


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    from eclip_lib.datasets.base import read_image

    (tmp_path / "a.png").write_bytes(PICTURES["sixteen_bit.png"][0])
    values = np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].astype(int)
    assert abs(values - np.linspace(0, 255, 40)).max() < 1.5


@pytest.fixture()
def place(tmp_path, monkeypatch):
    """A folder with a picture, a small VOC, a small COCO, captions, checkpoints and pairs, to be spoilt."""
    scenes = eclip.load_dataset("scenes", limit=4)
    RED.save(tmp_path / "red.png")
    write_voc(tmp_path / "voc", scenes)
    write_coco(tmp_path / "coco", scenes)
    (tmp_path / "empty").mkdir()
    state = eclip.load_clip("scenes-ViT-32").model.state_dict()
    save_file({k: v * float("nan") if k == "visual.proj" else v for k, v in state.items()}, str(tmp_path / "nan.safetensors"))
    save_file({k: v[:5] if k == "visual.proj" else v for k, v in state.items()}, str(tmp_path / "shape.safetensors"))
    shutil.copy(demo.checkpoint("scenes-ViT-32"), tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:5000])
    pair = eclip.load_clip("scenes-ViT-32").projection
    pair.save(tmp_path / "pair.safetensors")
    (tmp_path / "latin.csv").write_bytes("filepath\ttitle\nred.png\tun caf\xe9\n".encode("latin-1"))
    (tmp_path / "columns.csv").write_text("file\ttext\nred.png\ta circle\n")
    (tmp_path / "none.csv").write_text("filepath\ttitle\n")
    (tmp_path / "gone.csv").write_text("filepath\ttitle\nnowhere.png\ta circle\n")
    return tmp_path


def edit_json(path, change):
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


def coco(place, change):
    edit_json(place / "coco" / "annotations" / "instances_val2017.json", change)


def voc_mask(place, mask):
    path = sorted((place / "voc" / "VOCdevkit" / "VOC2012" / "SegmentationClass").glob("*.png"))[0]
    Image.fromarray(mask).save(path)


SIZE = (224, 224)
EVALUATE = ["evaluate", "clip", "--networks", "scenes-ViT-32"]
VOC, COCO = [*EVALUATE, "--datasets", "voc2012", "--root", "{}/voc"], [*EVALUATE, "--datasets", "coco2017", "--root", "{}/coco"]
EXPLAIN = ["explain", "{}/red.png", "a circle", "--out", "{}/out.png"]
TRAIN = ["train", "", "{}/out.safetensors", "--epochs", "1", "--pooling", "max", "--cache", "{}/cache", "--workers", "0"]


def training(data):
    return [TRAIN[0], data, *TRAIN[2:]]


CASES = {  # name: (how the place is spoilt, the command, what must be said, or None where a result is due)
    "no picture there": (None, ["explain", "{}/none.png", "a circle"], "no picture at"),
    "a folder without pictures": (None, ["explain", "{}/empty", "a circle"], "no picture at"),
    "an empty prompt": (None, ["explain", "{}/red.png", " "], "none that is empty"),
    "a prompt of 10,000 characters": (None, ["explain", "{}/red.png", "circle " * 1500, "--out", "{}/out.png"], None),
    "a prompt of symbols": (None, ["explain", "{}/red.png", "¿☃🙂?", "--out", "{}/out.png"], None),
    "an unknown network": (None, [*EXPLAIN, "--network", "ViT-B-61"], "no network 'ViT-B-61'; near: .*ViT-B-16"),
    "an unknown method": (None, [*EXPLAIN, "--method", "gradcam"], "no method 'gradcam'|'gradcam'"),
    "a method that needs a pair": (None, [*EXPLAIN, "--network", "ViT-S-32", "--pretrained", "{}/nan.safetensors", "--method", "eclip"], "needs --projection"),
    "a pair for a method without": (None, [*EXPLAIN, "--projection", "{}/pair.safetensors"], "no other method takes one"),
    "a pair of another network": (None, [*EXPLAIN, "--method", "eclip", "--network", "scenes-RN", "--projection", "{}/pair.safetensors"], "was made for scenes-ViT-32"),
    "a pair that is a checkpoint": (None, [*EXPLAIN, "--method", "eclip", "--projection", "{}/nan.safetensors"], "is not a projection pair"),
    "another input size": (None, [*EXPLAIN, "--size", "224x448"], None),
    "an input size that does not divide": (None, [*EXPLAIN, "--size", "225"], "an input of 225x225 does not divide into cells of 32x32"),
    "an input size that is none": (None, [*EXPLAIN, "--size", "big"], "--size is a side"),
    "many workers without a folder": (None, [*EVALUATE, "--ray", "2"], "--ray needs --out"),
    "no GPU here": (None, [*EXPLAIN, "--device", "cuda"], "cuda"),
    "an unknown device": (None, [*EXPLAIN, "--device", "gpu"], "device"),
    "weights that are not numbers": (None, [*EXPLAIN, "--pretrained", "{}/nan.safetensors"], "nan.safetensors: weights that are not finite"),
    "weights of another shape": (None, [*EXPLAIN, "--pretrained", "{}/shape.safetensors"], "shape.safetensors does not fit scenes-ViT-32"),
    "weights cut off": (None, [*EXPLAIN, "--pretrained", "{}/cut.safetensors"], "cut.safetensors is not a readable checkpoint"),
    "weights that are no file": (None, [*EXPLAIN, "--pretrained", "{}/none.pt"], "no checkpoint at"),
    "an output that cannot be": (None, ["explain", "{}/red.png", "a circle", "--out", "{}/red.png/out.png"], "red.png"),
    "an unknown dataset": (None, [*EVALUATE, "--datasets", "voc2007"], "no dataset 'voc2007'"),
    "a dataset that is not there": (None, [*EVALUATE, "--datasets", "voc2012", "--root", "{}/empty"], "JPEGImages is missing"),
    "no root": (None, [*EVALUATE, "--datasets", "coco2017"], "coco2017 needs root="),
    "a limit of nothing": (None, [*EVALUATE, "--limit", "0"], "limit"),
    "VOC: a greyscale mask": (lambda p: voc_mask(p, np.full(SIZE, 3, np.uint8)), VOC, None),
    "VOC: a colour mask": (lambda p: voc_mask(p, np.zeros((*SIZE, 3), np.uint8)), VOC, "is a colour image"),
    "VOC: a mask of another size": (lambda p: voc_mask(p, np.zeros((9, 9), np.uint8)), VOC, "the mask is 9x9, its image 224x224"),
    "VOC: a label out of range": (lambda p: voc_mask(p, np.full(SIZE, 21, np.uint8)), VOC, "label 21 is not one of"),
    "VOC: an image listed twice": (
        lambda p: (lambda f: f.write_text(f.read_text() * 2))(p / "voc/VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"), VOC, "val.txt lists .* twice"),
    "VOC: an image that is gone": (
        lambda p: sorted((p / "voc/VOCdevkit/VOC2012/JPEGImages").glob("*"))[0].unlink(), VOC, r"\.jpg is missing"),
    "COCO: a category out of range": (lambda p: coco(p, lambda a: a["annotations"][0].update(category_id=999)), COCO, "unknown category 999"),
    "COCO: an image id twice": (lambda p: coco(p, lambda a: a["images"].append(a["images"][0])), COCO, "image id .* twice"),
    "COCO: a broken mask": (lambda p: coco(p, lambda a: a["annotations"][0].update(segmentation=[[1, 2]])), COCO, "annotation .* cannot be read"),
    "COCO: half a file": (
        lambda p: (lambda f: f.write_text(f.read_text()[:500]))(p / "coco/annotations/instances_val2017.json"), COCO, "not a complete COCO"),
    "COCO: a list without images": (lambda p: coco(p, lambda a: a.pop("images")), COCO, "not a complete COCO"),
    "captions that are not UTF-8": (None, training("csv:{}/latin.csv"), "latin.csv is not UTF-8"),
    "captions without columns": (None, training("csv:{}/columns.csv"), "needs the columns filepath and title"),
    "captions without pairs": (None, training("csv:{}/none.csv"), "no image-caption pair"),
    "captions of images that are gone": (None, training("csv:{}/gone.csv"), "no image of .* could be read"),
    "pairs from nowhere": (None, training("zip:{}/a.zip"), "names no image-caption pairs"),
    "a count that is no number": (None, training("scenes:many"), "scenes:many"),
    "shards that are not there": (None, training("web:{}/*.tar"), "no image-caption pair"),
    "a batch larger than the data": (None, [*training("scenes:6"), "--batch-size", "4096"], None),
    "no epochs": (None, [*training("scenes:6"), "--epochs", "0"], "epochs"),
    "a pair in a folder that is not there": (None, ["train", "scenes:6", "{}/new/pair.safetensors", *TRAIN[3:]], None),
    "a pair where a file is in the way": (None, ["train", "scenes:6", "{}/red.png/pair.safetensors", *TRAIN[3:]], "red.png"),
    "scores in a folder that is not there": (None, [*EXPLAIN, "--json", "{}/new/scores.json", "--npz", "{}/other/maps.npz"], None),
    "a profile that is not there": (None, ["reproduce", "--profile", "{}/none.yaml"], "no profile"),
    "a figure nobody makes": (None, ["reproduce", "--figure", "77"], "no notebook makes figure_77"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_commands(name, place, monkeypatch):
    spoil, command, message = CASES[name]
    if spoil:
        spoil(place)
    monkeypatch.chdir(place)
    said = run(monkeypatch, *(str(part).replace("{}", str(place)) for part in command))
    if message is None:
        assert said is None
    else:
        assert said and said.startswith("eclip: ") and "\n" not in said and re.search(message, said), said


def test_a_long_prompt_is_cut_with_a_warning():
    clip = eclip.load_clip("scenes-ViT-32")
    with pytest.warns(UserWarning, match="reads 24 tokens; .* is longer"):
        clip.encode_text("circle " * 100)
