"""Write examples as small VOC, COCO and ImageNet-S trees in the official layouts.
Class k of the examples takes the name of class k of the target dataset."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from eclip_lib.datasets.imagenet_s import SYNSETS
from eclip_lib.datasets.imagenet_s import VOID as IMAGENET_VOID
from eclip_lib.datasets.voc import CLASSES
from eclip_lib.datasets.voc import VOID as VOC_VOID


def _places(examples, targets):
    """{class name of the examples: (position, target's name)}, in order of first appearance."""
    names = list(dict.fromkeys(name for example in examples for name in example.masks))
    if len(names) > len(targets):
        raise ValueError(f"{len(names)} classes do not fit a dataset of {len(targets)}")
    return {name: (k, targets[k]) for k, name in enumerate(names)}


def _labels(example, places, void):
    """int32 [H, W]: 0, or 1 + the class's position; a border of two pixels is void, where nothing else is."""
    labels = np.full(example.image.size[::-1], void, np.int32)
    labels[2:-2, 2:-2] = 0
    for name, mask in example.masks.items():
        labels[mask] = 1 + places[name][0]
    return labels


def _renaming(places):
    return {name: target for name, (_, target) in places.items()}


def write_voc(root, examples):
    """-> {class name of the examples: VOC's name}."""
    base, places = Path(root, "VOCdevkit", "VOC2012"), _places(examples, CLASSES)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for example in examples:
        example.image.save(base / "JPEGImages" / f"{example.image_id}.jpg", quality=95)
        image = Image.fromarray(_labels(example, places, VOC_VOID).astype(np.uint8)).convert("P")
        image.save(base / "SegmentationClass" / f"{example.image_id}.png")
    (base / "ImageSets" / "Segmentation" / "val.txt").write_text("".join(f"{e.image_id}\n" for e in examples))
    return _renaming(places)


def write_coco(root, examples):
    """-> {class name of the examples: the category's name, which is the same}."""
    names = list(dict.fromkeys(name for example in examples for name in example.masks))
    places = _places(examples, names)
    Path(root, "val2017").mkdir(parents=True, exist_ok=True)
    Path(root, "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number, example in enumerate(examples, 1):
        example.image.save(Path(root, "val2017", f"{number:012d}.jpg"), quality=95)
        width, height = example.image.size
        images.append({"id": number, "file_name": f"{number:012d}.jpg", "width": width, "height": height})
        for name, mask in example.masks.items():
            code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": code["size"], "counts": code["counts"].decode()}
            about = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + places[name][0]}
            annotations.append({**about, "iscrowd": 0, "segmentation": segmentation})
    categories = [{"id": 1 + k, "name": name} for name, (k, _) in places.items()]
    document = {"images": images, "annotations": annotations, "categories": categories}
    Path(root, "annotations", "instances_val2017.json").write_text(json.dumps(document))
    return _renaming(places)


def write_imagenet_s(root, examples):
    """-> {class name of the examples: ImageNet-S50's prompt word}. Image k lies in the folder of synset k."""
    places = _places(examples, list(SYNSETS.values()))
    for number, example in enumerate(examples):
        synset = list(SYNSETS)[number]
        photos, masks = (Path(root, name, synset) for name in ("validation", "validation-segmentation"))
        photos.mkdir(parents=True, exist_ok=True), masks.mkdir(parents=True, exist_ok=True)
        example.image.save(photos / f"{example.image_id}.JPEG", format="JPEG", quality=95)
        labels = _labels(example, places, IMAGENET_VOID)
        colours = np.stack([labels % 256, labels // 256, np.zeros_like(labels)], -1).astype(np.uint8)
        Image.fromarray(colours).save(masks / f"{example.image_id}.png")
    return _renaming(places)
