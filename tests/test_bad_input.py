"""A table of bad input: each ends in a result or in one clear sentence, never in a wrong number."""

import io
import json
import os
import re
import shlex
import shutil
import struct
import tarfile
import warnings
import zlib
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from export import write_coco, write_imagenet_s, write_voc
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import eclip_lib as eclip
from eclip_lib import cli, files
from eclip_lib.commands import boundary, explain, outputs
from eclip_lib.networks import checkpoints, demo

RED = Image.new("RGB", (40, 30), (200, 30, 30))


def png(width, height, body=b""):
    """A PNG that claims a size, with any body."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def tiff(data, tags):
    """A TIFF of one row with these bytes and numbers, of a kind that Pillow does not write."""
    tags = dict(sorted({257: 1, 259: 1, 273: 8, 278: 1, 279: len(data), **tags}.items()))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


FLOATS = tiff(struct.pack("<3f", 1, 1, 1), {256: 1, 258: 32, 262: 2, 277: 3, 339: 3})  # of one pixel


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
    "truncated.jpg": (
        saved(RED.resize((400, 300)), "JPEG")[:900],
        "truncated.jpg cannot be read as an image",
    ),
    "text.jpg": (b"this is no picture", "text.jpg cannot be read as an image"),
    "colour.tif": (FLOATS, r"colour.tif .* image \(of no kind that Pillow reads\); .* 8-bit PNG"),
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
    monkeypatch.setattr(boundary, "said", set())
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
        monkeypatch,
        "explain",
        tmp_path / name,
        "a circle",
        "--out",
        tmp_path / "out.png",
        "--npz",
        tmp_path / "out.npz",
    )
    if message is None:
        assert said is None
        maps = np.load(tmp_path / "out.npz")[str(tmp_path / name)]
        with Image.open(tmp_path / name) as image:
            size = (
                image.size if name == "rotated.jpg" else image.size[::-1]
            )  # a turned photo is explained as it is looked at
        assert maps.shape == (1, *size) and np.isfinite(maps).all()
    else:
        assert said.startswith("eclip: ") and "\n" not in said
        assert re.search(message, said), said


def test_more_than_eight_bits_are_scaled_not_clipped(tmp_path):
    whole = (gradient / 65535 * 255).astype(np.int32)
    images = {"16.png": gradient, "float.tif": (gradient / 65535).astype(np.float32), "32.tif": whole}
    for name, values in images.items():
        Image.fromarray(values).save(tmp_path / name)
        read = np.asarray(eclip.read_image(tmp_path / name))[0, :, 0].astype(int)
        assert abs(read - np.linspace(0, 255, 40)).max() < 1.5, name
    clear = Image.fromarray(gradient)
    clear.save(tmp_path / "clear.png", transparency=int(gradient[0, 3]))
    read = np.asarray(eclip.read_image(tmp_path / "clear.png"))
    assert (read[:, 3] == 255).all() and read[0, 4, 0] == 26
    png(tmp_path / "four.png", 4, 0, b"\x3a" * 112, clear=b"\0\3")
    assert np.asarray(eclip.read_image(tmp_path / "four.png"))[0, :2, 0].tolist() == [255, 170]
    png(tmp_path / "deep.png", 16, 2, b"\0\7\0\0\0\0" * 224, clear=b"\0\7\0\0\0\0")
    with pytest.raises(ValueError, match="deep.png has 16 bits a channel and a transparent colour"):
        eclip.read_image(tmp_path / "deep.png")
    for name, tags in {"twelve": {258: 12, 262: 1}, "white": {258: 16, 262: 0}}.items():
        data = b"\0\x0f\xff" if name == "twelve" else b"\0\0\xff\xff"  # black and white, white and black
        (tmp_path / f"{name}.tif").write_bytes(tiff(data, {256: 2, 277: 1, 339: 1, **tags}))
        read = np.asarray(eclip.read_image(tmp_path / f"{name}.tif"))[0, :, 0]
        assert read.tolist() == ([0, 255] if name == "twelve" else [255, 0])
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 1 65535\n\0\0\0\xc8")  # 200 of 65535 is 1 of 255
    assert np.asarray(eclip.read_image(tmp_path / "dark.pgm"))[0, :, 0].tolist() == [0, 1]
    Image.fromarray(np.full((3, 3), -1, np.float32)).save(tmp_path / "below.tif")
    with pytest.raises(ValueError, match="below.tif holds values from -1 to -1"):
        eclip.read_image(tmp_path / "below.tif")


def packed(path, members, mode="w"):
    """A tar of {name: bytes, or the name of a file to link to}, or of pairs of them."""
    with tarfile.open(path, mode) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            about = tarfile.TarInfo(name)
            if isinstance(content, str):
                about.type, about.linkname, content = tarfile.LNKTYPE, content, b""
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))


GIF, JPEG = saved(RED, "GIF"), saved(RED, "JPEG")
PAIR = (("jpg", JPEG), ("txt", b"a"))  # suffix, content
TABLES = {  # file name: its content
    "latin.csv": "filepath\ttitle\nred.png\tun caf\xe9\n".encode("latin-1"),
    "columns.csv": b"file\ttext\nred.png\ta circle\n",
    "none.csv": b"filepath\ttitle\n",
    "gone.csv": b"filepath\ttitle\nnowhere.png\ta circle\n",
    "semicolons.csv": b"filepath;title\nred.png;a circle\n",
    "good.csv": b"filepath,title\nred.png,a circle\nred.png,a square\n",
    "quotes.csv": b'filepath\ttitle\nred.png\t"a circle\nred.png\ta 5" square\nred.png\ta "red" star\n',
    "empty.csv": b"filepath\ttitle\nred.png\ta circle\nred.png\t \nred.png\ta star\n",
    "tab.csv": b"filepath\ttitle\t\nred.png\ta circle\t\nred.png\ta star\t\n",
    "huge.csv": b'filepath,title\nred.png,"a circle, ' + b"red " * 10**5 + b'"\nred.png,a star\n',
    "mine.json": b'{"a picture": {"a dog": 0.3}}',
    "bom.csv": b"\xef\xbb\xbffilepath\ttitle\nred.png\ta circle\nred.png\ta star\n",
    "agreement.csv": b"mine\n1\n",
    "clip-scenes-ViT-32-scenes.csv": b"mine\n1\n",
}
WEIGHTS = {  # file name: what is saved in place of scenes-ViT-32's weights
    "list.pt": lambda state: [1, 2],
    "note.pt": lambda state: {"epoch": 1},
    "numbers.pt": lambda state: {0: torch.ones(2)},
    "integers.pt": lambda state: state | {"visual.proj": state["visual.proj"].to(torch.int8)},
    "complex.pt": lambda state: state | {"visual.proj": state["visual.proj"].to(torch.complex64)},
    "sparse.pt": lambda state: state | {"visual.proj": state["visual.proj"].to_sparse()},
    "several.pt": lambda state: {"ema": {k: v * 0 for k, v in state.items()}, "state_dict": state},
    "own.pt": lambda state: {"weights": {f"module._orig_mod.{k}": v for k, v in state.items()}},
    "more.pt": lambda state: {f"model.{k}": v for k, v in state.items()} | {"loss.scale": torch.ones(2)},
    "factor.pt": lambda state: state | {"logit_scale": torch.tensor(14.28)},
    "zero.pt": lambda state: {k: v * 0 for k, v in state.items()},
    "large.pt": lambda state: state | {"visual.ln_post.weight": torch.full((128,), 3e38)},
    "hole.pt": lambda state: state | {"visual.proj": state["visual.proj"] * 0},
    "part.pt": lambda state: (
        state | {"visual.proj": state["visual.proj"].index_fill(0, torch.arange(40, 60), 0)}
    ),
    "norm.pt": lambda state: state | {"visual.ln_post.weight": torch.full((128,), 1e25)},
    "text.pt": lambda state: state | {f"ln_final.{k}": torch.zeros(128) for k in ("weight", "bias")},
    "pair.pt": lambda state: state | {"text_projection": state["text_projection"] * 1e30},
    "wrapped.pt": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()} | state,
    "average.pt": lambda state: (
        {f"model.{k}": v for k, v in state.items()}
        | {f"ema_model.module.{k}": v * 0 for k, v in state.items()}
        | {"ema_model.n_averaged": torch.ones(1)}
    ),
    "alike.pt": lambda state: {0: state, 1: {k: v + 0.01 for k, v in state.items()}},
    "small.pt": lambda state: eclip.load_clip("scenes-ViT-16").model.state_dict(),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with pictures, small datasets, captions, checkpoints and pairs."""
    tmp_path, scenes = tmp_path_factory.mktemp("whole"), eclip.load_dataset("scenes", limit=4)
    for folder in ("empty", "maps.v2", "[1]{a}"):
        (tmp_path / folder).mkdir()
    RED.save(tmp_path / "red.png"), RED.save(tmp_path / "[1]{a}" / "red.jpg")
    for name, write in {
        "voc": write_voc,
        "a=b": write_voc,
        "coco": write_coco,
        "ins": write_imagenet_s,
    }.items():
        write(tmp_path / name, scenes)
    state = eclip.load_clip("scenes-ViT-32").model.state_dict()
    changed = {"nan": lambda v: v * float("nan"), "shape": lambda v: v[:5], "other": lambda v: v + 0.01}
    for name, change in changed.items():
        weights = {k: (change(v) if k == "visual.proj" else v).contiguous() for k, v in state.items()}
        save_file(weights, str(tmp_path / f"{name}.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(demo.checkpoint("scenes-ViT-32").read_bytes()[:5000])
    for name, change in WEIGHTS.items():
        torch.save(change(state), tmp_path / name)
    shutil.copy(tmp_path / "other.safetensors", tmp_path / "other.bin")
    (tmp_path / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    (tmp_path / "shards").mkdir()
    names = {name: f"{number % 2}.safetensors" for number, name in enumerate(state)}
    for file in set(names.values()):
        part = {name: state[name].contiguous() for name in state if names[name] == file}
        save_file(part, str(tmp_path / "shards" / file))
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (tmp_path / "shards" / "config.json").write_text('{"vision_config": "none", "model_cfg": 3}')
    eclip.load_clip("scenes-ViT-32").projection.save(tmp_path / "pair.safetensors")
    files.write(tmp_path / "run" / "tables" / "table_1.csv", "mIoU\n1\n")
    for name, content in TABLES.items():
        (tmp_path / name).write_bytes(content)
    whole = {"1.jpg": JPEG, "1.txt": b"a circle", "2.v1.gif": GIF, "2.v1.json": b'{"caption": "a star"}'}
    whole |= {"._1.jpg": b"x", "3.txt": b"no picture", "4.jpg": JPEG, "5.jpg": JPEG, "5.txt": b"caf\xe9"}
    for name in ("whole.tar", "[1]{a}/same.tar", "tar.safetensors"):
        packed(tmp_path / name, whole)
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:1200])
    with tarfile.open(tmp_path / "whole.tar") as tar:
        end = tar.getmembers()[2].offset
    (tmp_path / "ended.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:end])
    return tmp_path


@pytest.fixture()
def place(whole, tmp_path):
    """That folder, to be spoilt; its weights are links, which no test writes through."""

    def copy(source, target):
        return os.link(source, target) if source.endswith(".pt") else shutil.copy2(source, target)

    return Path(shutil.copytree(whole, tmp_path / "place", copy_function=copy))


INSTANCES = "coco/annotations/instances_val2017.json"


def coco(place, change):
    about = json.loads((place / INSTANCES).read_text())
    (place / INSTANCES).write_text(json.dumps(change(about) or about))


def captions(place, **changes):
    """COCO's captions of one picture, with changes."""
    image, note = {"id": 1, "file_name": "1.jpg"}, {"id": 1, "image_id": 1, "caption": "a star"}
    about = {"images": [image], "annotations": [note]}
    for entry in (image, note):
        entry |= {name: value for name, value in changes.items() if name in entry}
    files.write(place / "coco/annotations/captions_val2017.json", json.dumps(about))


def first(**changes):
    """What changes COCO's first annotation."""
    return lambda place: coco(place, lambda about: about["annotations"][0].update(changes))


def category(**new):
    """What adds a category to COCO's."""
    return lambda place: coco(place, lambda about: about["categories"].append(new))


VOC_MASKS = "voc/VOCdevkit/VOC2012/SegmentationClass/*.png"
INS_MASKS = "ins/validation-segmentation/*/*.png"


def first_of(place, pattern):
    return sorted(place.glob(pattern))[0]


def voc_mask(place, mask):
    Image.fromarray(mask).save(first_of(place, VOC_MASKS))


def png(path, depth, kind, row, clear=None):
    """A PNG of so many bits and of one colour type, which Pillow does not write: every row the same bytes.
    clear: the transparent colour."""
    head, rows = struct.pack(">IIBBBBB", *SIZE, depth, kind, 0, 0, 0), zlib.compress((b"\0" + row) * SIZE[1])
    chunks = [(b"IHDR", head), (b"tRNS", clear), (b"IDAT", rows), (b"IEND", b"")]
    chunks = [chunk for chunk in chunks if chunk[1] is not None]
    data = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(data))


def rewrite(path, change):
    changed = change(path.read_text())
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())


def imagenet_mask(place, *colour):
    Image.new("RGB", SIZE, colour).save(first_of(place, INS_MASKS))


def as_words(about):
    for image in about["images"]:
        image["id"] = str(image["id"])
    for note in about["annotations"]:
        note["image_id"] = str(note["image_id"])


def taller(about):
    about["images"][0]["height"] += 1
    for note in about["annotations"]:
        note["segmentation"] = [[0, 0, 100, 0, 100, 100]]


def statistics(place, **about):
    """What the files beside the weights in shards say of their preprocessing."""
    config = json.dumps({"preprocess_cfg": about, "model_cfg": {}})
    files.write(place / "shards" / "open_clip_config.json", config)


def pair(place, change):
    path = str(place / "pair.safetensors")
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: change(file.get_tensor(name)) for name in file.keys()}, file.metadata()
    save_file(tensors, path, metadata)


def pictures(place, *names):
    for name in names:
        files.write(place / name, saved(RED, "PNG"))


def without_notes(about):
    """The first image keeps no annotation."""
    own = about["images"][0]["id"]
    about["annotations"] = [note for note in about["annotations"] if note["image_id"] != own]


def as_folder(path):
    path.unlink(), path.mkdir()


def as_file(path):
    shutil.rmtree(path), path.write_text("")


def cut(path):
    path.write_bytes(path.read_bytes()[:2000])


SIZE, VOC = (224, 224), "voc/VOCdevkit/VOC2012"
LISTING = f"{VOC}/ImageSets/Segmentation/val.txt"
SPOILT = {  # name of a case: what is done to the place first
    "VOC: a greyscale mask": lambda p: voc_mask(p, np.full(SIZE, 3, np.uint8)),
    "VOC: a colour mask": lambda p: voc_mask(p, np.zeros((*SIZE, 3), np.uint8)),
    "VOC: a mask of 4 bits": lambda p: png(first_of(p, VOC_MASKS), 4, 0, b"\x11" * 112),
    "VOC: a mask saved as JPEG": lambda p: Image.new("L", SIZE, 15).save(first_of(p, VOC_MASKS), "JPEG"),
    "VOC: a mask of another size": lambda p: voc_mask(p, np.zeros((9, 9), np.uint8)),
    "VOC: a label out of range": lambda p: voc_mask(p, np.full(SIZE, 21, np.uint8)),
    "VOC: an image listed twice": lambda p: rewrite(p / LISTING, lambda t: t * 2),
    "VOC: a list with a byte order mark": lambda p: rewrite(p / LISTING, lambda t: "\ufeff" + t),
    "VOC: a list in UTF-16": lambda p: rewrite(p / LISTING, lambda t: t.encode("utf-16")),
    "VOC: a list with a remark": lambda p: rewrite(p / LISTING, lambda t: "# mine\n" + t),
    "VOC: a list with labels": lambda p: rewrite(p / LISTING, lambda t: t.replace("\n", "  1\n")),
    "VOC: a list with DOS's last letter": lambda p: rewrite(p / LISTING, lambda t: t + "\x1a"),
    "VOC: an empty list": lambda p: (p / LISTING).write_text("\n"),
    "VOC: no list": lambda p: (p / LISTING).unlink(),
    "VOC: an image that is gone": lambda p: sorted((p / VOC / "JPEGImages").glob("*"))[0].unlink(),
    "VOC: a list that is a folder": lambda p: as_folder(p / LISTING),
    "VOC: a file in place of its folder": lambda p: as_file(p / VOC),
    "VOC: an image that is a folder": lambda p: as_folder(first_of(p, f"{VOC}/JPEGImages/*")),
    "VOC to be got where its list is a folder": lambda p: as_folder(p / LISTING),
    "VOC to be got where its folder is a file": lambda p: as_file(p / VOC),
    "ImageNet-S: two images of one name": lambda p: [
        path.rename(path.with_stem("0001")) for path in p.glob("ins/*/*/*.*")
    ],
    "a folder with folders": lambda p: pictures(p, "[1]{a}/more/red.png"),
    "weights in an archive": lambda p: np.savez(open(p / "zip.pt", "wb"), weights=gradient),
    "VOC: an image cut off": lambda p: cut(sorted((p / VOC / "JPEGImages").glob("*"))[0]),
    "COCO: a category out of range": first(category_id=999),
    "VOC: an image without a class": lambda p: voc_mask(p, np.zeros(SIZE, np.uint8)),
    "COCO: a picture under two ids": lambda p: coco(
        p, lambda a: a["images"].append(a["images"][0] | {"id": 99})
    ),
    "COCO: a picture without a name": lambda p: coco(p, lambda a: a["images"][0].update(file_name="")),
    "COCO: a mask of no pixel": first(segmentation={"size": SIZE, "counts": [224 * 224]}),
    "COCO: a mask between the pixels": first(segmentation=[[0, 20.6, 220, 20.6, 220, 20.62, 0, 20.62]]),
    "COCO: a mask beside the picture": first(segmentation=[[300, 300, 400, 300, 400, 400]]),
    "COCO: an image without a class": lambda p: coco(p, without_notes),
    "COCO: an image id twice": lambda p: coco(p, lambda a: a["images"].append(a["images"][0])),
    "COCO: a broken mask": first(segmentation=[[1, 2]]),
    "COCO: a point that is no number": first(segmentation=[[float("nan"), 1, 9, 1, 9, 9]]),
    "COCO: run lengths in fractions": first(segmentation={"size": SIZE, "counts": [0.5, 224 * 224 - 0.5]}),
    "COCO: run lengths too short": first(segmentation={"size": SIZE, "counts": [5, 10]}),
    "COCO: no masks but boxes": first(segmentation=None),
    "COCO: an annotation of no image": first(image_id=999),
    "COCO: a category twice": lambda p: coco(
        p, lambda a: a["categories"].append(a["categories"][0] | {"id": 77})
    ),
    "COCO: a category id twice": category(id=1, name="other"),
    "COCO: a category without a name": category(id=77, name=""),
    "COCO: category ids of two kinds": category(id="x", name="other"),
    "COCO: an id that is no number": first(image_id=True),
    "COCO: a category id that is none": first(category_id=None),
    "COCO: an annotation without an id": lambda p: coco(p, lambda a: a["annotations"][0].pop("id") and None),
    "COCO: a height that is no number": lambda p: coco(p, lambda a: a["images"][0].update(height=True)),
    "COCO: a size in words": first(segmentation={"size": ["224", "224"], "counts": [5, 10]}),
    "COCO: a size that is no number": lambda p: [
        coco(p, lambda a: a["images"][0].update(height=1, width=1)),
        first(segmentation={"size": [1, True], "counts": [0, 1]})(p),
    ],
    "COCO: a size that is another": first(segmentation={"size": [10, 10], "counts": [5, 95]}),
    "COCO: a size that its picture has not": lambda p: coco(p, taller),
    "a run over a stranger's report": lambda p: files.write(p / "theirs" / "report.md", "mine"),
    "statistics in words": lambda p: statistics(p, mean=["0.5"] * 3, std=[0.5] * 3),
    "statistics of 8 bits": lambda p: statistics(p, mean=[123.7] * 3, std=[58.4] * 3),
    "statistics without a spread": lambda p: statistics(p, mean=[0.5] * 3, std=[0] * 3),
    "statistics that are no numbers": lambda p: statistics(p, mean=[float("nan")] * 3, std=[0.5] * 3),
    "a pair of whole numbers": lambda p: pair(p, lambda tensor: (tensor * 100).to(torch.int8)),
    "a pair of nothing": lambda p: pair(p, torch.zeros_like),
    "a pair beyond float32": lambda p: pair(p, lambda tensor: tensor.double() * 1e300),
    "a pair whose cosines overflow": lambda p: pair(p, lambda tensor: tensor * 1e25),
    "a network with statistics of two channels": lambda p: statistics(p, mean=[0.5] * 2, std=[0.5] * 2),
    "COCO: run lengths that are none": first(segmentation={"size": SIZE, "counts": None}),
    "COCO: run lengths that are true": first(segmentation={"size": SIZE, "counts": [True, 224 * 224 - 1]}),
    "COCO: a mask that is a word": first(segmentation="circle"),
    "COCO: a point that is true": first(segmentation=[[True, 1, 9, 1, 9, 9]]),
    "COCO: a caption that is a number": lambda p: captions(p, caption=7),
    "COCO: a picture that is a number": lambda p: captions(p, file_name=7),
    "COCO: captions of an image that is true": lambda p: captions(p, image_id=True),
    "COCO: pictures with their folder": lambda p: rewrite(
        p / INSTANCES, lambda t: t.replace('"file_name": "', '"file_name": "val2017/')
    ),
    "COCO: an image that is gone": lambda p: next(p.glob("coco/val2017/*.jpg")).unlink(),
    "COCO: a byte order mark": lambda p: rewrite(p / INSTANCES, lambda t: "\ufeff" + t),
    "COCO: a list twice": lambda p: rewrite(p / INSTANCES, lambda t: t[:-1] + ', "annotations": []}'),
    "COCO: half a file": lambda p: rewrite(p / INSTANCES, lambda t: t[:500]),
    "COCO: a file without images": lambda p: coco(p, lambda a: a.pop("images") and None),
    "COCO: a list": lambda p: coco(p, lambda a: [a]),
    "COCO: no annotations": lambda p: coco(p, lambda a: a.update(annotations=None)),
    "COCO: ids that are words": lambda p: coco(p, as_words),
    "overlays over drawings": lambda p: [
        pictures(p, "k/a.png", "k/b.png"),
        files.write(p / "o-a.svg", "mine"),
    ],
    "pictures whose paths join to one name": lambda p: pictures(p, "k/a-b/c/red.png", "k/a/b-c/red.png"),
    "one picture by several ways": lambda p: pictures(p, "k/a/new.tif"),
    "an overlay beyond its kind": lambda p: RED.resize((20000, 2)).save(p / "[1]{a}" / "long.png"),
    "an output that is a link": lambda p: (p / "link.png").symlink_to(p / "maps.v2" / "heat.png"),
    "an output that is a link to itself": lambda p: (p / "link.png").symlink_to(p / "link.png"),
    "a dead link among pictures": lambda p: (p / "[1]{a}" / "gone.jpg").symlink_to(p / "none.jpg"),
    "a run promoted over a stranger's": lambda p: files.write(
        p / "theirs" / "tables" / "table_1.csv", "mine"
    ),
    "a run over a stranger's figure": lambda p: pictures(p, "theirs/figures/mmp_losses.png"),
    "a run in a link to itself": lambda p: (p / "link").symlink_to(p / "link"),
    "captions in JSON without an end": lambda p: packed(
        p / "deep.tar",
        {"1.jpg": JPEG, "1.json": b"[" * 10**5, "2.jpg": JPEG, "2.txt": b"a", "3.jpg": JPEG, "3.txt": b"b"},
    ),
    "a key twice in a shard": lambda p: packed(
        p / "twice.tar", [(f"{k}.{kind}", data) for k in "1122" for kind, data in PAIR]
    ),
    "two pictures under one key": lambda p: packed(
        p / "both.tar",
        {f"{k}.{kind}": data for k in "123" for kind, data in PAIR} | {"3.png": saved(RED, "PNG")},
    ),
    "a shard with more of each key": lambda p: packed(
        p / "more.tar",
        {
            f"{k}.{kind}": data
            for k in "12"
            for kind, data in (("jpg", JPEG), ("seg.png", b""), ("txt", b"a"))
        },
    ),
    "a shard with captions elsewhere": lambda p: packed(
        p / "cls.tar", {f"{k}.{kind}": data for k in "12" for kind, data in (("jpg", JPEG), ("cls", b"7"))}
    ),
    "shards that are compressed": lambda p: [
        packed(p / "shards" / name, [(f"{k}.{kind}", data) for k in "123" for kind, data in PAIR], mode)
        for name, mode in {"1.tar.gz": "w:gz", "2.TAR": "w", "3.tar.part": "w"}.items()
    ],
    "a shard with names that are not UTF-8": lambda p: packed(
        p / "names.tar", {f"{k}\udce9.{kind}": data for k in "12" for kind, data in PAIR}
    ),
    "a shard with links to its files": lambda p: packed(
        p / "links.tar",
        [
            ("1.jpg", JPEG),
            ("1.txt", b"a"),
            ("2.jpg", "1.jpg"),
            ("2.txt", b"b"),
            ("3.jpg", JPEG),
            ("3.txt", "1.txt"),
        ],
    ),
    "a shard of pictures, then captions": lambda p: packed(
        p / "apart.tar", [(f"{k}.{kind}", data) for kind, data in PAIR for k in "12"]
    ),
    "zeros in a shard": lambda p: (p / "zeros.tar").write_bytes(bytes(512) + (p / "whole.tar").read_bytes()),
    "weights in shards in folders": lambda p: [
        (p / "shards" / "sub").mkdir(),
        (p / "shards" / "0.safetensors").rename(p / "shards" / "sub" / "0.safetensors"),
        rewrite(p / "shards" / "model.safetensors.index.json", lambda t: t.replace('"0.', '"sub/0.')),
    ],
    "weights of which a shard is gone": lambda p: (p / "shards" / "1.safetensors").unlink(),
    "maps over another's arrays": lambda p: np.savez(p / "mine.npz", images=gradient, texts=gradient),
    "two shards in one file": lambda p: (p / "joined.tar").write_bytes(2 * (p / "whole.tar").read_bytes()),
    "ImageNet-S: a class id out of range": lambda p: imagenet_mask(p, 60, 0, 0),
    "ImageNet-S: a mask of 16 bits": lambda p: png(first_of(p, INS_MASKS), 16, 2, b"\0\7\0\0\0\0" * 224),
    "ImageNet-S: red and blue changed": lambda p: imagenet_mask(p, 0, 0, 1),
    "ImageNet-S: an image that is gone": lambda p: next(p.glob("ins/validation/*/*")).unlink(),
    "ImageNet-S: a mask that is gone": lambda p: next(p.glob("ins/validation-s*/*/*")).unlink(),
}
# a case a line: its name, the command, then what must be said, or "prints" and what a result prints.
# Explain, Evaluate, Voc, Coco, Ins stand for SHORT; {} is the place; Train writes {}/p.safetensors
CASES = r"""
no picture there | explain {}/none.png circle | no picture at
a folder without pictures | explain {}/empty circle | no picture at
an empty prompt | explain {}/red.png " " | none that is empty
a prompt of 10,000 characters | explain {}/red.png "{long}" | prints heat.png
a prompt of symbols | explain {}/red.png "¿☃🙂?" | prints heat.png
prompts in dollars | explain {}/red.png "a price of $5_$" "$$" "says $\Sale$" | prints heat.png
one text twice | explain {}/red.png circle circle --method clip_surgery | prints heat.*texts are all the
a picture as its own output | explain {}/red.png circle --out {}/red.png | red.png is an input and would be
overlays over other pictures | explain {}/[1]{a}/red.jpg circle --out {} | red.png is there, is not of this command and
overlays over drawings | explain {}/k circle --out {}/o.svg | o-a.svg is there, is not of this command and
pictures whose paths join to one name | explain {}/k/**/*.png circle --out {}/maps.v2 | prints 2-a-b-c-red-png.png
an output that is a link | explain {}/red.png circle --out {}/link.png | prints link.png
an output that is a link to itself | explain {}/red.png circle --out {}/link.png | link.png is a link that leads to itself
a dead link among pictures | explain {}/[1]{a} circle --out {}/maps.v2 | prints left out, .*gone.jpg
overlays of a kind that is not written | explain {}/red.png circle --out {}/heat.tif | heat.tif.* is a .png file
scores with a picture's name | Explain --json {}/red.png | red.png: what is written there is a .json file
maps with a checkpoint's name | Explain --npz {}/other.safetensors | is a .npz file; name it other.npz
one picture by several ways | explain {}/**/**/*.tif circle --out {}/maps.v2 | prints maps.v2/new.png
an overlay beyond its kind | explain {}/[1]{a} circle --bare --out {}/o.webp --json {}/o.json | o-long.webp cannot be drawn .*16383 pixels.; name a .png
a path of 10,000 characters | explain "{long}" circle | .*: File name too long
pictures of one name | explain {}/**/red.* circle --out {}/maps.v2 | prints 1.{a}-red-jpg.png.*red-png.png
a folder in brackets and braces | explain {}/[1]{a}/*.jpg circle --out {}/out.png | prints out.png
an output that begins with a tilde | explain {}/red.png circle --out ~out.png | prints ~out.png
a folder with folders | explain {}/[1]{a} circle --out {}/maps.v2 | prints left out, a glob with \*\* looks into them: 1 folders .more
an empty value | Explain --method eclip --projection "" | --projection is given an empty value; write one, or leave it out
an empty value behind an equals sign | Evaluate --out= | --out is given an empty value
an empty path | explain "" circle | a path is empty
a picture as a text | explain {}/red.png {}/red.png | red.png is a file, not a text
one output twice | bench --out {}/agreement.csv | agreement.csv would be written twice
a table beside one's own | bench --out {}/table.csv | agreement.csv is there, is not of this command and
rows in place of one's own | evaluate clip --networks scenes-ViT-32 --datasets scenes --out {} | clip-scenes-ViT-32-scenes.csv is there, is not of
an overlay over a picture | explain {}/[1]{a}/red.jpg circle --out {}/red.png | red.png is there, is not of this command and
scores over another's | Explain --json {}/mine.json | mine.json is there, is not of this command and
maps over another's arrays | Explain --npz {}/mine.npz | mine.npz is there, is not of this command and
a pair over weights | train scenes:6 {}/other.safetensors | other.safetensors is there, is not of this command and
an overlay with a table's name | explain {}/red.png circle --out {}/new.csv | what is written there is a .png file; name it new.png
rows in a folder with a file's name | Evaluate --out {}/new.csv | new.csv ends like a file, but is to be a folder; name it new
maps in a folder with a dot | explain {}/[1]{a} circle --out {}/maps.h | prints maps.h/red.png
rows in a folder with a letter behind its dot | Evaluate --datasets scenes --limit 1 --out {}/rows.t | prints scenes clip: mIoU
a run in a folder with a file's name | reproduce --figure 5 --out {}/new.json | new.json ends like a file
a comma too many | Explain --method rclip, | --method: a name in 'rclip,' is empty; write one, or several like a,b
a comma twice | Evaluate --measures miou,,msc | --measures: a name in 'miou,,msc' is empty
a comma too many among networks | evaluate clip --networks scenes-RN, | a name in 'scenes-RN,' is empty
an output folder with a dot | explain {}/red.png circle --out {}/maps.v2 | prints maps.v2/red.png
an output that cannot be | explain {}/red.png circle --out {}/red.png/out.png | red.png
scores in a folder that is not there | Explain --json {}/new/s.json --npz {}/other/maps.npz | prints out.png
an unknown network | Explain --network ViT-B-61 | no network 'ViT-B-61'; near: .*ViT-B-16
an unknown method | Explain --method gradcam | no method 'gradcam'
a method of 10,000 characters | Explain --method "{long}" | no method 'circle .*'; there are clip, rclip
a checkpoint of 10,000 characters | Explain --pretrained "{long}" | no bundled checkpoint 'circle .*'; there are scratch, seed0
a method that needs a pair | Explain --pretrained {}/other.safetensors --method eclip | needs --projection
a pair for a method without | Explain --projection {}/pair.safetensors | no other method takes one
a pair of another | Explain --network scenes-RN --method eclip --projection {}/pair.safetensors | made for
a pair that is a checkpoint | Explain --method eclip --projection {}/nan.safetensors | is not a projection
a pair of whole numbers | Explain --method eclip --projection {}/pair.safetensors | weights that are no floats
a pair of nothing | Explain --method eclip --projection {}/pair.safetensors | weights of size 0, which no training gives
a pair beyond float32 | Explain --method eclip --projection {}/pair.safetensors | weights of size inf, which no training gives
a pair whose cosines overflow | Explain --method eclip --projection {}/pair.safetensors | weights of size .*e\+25, which no training gives
another input size | Explain --size 224x448 | prints out.png
an input size that does not divide | Explain --size 225 | input of 225x225 does not divide into cells of 32x32
an input size that is none | Explain --size big | --size is a side
an input size beyond all | Explain --size 99999999968 | --size is a side
an input size of 10,000 characters | Explain --size "{long}" | --size is a side, .* not 'circle .*'
no GPU here | Explain --device cuda | cuda
an unknown device | Explain --device gpu | no device 'gpu'
a device of another machine | Explain --device mps | device 'mps', but torch sees no Metal device
a device without numbers | Explain --device meta | device 'meta', but torch sees no meta device
weights of no numbers | Explain --pretrained {}/nan.safetensors | nan.safetensors: weights that are not f
weights of another shape | Explain --pretrained {}/shape.safetensors | shape.safetensors does not fit scenes
weights of smaller patches | Explain --pretrained {}/small.pt | does not fit .* is 197x128 there and 50x128 here
weights of whole numbers | Explain --pretrained {}/integers.pt | visual.proj is 128x128 of whole numbers there
weights of complex numbers | Explain --pretrained {}/complex.pt | complex.pt: weights that are not finite, plain
weights with zeros left out | Explain --pretrained {}/sparse.pt | sparse.pt: weights that are not finite, plain
weights under numbers | Explain --pretrained {}/numbers.pt | numbers.pt holds no weights by name, but: 0
several sets of weights | Explain --pretrained {}/several.pt | prints out.png.*state_dict are read, not ema
weights in a container of one's own | Explain --pretrained {}/own.pt | prints out.png
weights with others beside them | Explain --pretrained {}/more.pt | prints out.png.*1 weights lie outside .* .loss.scale
weights with another suffix | Explain --pretrained {}/other.bin | prints out.png
weights in shards | Explain --pretrained {}/shards | prints out.png
weights in shards in folders | Explain --pretrained {}/shards | prints out.png
weights of which a shard is gone | Explain --pretrained {}/shards | names 2 files; not there: 1.safetensors; get the folder
statistics in words | Explain --pretrained {}/shards | open_clip_config.json: mean and std of its preprocessing are not three
statistics of 8 bits | Explain --pretrained {}/shards | not three numbers of 0 to 1 each, std above 0
statistics without a spread | Explain --pretrained {}/shards | not three numbers of 0 to 1 each, std above 0
statistics that are no numbers | Explain --pretrained {}/shards | not three numbers of 0 to 1 each, std above 0
a network with statistics of two channels | Explain --network local-dir:{}/shards | not three numbers of 0 to 1 each
a factor on cosines beyond all | Explain --pretrained {}/factor.pt | e to its logit_scale, 14.28, is no factor on cosines
weights of the hub | Explain --pretrained openai/clip | no checkpoint at openai/clip; of the hub, write hf-hub:openai/clip
a network of the hub | Explain --network openai/clip | no network 'openai/clip'; near: scenes.*; of the hub, write hf-hub:openai/clip
a network's folder | Explain --network {}/shards | no network .*; the folder of a CLIP's files is local-dir:/
a folder without weights | Explain --pretrained {}/empty | no checkpoint in the folder .*: none of open_clip_model.safetensors, model
a pointer in place of weights | Explain --pretrained {}/pointer.pt | pointer of Git LFS, not the weights
weights cut off | Explain --pretrained {}/cut.safetensors | cut.safetensors is not a readable checkpoint
weights that are no file | Explain --pretrained {}/none.pt | no checkpoint at
weights that are a list | Explain --pretrained {}/list.pt | list.pt holds a list, not a state dict
weights that are a note | Explain --pretrained {}/note.pt | note.pt holds no weights by name, but: epoch
rows where a file is in the way | Evaluate --out {}/red.png | red.png is a file, so
a plan of a figure that is none | reproduce --dry-run --figure 0x | no notebook makes figure_0x
weights that are all 0 | Explain --pretrained {}/zero.pt | zero.pt: all numbers are 0 in long parts of
weights of which one is all 0 | Explain --pretrained {}/hole.pt | 0 in long parts of 1 of its 86 weights .visual.proj.; get the file again
weights in an archive | Explain --pretrained {}/zip.pt | an archive of other files; unpack it and name the one of
weights of which a part is 0 | Explain --pretrained {}/part.pt | 0 in long parts of 1 of its 86 weights .visual.proj.
weights whose cosines vanish | evaluate mask_clip --networks scenes-ViT-32 --datasets scenes --limit 1 --pretrained {}/norm.pt | features of size inf to inf, which no
weights whose texts are nothing | Explain --pretrained {}/text.pt | features of size 0 to 0, which no training gives
weights whose own pair overflows | Explain --pretrained {}/pair.pt | a projection with weights of size .*e\+30, which no
features to train on that overflow | Train scenes:6 --pretrained {}/large.pt | features of size inf to inf, which no training gives
weights whose features overflow | Explain --pretrained {}/large.pt | features of size inf to inf, which no training gives: its weights are damaged
weights in and out of a wrapper | Explain --pretrained {}/wrapped.pt | holds 86 weights twice, with and without a wrapper
weights beside their average | Explain --pretrained {}/average.pt | prints out.png.*weights lie outside .* .ema_model.module
two sets of weights alike | Explain --pretrained {}/alike.pt | holds several sets of weights alike: 0, 1; save the one
random weights by name | Explain --pretrained random | prints out.png
workers below none | Evaluate --ray -1 | '--ray': Input should be greater than or equal to 0; see eclip evaluate --help
a data set's name among others | data fetch gcc3m gcc4m --root {}/new | nothing known of 'gcc4m'; there are voc2012
a folder's place that a file has | data fetch voc2012 --root {}/red.png | red.png: a file is in the way of a folder; name
many workers without a folder | Evaluate --ray 2 | --ray needs --out
an unknown dataset | Evaluate --datasets voc2007 | no dataset 'voc2007'
a dataset that is not there | Evaluate --datasets voc2012 --root {}/empty | JPEGImages is missing
no root | Evaluate --datasets coco2017 | coco2017 needs root=
a limit that is true | reproduce --set limit=true | limit must be a valid integer, not 'True'
an unknown network of a run | reproduce --networks ViT-B-61 | no network 'ViT-B-61'; near: .*ViT-B-16
an unknown mask of a run | reproduce --set "masks={x: scenes-DINOs}" | masks: x: neither timm nor the demo has a model 'scenes-DINOs'; near: scenes-DINO
a limit of nothing | Evaluate --limit 0 | limit as given .--limit, --set or -p.: limit must be greater than or equal to 1
a setting of one word for several | reproduce --set training=x | training as given .--training, --set or -p.: training must
a dataset that is not there behind another | evaluate clip --networks scenes-ViT-32 --limit 1 --datasets scenes,voc2012 --root {}/empty | JPEGImages is missing
a network that is none behind another | evaluate clip --limit 1 --networks scenes-ViT-32,ViT-B-61 | no network 'ViT-B-61'
a pair for one network of two | evaluate eclip --limit 1 --networks scenes-ViT-32,scenes-RN --projection {}/pair.safetensors | was made for scenes-ViT-32
a method for one network of two | evaluate sclip --limit 1 --networks scenes-ViT-32,scenes-RN | sclip
a root with an equals sign | Evaluate --datasets voc2012 --root {}/a=b | prints voc2012 clip: mIoU .* 4 images
VOC: a greyscale mask | Voc | prints voc2012 clip: mIoU
VOC: a mask of 4 bits | Voc | has 4 bits a channel; save it with 8
VOC: a mask saved as JPEG | Voc | is no PNG, and labels outlive no other kind
VOC: a colour mask | Voc | is a colour image
VOC: a mask of another size | Voc | the mask is 9x9, its image 224x224
VOC: a label out of range | Voc | label 21 is not one of
VOC: an image listed twice | Voc | val.txt: image '.*' is there twice; keep one
VOC: a list with a byte order mark | Voc | prints voc2012 clip: mIoU .* 4 images
VOC: a list in UTF-16 | Voc | val.txt is not UTF-8
VOC: a list with a remark | Voc | val.txt: '# mine' is not the id of an image; write one id a line
VOC: a list with labels | Voc | val.txt: '.* 1' is not the id of an image; write one id a line
VOC: a list with DOS's last letter | Voc | val.txt: '.x1a' is not the id of an image; write one id a line
VOC: an empty list | Voc | val.txt lists no image
VOC: an image without a class | Voc | prints 1 of 4 images have no class to score and are left out
VOC: no list | Voc | val.txt is missing
VOC: an image that is gone | Voc | \.jpg is missing
VOC: a list that is a folder | Voc | val.txt is no file\. Expected
VOC: a file in place of its folder | Voc | VOC2012 is no folder\. Expected
VOC: an image that is a folder | Voc | \.jpg is no file\. Expected
VOC to be got where its list is a folder | data fetch voc2012 --root {}/voc | val.txt: a folder is in the way of a file; name another
VOC to be got where its folder is a file | data fetch voc2012 --root {}/voc | VOC2012: a file is in the way of a folder; name
VOC: an image cut off | Voc | \.jpg cannot be read as an image
COCO: a category out of range | Coco | unknown category 999
COCO: a picture under two ids | Coco | picture '.*jpg' is there twice
COCO: a picture without a name | Coco | file_name of images.0. is '', not a word
COCO: a mask of no pixel | Coco | prints 1 annotations cover no pixel and are left out .1.
COCO: a mask between the pixels | Coco | prints 1 annotations cover no pixel and are left out .1.
COCO: a mask beside the picture | Coco | prints 1 annotations cover no pixel and are left out .1.
COCO: an image without a class | Coco | prints 1 of 4 images have no class to score and are left out
COCO: an image id twice | Coco | image id .* twice
COCO: a broken mask | Coco | instances_val2017.json: the mask of annotation 1 cannot be read .a polygon needs
COCO: a point that is no number | Coco | a polygon has a point that is no number
COCO: run lengths in fractions | Coco | its run lengths are not whole numbers
COCO: run lengths too short | Coco | its run lengths cover 15 of 50176 pixels
COCO: no masks but boxes | Coco | boxes alone cannot be scored
COCO: an annotation of no image | Coco | prints 1 annotations are of images that it does not list
COCO: a category twice | Coco | category '.*' is there twice
COCO: a category id twice | Coco | category id 1 is there twice
COCO: a category without a name | Coco | name of categories.\d+. is '', not a word
COCO: category ids of two kinds | Coco | prints coco2017 clip: mIoU .* 4 images
COCO: an id that is no number | Coco | image_id of annotations.0. is True, not a whole number or a word
COCO: a category id that is none | Coco | category_id of annotations.0. is None, not a whole
COCO: an annotation without an id | Coco | id of annotations.0. is not there
COCO: a height that is no number | Coco | height of images.0. is True, not a whole number from
COCO: a size in words | Coco | its size is .'224', '224'., its image's .224, 224.
COCO: a size that is no number | Coco | its size is .1, True., its image's .1, 1.
COCO: a size that is another | Coco | its size is .10, 10., its image's .224, 224.
COCO: a size that its picture has not | Coco | the mask is 224x225, its image 224x224
COCO: run lengths that are none | Coco | it has no counts
COCO: run lengths that are true | Coco | its run lengths are not whole numbers
COCO: a mask that is a word | Coco | boxes alone cannot be scored
COCO: a point that is true | Coco | a polygon has a point that is no number
COCO: a file in place of its folder | Train coco:{}/red.png | no captions at .*red.png/annotations.*; of coco: .* give the folder that holds annotations
COCO: a caption that is a number | Train coco:{}/coco | captions_val2017.json .* caption of annotations.0. is 7, not a text
COCO: a picture that is a number | Train coco:{}/coco | captions_val2017.json .* file_name of images.0. is 7, not a word
COCO: captions of an image that is true | Train coco:{}/coco | image_id of annotations.0. is True, not
COCO: pictures with their folder | Coco | val2017/val2017/0*1.jpg is missing. Expected
COCO: an image that is gone | Coco | \.jpg is missing
COCO: a byte order mark | Coco | prints coco2017 clip: mIoU .* 4 images
COCO: a list twice | Coco | not a complete COCO file: the name 'annotations' is there twice
COCO: half a file | Coco | not a complete COCO
COCO: a file without images | Coco | not a complete COCO
COCO: a list | Coco | instances_val2017.json is not a complete COCO
COCO: no annotations | Coco | instances_val2017.json is not a complete COCO .* list of annotations
COCO: ids that are words | Coco | prints coco2017 clip: mIoU .* 4 images
ImageNet-S: a class id out of range | Ins | class id 60 is beyond
ImageNet-S: two images of one name | Ins | validation: image '0001' is there twice; keep one, or give
ImageNet-S: a mask of 16 bits | Ins | has 16 bits a channel; save it with 8
ImageNet-S: red and blue changed | Ins | blue is not 0
ImageNet-S: an image that is gone | Ins | \.JPEG is missing
ImageNet-S: a mask that is gone | Ins | \.png is missing
captions that are not UTF-8 | Train csv:{}/latin.csv | latin.csv is not UTF-8
captions with a byte order mark | Train csv:{}/bom.csv | prints 2 pairs
captions without columns | Train csv:{}/columns.csv | needs the columns filepath and title
captions without pairs | Train csv:{}/none.csv | no image-caption pair
captions of images that are gone | Train csv:{}/gone.csv | gone.csv could be read: line 2 names 'nowhere.png', where no file is
captions by semicolons | Train csv:{}/semicolons.csv | by tabs or commas; name them so in its first line, which has filepath;title
a caption longer than a field may be | Train csv:{}/huge.csv | prints 2 pairs
captions with lone quotes | Train csv:{}/quotes.csv | prints 3 pairs
an empty caption | Train csv:{}/empty.csv | prints 2 pairs.*1 of 3 pairs were skipped: 1 with an empty caption .line 3 of empty.csv
a tab at the end | Train csv:{}/tab.csv | prints 2 pairs
a loss curve over the captions | train csv:{}/good.csv {}/good.safetensors | good.csv is an input and would be w
a loss curve over another table | train scenes:6 {}/good.safetensors | good.csv is there, is not of this command and
a pair over its shard | train web:{}/tar.safetensors {}/tar.safetensors | written over
a pair over its network | train scenes:6 {}/other.safetensors --pretrained {}/other.safetensors | written over
a pair over its mask | train scenes:6 {}/other.safetensors --pooling masked_max --mask-checkpoint {}/other.safetensors | written over
a pair with a table's name | train csv:{}/good.csv {}/pair.csv | is a .safetensors file; name it pair.safetensors
a pair with a name too long | train scenes:6 {}/{long}.safetensors | circle .*: the name is too long for a file; give a shorter one
a pair with a folder's name | train csv:{}/good.csv {}/empty | empty is a folder
pairs from nowhere | Train zip:{}/a.zip | names no image-caption pairs
a count that is no number | Train scenes:many | scenes:many
more scenes than can be counted | Train scenes:99999999999999999999 | a whole number below 10\^8
a brace that does not close | Train web:{a | its braces cannot be read \(Unbalanced braces\); write them like
braces that count for ever | Train web:{0..99999999999}.tar | its braces cannot be read \(they count too far\)
captions in JSON without an end | Train web:{}/deep.tar | prints 2 pairs.*1 of 3 .* 1 with an empty caption .1 of deep
shards that are not there | Train web:{}/nothing*.tar | no image-caption pair
shards of which one is not there | Train web:{}/{whole,gone}.tar | prints 2 pairs.*1 of 2 tars are not there: gone.tar
shards in brackets and braces | Train web:{}/[1]{a}/*.tar | prints 2 pairs
shards of another machine | Train web:s3://bucket/00.tar | files of this machine
a shard | Train web:{}/whole.tar | prints 2 pairs.*3 of 5 .* 1 without a picture .3 of .* not UTF-8 .5 of whole.tar
a shard cut off | Train web:{}/cut.tar | cut.tar is not a whole tar file
a shard cut between files | Train web:{}/ended.tar | ended.tar is not a whole tar file
a key twice in a shard | Train web:{}/twice.tar | prints 4 pairs
two pictures under one key | Train web:{}/both.tar | prints 2 pairs.*1 of 3 pairs were skipped: 1 with several pictures .3 of both
a shard with more of each key | Train web:{}/more.tar | prints 2 pairs
a shard with captions elsewhere | Train web:{}/cls.tar | 2 with an empty caption .*; of a shard the .txt, or the field caption
shards that are compressed | Train web:{}/shards | prints 6 pairs.*left out, no tars by their names: 1 .3.tar.part
a shard with names that are not UTF-8 | Train web:{}/names.tar | prints 2 pairs
a shard with links to its files | Train web:{}/links.tar | prints 3 pairs
a shard of pictures, then captions | Train web:{}/apart.tar | no image of apart.tar could be read: 2 with an empty caption .*beside a picture of its name
zeros in a shard | Train web:{}/zeros.tar | zeros.tar is not a whole tar file .another archive or more files behind zeros
two shards in one file | Train web:{}/joined.tar | joined.tar is not a whole tar file .another archive
a learning rate that is too large | Train scenes:8 --epochs 3 --lr 1e30 | training diverged in epoch .*; train with a smaller
a shard cut off beside a whole one | Train web:{}/*.tar | prints 2 pairs.*cut.tar is not a whole tar
shards that are all cut off | Train web:{}/{cut,ended}.tar | cut.tar is not a whole tar file .* \(1 more like it\)
a batch larger than the data | Train scenes:6 --batch-size 4096 | prints 6 pairs
a batch of one pair | Train scenes:6 --batch-size 1 | train: batch_size must be greater than or equal to 2
one pair alone | Train scenes:1 | holds a single pair, but Eq. 9 tells pairs apart
no epochs | Train scenes:6 --epochs 0 | train: epochs must be greater than or equal to 1, not '0'
no views | Train scenes:6 --views 0 | train: views must be greater than or equal to 1
a pooling that is none | Train scenes:6 --pooling foo | train: pooling must be 'attention', 'average', 'max' or
a start that is none | Train scenes:6 --init foo | train: init must be 'random' or 'clip', not 'foo'
a learning rate of nothing | Train scenes:6 --lr 0 | train: lr must be greater than 0
a learning rate that is no number | Train scenes:6 --lr nan | train: lr must be a finite number
a seed beyond all | Train scenes:6 --seed 99999999999999999999 | train: seed must be less than 4294967296
fewer workers than none | Train scenes:6 --workers -1 | train: workers must be greater than or equal to 0
a mask that no pooling reads | Train scenes:6 --mask gone.pt | --mask and --mask-checkpoint are for --pooling masked_max
CLIP's own pair for a feature map | Train scenes:6 --network scenes-RN --init clip | its own pair reads no feature map
a pair in a folder that is not there | train scenes:6 {}/new/pair.safetensors | prints 6 pairs
a pair where a file is in the way | train scenes:6 {}/red.png/pair.safetensors | red.png
a profile that is not there | reproduce --profile {}/none.yaml | no profile
a profile of nobody's | reproduce --profile ~nobody/mine.yaml | no profile '~nobody/mine.yaml'
a profile's name of 10,000 characters | reproduce --profile "{long}" | no profile 'circle .*'; there are demo
a setting of another kind | reproduce --set networks=3 | lists of names, not 3
a setting whole and in parts | reproduce --set training=5 --set training.epochs=3 | --set cannot give 'training.epochs'
a setting of nothing | Evaluate --datasets scenes --set limit=null | --set limit=null: null leaves a setting as the profile
a setting twice | Evaluate --datasets scenes --set limit=2 --set limit=3 | --set cannot give 'limit'
a setting and its option | Evaluate --datasets scenes --limit 2 --set limit=3 | --set cannot give 'limit'; it takes .* once
a setting that is an option | reproduce --set out=3 | --set cannot give 'out'
a setting that is none | reproduce --set "{long}=1" | a profile has no parameter 'circle .*'; there are networks
a dataset of 10,000 characters | reproduce --datasets "{long}" | no dataset 'circle .*'; there are voc2012
a run over the notebooks | reproduce --figure 5 --out {repository} | 05_mmp_training.ipynb is an input and would be
a run among the notebooks | reproduce --figure 5 --out {repository}/notebooks | lies in the repository's own notebooks
a run among the results | reproduce --figure 5 --out {repository}/results/mine | lies in the repository's own results
a run over a stranger's figure | reproduce --figure 5 --out {}/theirs | mmp_losses.png is there, but no run.json
a run over a stranger's report | reproduce --figure 5 --out {}/theirs | report.md is there, but no run.json
a run in a link to itself | reproduce --figure 5 --out {}/link | link.*: Too many levels of symbolic links
a run promoted onto itself | promote --partial --out {}/run --into {}/run | table_1.csv is an input and would be
a run promoted over a stranger's | promote --partial --out {}/run --into {}/theirs | no run.json beside it
a figure nobody makes | reproduce --figure 77 | no notebook makes figure_77
"""
CASES = {line.split(" | ")[0]: line.split(" | ", 2)[1:] for line in CASES.strip().splitlines()}
SHORT = {"Explain": "explain {}/red.png 'a circle' --out {}/out.png"}
SHORT |= {"Evaluate": "evaluate clip --networks scenes-ViT-32"}
SHORT |= {"Voc": f"{SHORT['Evaluate']} --datasets voc2012 --root {{}}/voc"}
SHORT |= {"Coco": f"{SHORT['Evaluate']} --datasets coco2017 --root {{}}/coco"}
SHORT |= {"Ins": f"{SHORT['Evaluate']} --datasets imagenet-s50 --root {{}}/ins"}
TRAIN = shlex.split("--epochs 1 --pooling max --cache {}/cache --workers 0 --batch-size 4")


@pytest.mark.parametrize("name", CASES)
def test_commands(name, place, monkeypatch, capsys):
    command, message = CASES[name]
    SPOILT.get(name, id)(place)
    before = {path: files.stamp(path) for path in place.rglob("*") if path.is_file()}
    links = [path for path in place.rglob("*") if path.is_symlink()]
    monkeypatch.chdir(place)
    word, _, rest = command.partition(" ")
    words = shlex.split(f"{SHORT.get(word, word)} {rest}")
    if word in ("train", "Train"):
        out = words.pop(2) if word == "train" else "{}/p.safetensors"
        words = ["train", words[1], out, *TRAIN, *words[2:]]
    filled = [word.replace("{}", str(place)).replace("{long}", "circle " * 1500) for word in words]
    filled = [word.replace("{repository}", str(files.REPOSITORY)) for word in filled]
    said, printed = run(monkeypatch, *filled), capsys.readouterr()
    if message.startswith("prints "):
        assert said is None and re.search(message[7:], f"{printed.out} {printed.err}".replace("\n", " "))
    else:
        assert said.startswith("eclip: ") and "\n" not in said and re.search(message, said), said
        assert len(said.replace(str(place), "")) < 300 and "--debug" not in said
        assert "mIoU" not in printed.out  # nothing is measured before
    assert all(files.stamp(path) == stamp for path, stamp in before.items())
    assert all(path.is_symlink() for path in links)
    assert not (message.startswith("train: ") and (place / "cache").exists())  # before long work


def test_a_configuration_counts_beside_its_own_weights_and_a_pair_for_its_activation(place, monkeypatch):
    names = dict.fromkeys(("own", "sizes", "word"), "model.safetensors") | {"stranger": "mine.safetensors"}
    for folder, name in names.items():
        quick = "no" if folder == "word" else True
        about = {"model_cfg": {"quick_gelu": quick} | ({"embed_dim": 7} if folder == "sizes" else {})}
        files.write(place / folder / "config.json", json.dumps(about))
        shutil.copy(demo.checkpoint("scenes-ViT-32"), place / folder / name)
    paths = {folder: place / folder / name for folder, name in names.items()}
    clips = {folder: eclip.load_clip("scenes-ViT-32", path).identity for folder, path in paths.items()}
    assert [clip["quick_gelu"] for clip in clips.values()] == [True, False, False, False]
    words = [word.replace("{}", str(place)) for word in TRAIN]
    assert (
        run(monkeypatch, "train", "scenes:6", place / "p.safetensors", *words, "--pretrained", paths["own"])
        is None
    )
    maps = ["explain", place / "red.png", "a circle", "--out", place / "o.png", "--method", "eclip"]
    maps += ["--projection", place / "p.safetensors", "--pretrained"]
    assert run(monkeypatch, *maps, paths["own"]) is None
    assert "another activation under the same name" in run(monkeypatch, *maps, paths["sizes"])


@pytest.mark.parametrize("kind", ["png", "jpg", "jpeg", "webp", "pdf", "svg"])
def test_an_overlay_of_any_kind_is_known_again(kind, tmp_path):
    plt.figure(figsize=(1, 1)).savefig(
        tmp_path / "o", format=kind, **explain._marked(kind, {"Software": explain.MARK})
    )
    outputs.require_free([(tmp_path / "o", explain.MARK)])
    plt.close("all")


def test_a_home_folder_and_a_name_twice_are_read_as_meant(monkeypatch):
    monkeypatch.setenv("ECLIP_WEIGHTS", "~/weights")
    assert checkpoints.folder() == Path.home() / "weights"
    assert eclip.load_profile("demo", datasets="scenes,scenes").datasets == ["scenes"]


@pytest.mark.parametrize(("letter", "shown"), [("\udce9", r"\udce9"), ("\x1b", r"\x1b")])
def test_a_text_of_other_bytes_is_named(letter, shown, place, monkeypatch):
    said = run(monkeypatch, "explain", place / "red.png", f"a {letter}", "--out", place / "o.svg")
    assert said == f"eclip: text 1 is not plain UTF-8: 'a {shown}'; write it again"


def test_a_long_prompt_is_cut_with_a_warning():
    clip = eclip.load_clip("scenes-ViT-32")
    with pytest.warns(UserWarning, match="reads 24 tokens; .* is longer"):
        clip.encode_text("circle " * 100)


def test_pairs_and_rows_that_differ_are_kept(place, monkeypatch):
    words = [word.replace("{}", str(place)) for word in TRAIN]
    train = ["train", "scenes:6", place / "p.safetensors", *words]
    for seed, there in ((0, 1), (0, 1), (1, 2), (2, 3)):  # the same pair is no other
        before = {path.read_bytes() for path in place.glob("p.*") if seed or path.suffix != ".csv"}
        assert run(monkeypatch, *train, "--seed", seed) is None
        assert len(list(place.glob("p.safe*"))) == len(list(place.glob("p.csv*"))) == there
        assert before <= {path.read_bytes() for path in place.glob("p.*")}
    place.joinpath("p.safetensors").rename(place / "mine.safetensors")  # its curve stays
    curve = place.joinpath("p.csv").read_bytes()
    assert run(monkeypatch, *train, "--seed", 3) is None
    assert curve in {path.read_bytes() for path in place.glob("p.csv.replaced-*")}
    evaluate = ["evaluate", "clip", "--networks", "scenes-ViT-32", "--datasets", "scenes", "--limit", 1]
    for there, changed in ((1, ""), (1, "x"), (2, "")):
        assert run(monkeypatch, *evaluate, "--out", place / "rows") is None
        (rows,) = place.glob("rows/*.csv")
        assert len(list(place.glob("rows/*"))) == there
        rows.write_text(rows.read_text() + changed)


PAGE = """# What bad input gets

Written by `.venv/bin/python tests/test_bad_input.py > docs/bad_input.md`; the same file tries every line of it. A sentence
names the file or argument and the way out; quoted is the part that is tested.
"""


def page():
    """docs/bad_input.md: what each kind of bad input gets, from the tables above."""
    plain = lambda pattern: re.sub(r"\\(.)", r"\1", pattern).replace(".*", "…")  # noqa: E731
    lines = [PAGE, "| input | what comes |", "| --- | --- |"]
    for name, (_, message) in PICTURES.items():
        lines.append(f"| `{name}` | {f'“{plain(message)}”' if message else 'a map'} |")
    for name, (_, message) in CASES.items():
        said = plain(message.removeprefix("prints "))
        lines.append(
            f"| {name} | {f'a result: `{said}`' if message.startswith('prints ') else f'“{said}”'} |"
        )
    return "\n".join(lines) + "\n"


def test_the_page_of_bad_input_is_this_files():
    assert (Path(__file__).parents[1] / "docs" / "bad_input.md").read_text() == page()


if __name__ == "__main__":
    print(page(), end="")
