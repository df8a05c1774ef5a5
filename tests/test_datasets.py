"""Official layouts, read from real samples and from small trees written here; what is broken is named."""

import json

import numpy as np
import pytest
from export import write_coco, write_imagenet_s, write_voc
from PIL import Image

import eclip_lib as eclip
from eclip_lib.datasets import imagenet_s
from eclip_lib.datasets.image_text import load_pairs


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


@pytest.mark.parametrize("root", ["", "mine/VOCdevkit", "mine/VOCdevkit/VOC2012"])
def test_a_root_too_high_or_too_deep_is_told_the_right_one(tmp_path, examples, root):
    write_voc(tmp_path / "mine", examples)
    with pytest.raises(FileNotFoundError, match=f"is missing, but {tmp_path / 'mine'} has it"):
        eclip.load_dataset("voc2012", tmp_path / root)


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


@pytest.mark.parametrize("name", ["voc2012", "coco2017", "imagenet-s50"])
def test_a_missing_tree_says_what_is_expected(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="Expected root/"):
        eclip.load_dataset(name, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="root="):
        eclip.load_dataset(name)


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


def test_a_pair_has_a_key_that_seeds_and_a_place_for_readers(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text('filepath,title\na.png,"one\nand more"\nb.png,two\n'), (tmp_path / "b.png").touch()
    source = load_pairs(f"csv:{table}")
    assert [key for key, *_ in source.read(source.parts[0])] == ["000000000", "000000001"]
    assert source.place(source.parts[0], "000000001") == "line 4 of list.csv"
    assert list(source.inputs) == [str(path) for path in (table, tmp_path / "a.png", tmp_path / "b.png")]
    captions = tmp_path / "annotations" / "captions_val2017.json"
    captions.parent.mkdir()
    pair = {"id": 71, "image_id": 5, "caption": "a star"}
    captions.write_text(json.dumps({"images": [{"id": 5, "file_name": "5.jpg"}], "annotations": [pair]}))
    source = load_pairs(f"coco:{tmp_path}")
    assert source.place(source.parts[0], "000000000") == "caption 71 of 5.jpg"
    assert list(source.inputs) == [str(captions), str(tmp_path / "val2017" / "5.jpg")]
