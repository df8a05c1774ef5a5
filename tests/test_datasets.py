"""Official layouts, read from real samples and from small trees written here; what is broken is named."""

import json

import numpy as np
import pytest
from export import write_coco, write_imagenet_s, write_voc
from PIL import Image

import eclip_lib as eclip
from eclip_lib.datasets import imagenet_s


@pytest.fixture(scope="module")
def examples():
    return [eclip.load_dataset("scenes-cluttered")[i] for i in range(4)]


def same(dataset, examples, rename):
    assert len(dataset) == len(examples)
    for read, written in zip(dataset, examples, strict=True):
        assert set(read.masks) == {rename[name] for name in written.masks}
        assert all((read.masks[rename[name]] == mask).all() for name, mask in written.masks.items())
        assert read.image.size == written.image.size and read.image.mode == "RGB"


def test_voc_reads_what_was_written(tmp_path, examples):
    names = write_voc(tmp_path, examples)
    same(dataset := eclip.load_dataset("voc2012", tmp_path), examples, names)
    assert len(dataset.classes) == 20 and "potted plant" in dataset.classes and dataset[0].void.any()


def test_coco_reads_what_was_written(tmp_path, examples):
    names = write_coco(tmp_path, examples)
    same(eclip.load_dataset("coco2017", tmp_path), examples, names)


def test_imagenet_s_reads_what_was_written(tmp_path, examples):
    names = write_imagenet_s(tmp_path, examples)
    same(dataset := eclip.load_dataset("imagenet-s50", tmp_path), examples, names)
    assert len(dataset.classes) == 50 and dataset[0].void.any()


def test_imagenet_s_ids_above_255_do_not_overflow(tmp_path, examples, monkeypatch):
    write_imagenet_s(tmp_path, examples[:1])
    more = {f"n9{k:07d}": f"more {k}" for k in range(500)}
    monkeypatch.setattr(imagenet_s, "SYNSETS", imagenet_s.SYNSETS | more)
    path = next(tmp_path.glob("validation-segmentation/*/*.png"))
    labels = np.zeros((224, 224, 3), np.uint8)
    labels[:100, :, 0], labels[:100, :, 1] = 300 - 256, 1
    Image.fromarray(labels).save(path)
    dataset = imagenet_s.ImageNetS50(tmp_path)
    dataset.classes = list(imagenet_s.SYNSETS.values())
    assert dataset[0].masks[dataset.classes[299]].sum() == 100 * 224


def test_coco_crowds_and_instances_become_one_mask(tmp_path, examples):
    write_coco(tmp_path, examples[:1])
    path = tmp_path / "annotations" / "instances_val2017.json"
    about = json.loads(path.read_text())
    first = about["annotations"][0]
    crowd = {"size": [224, 224], "counts": [0, 224 * 10, 224 * 214]}  # the ten columns at the left
    square = [[200, 200, 220, 200, 220, 220, 200, 220]]
    same_object = {name: first[name] for name in ("image_id", "category_id")}
    about["annotations"] += [same_object | {"id": 900, "iscrowd": 1, "segmentation": crowd}]
    about["annotations"] += [same_object | {"id": 901, "iscrowd": 0, "segmentation": square}]
    path.write_text(json.dumps(about))
    example = eclip.load_dataset("coco2017", tmp_path)[0]
    mask = example.masks[{c["id"]: c["name"] for c in about["categories"]}[first["category_id"]]]
    assert mask[:, :10].all() and mask[205:215, 205:215].all() and not example.void.any()


BREAK = {  # what is damaged, and whether that is seen at once
    "no image": (lambda photo, label, listing: photo.unlink(), True),
    "no listing": (lambda photo, label, listing: listing.unlink(), True),
    "empty listing": (lambda photo, label, listing: listing.write_text("\n"), True),
    "truncated image": (lambda photo, label, listing: photo.write_bytes(photo.read_bytes()[:2000]), False),
    "small mask": (lambda photo, label, listing: Image.new("P", (10, 10)).save(label), False),
    "colour mask": (lambda photo, label, listing: Image.new("RGB", (224, 224)).save(label), False),
    "unknown label": (lambda photo, label, listing: Image.new("L", (224, 224), 77).save(label), False),
}


@pytest.mark.parametrize("kind", BREAK)
def test_a_damaged_voc_tree_names_the_file(tmp_path, examples, kind):
    write_voc(tmp_path, examples)
    voc, (damage, at_once) = tmp_path / "VOCdevkit" / "VOC2012", BREAK[kind]
    photo = min((voc / "JPEGImages").glob("*.jpg"))
    label = voc / "SegmentationClass" / f"{photo.stem}.png"
    damage(photo, label, voc / "ImageSets" / "Segmentation" / "val.txt")
    with pytest.raises((ValueError, FileNotFoundError), match=r"\.jpg|\.png|val\.txt"):
        dataset = eclip.load_dataset("voc2012", tmp_path)
        assert not at_once
        dataset[0]


def test_a_damaged_coco_tree_names_the_file(tmp_path, examples):
    write_coco(tmp_path, examples)
    path = tmp_path / "annotations" / "instances_val2017.json"
    good = path.read_text()
    about = json.loads(good)
    about["annotations"][0]["category_id"] = 12345
    for text, message in (
        (good[:-100], "instances_val2017"),
        ("{}", "instances_val2017"),
        (json.dumps(about), "12345"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            eclip.load_dataset("coco2017", tmp_path)
    path.write_text(good)
    next(tmp_path.glob("val2017/*.jpg")).unlink()
    with pytest.raises(FileNotFoundError, match="val2017"):
        eclip.load_dataset("coco2017", tmp_path)


def test_a_damaged_imagenet_s_tree_names_the_file(tmp_path, examples):
    write_imagenet_s(tmp_path, examples)
    label = next(tmp_path.glob("validation-segmentation/*/*.png"))
    Image.new("RGB", (224, 224), (60, 0, 0)).save(label)
    with pytest.raises(ValueError, match="class id 60"):
        [*eclip.load_dataset("imagenet-s50", tmp_path)]
    label.unlink()
    with pytest.raises(FileNotFoundError, match="png"):
        eclip.load_dataset("imagenet-s50", tmp_path)


@pytest.mark.parametrize("name", ["voc2012", "coco2017", "imagenet-s50"])
def test_a_missing_tree_says_what_is_expected(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="Expected root/"):
        eclip.load_dataset(name, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="root="):
        eclip.load_dataset(name)


def test_unknown_names_and_limits_are_refused():
    with pytest.raises(ValueError, match="no dataset 'imagenet'"):
        eclip.load_dataset("imagenet")
    with pytest.raises(ValueError, match="at least 1"):
        eclip.load_dataset("scenes", limit=0)
    assert len(eclip.load_dataset("scenes", limit=3)) == 3


def test_real_coco_sample(samples):
    dataset = eclip.load_dataset("coco2017", samples / "coco")
    assert len(dataset) == 79 and len(dataset.classes) == 80 and dataset.classes[0] == "person"
    example = dataset[0]
    assert example.image_id == "000000000139"
    assert {mask.shape for mask in example.masks.values()} == {example.image.size[::-1]}


def test_real_voc_sample(samples):
    dataset = eclip.load_dataset("voc2012", samples / "voc")
    assert len(dataset) == 3
    for example in dataset:
        assert example.masks and not any((m & example.void).any() for m in example.masks.values())
