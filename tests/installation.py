"""A pretend installation for the paper profile: seeded weights, drawn pictures and captions, in the official
file formats, names and layouts. Nothing is downloaded."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pandas as pd
import torch
import yaml
from export import write_coco, write_imagenet_s, write_voc
from PIL import Image, ImageDraw

import eclip_lib as eclip  # before open_clip: it lets torchvision be imported beside a CPU-only torch
from eclip_lib.datasets import imagenet_s, voc
from eclip_lib.files import REPOSITORY
from eclip_lib.networks.checkpoints import registry

NETWORKS, DATASETS = ["RN50", "ViT-B-32"], ["voc2012", "coco2017", "imagenet-s50"]
IMAGES, PAIRS = 5, 24  # of each dataset; in two shards
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
VISION = {
    "RN50": {"image_size": 224, "layers": [1, 1, 1, 1], "width": 8},
    "ViT-B-32": {"image_size": 224, "patch_size": 32, "width": 64, "layers": 3, "head_width": 32},
}
SMALL = {name: {"embed_dim": 64, "vision_cfg": vision, "text_cfg": TEXT} for name, vision in VISION.items()}


def drawn(rng, classes, name, size=(240, 180)):
    """A picture with an object of each class on a sky of noise -> `Example`."""
    sky = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image, masks = Image.fromarray(sky).resize(size, Image.Resampling.BICUBIC), {}
    for k, class_name in enumerate(classes):
        mask, width = Image.new("1", size), size[0] // len(classes)
        x, y = k * width + rng.integers(5, 15), rng.integers(10, 60)
        ImageDraw.Draw(mask).ellipse((x, y, x + width - 25, y + rng.integers(50, 110)), fill=1)
        image.paste(tuple(map(int, rng.integers(0, 256, 3))), mask=mask)
        masks[class_name] = np.array(mask)
    return eclip.Example(name, image, masks)


def build_datasets(root, rng):
    """VOC 2012 and COCO 2017 with two classes an image, ImageNet-S50 with one, in their official layouts."""
    few, words = voc.CLASSES[:4], list(imagenet_s.SYNSETS.values())
    two = [[few[k % 4], few[(k + 1) % 4]] for k in range(IMAGES)]
    sizes = [(240, 180), (180, 240)]
    write_voc(root, [drawn(rng, c, f"2007_{k:06d}", sizes[k % 2]) for k, c in enumerate(two)])
    write_coco(root, [drawn(rng, c, str(k), sizes[k % 2]) for k, c in enumerate(two)])
    one = [drawn(rng, [words[k]], f"ILSVRC2012_val_{k:08d}") for k in range(IMAGES)]
    write_imagenet_s(root / "ImageNetS50", one)


def build_pairs(folder, rng):
    """GCC3M as img2dataset writes it: two shards with their sidecars, and one cut off between them; every
    eighth address is dead, so in the table alone, one JPEG is broken, and one caption is in the .json
    alone."""
    folder.mkdir(parents=True)
    for shard in (0, 2):
        lines = []
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for k in range(PAIRS // 2):
                key, words = f"{shard:05d}{k:04d}", list(rng.choice(voc.CLASSES[:4], 2, replace=False))
                about = {
                    "caption": f"a {words[0]} and a {words[1]}",
                    "url": f"http://example.org/{key}",
                    "key": key,
                }
                dead = k % 8 == 5
                about |= {
                    "status": "failed_to_download" if dead else "success",
                    "error_message": dead and "gone",
                }
                lines.append(about)
                if dead:
                    continue
                picture = io.BytesIO()
                drawn(rng, words, key).image.save(picture, "JPEG")
                data = picture.getvalue()[: 300 if k == 3 else None]
                parts = {"jpg": data, "txt": b"" if k == 4 else about["caption"].encode()}
                for suffix, blob in (parts | {"json": json.dumps(about).encode()}).items():
                    entry = tarfile.TarInfo(f"{key}.{suffix}")
                    entry.size = len(blob)
                    tar.addfile(entry, io.BytesIO(blob))
        pd.DataFrame(lines).astype({"error_message": str}).to_parquet(folder / f"{shard:05d}.parquet")
        counts = {"count": len(lines), "successes": sum(line["status"] == "success" for line in lines)}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(counts))
    (folder / "00001.tar").write_bytes((folder / "00000.tar").read_bytes()[:9000])


def build_weights(folder, tiny):
    """OpenAI's TorchScript archives in half precision with their three stamps, a checkpoint of open_clip's
    trainer, DINO's bare state dict and MoCo v3's training checkpoint, at seeded weights -> the profile's
    masks."""
    import open_clip
    import timm

    folder.mkdir(parents=True)
    for network in NETWORKS:
        if tiny:
            (folder / f"{network}.json").write_text(json.dumps(SMALL[network]))
    if tiny:
        open_clip.add_model_config(folder)
    for seed, network in enumerate(NETWORKS):
        torch.manual_seed(seed)
        archive(open_clip.create_model(network), folder / f"{network}.pt")
    state = {f"module.{name}": t for name, t in open_clip.create_model(network).state_dict().items()}
    torch.save({"epoch": 32, "name": "scratch", "state_dict": state}, folder / "epoch_32.pt")
    vit = "vit_tiny_patch16_224" if tiny else "vit_base_patch16_224"
    dino, moco = folder / "dino_vitbase16_pretrain.pth", folder / "vit-b-300ep.pth.tar"
    torch.save(timm.create_model(vit, num_classes=0).state_dict(), dino)
    state, head = timm.create_model(vit, num_classes=0).state_dict(), torch.zeros(8, 8)
    kinds = {kind: {**state, "head.0.weight": head} for kind in ("base_encoder", "momentum_encoder")}
    both = {f"module.{kind}.{name}": tensor for kind, part in kinds.items() for name, tensor in part.items()}
    both["module.predictor.0.weight"] = head
    torch.save({"epoch": 300, "arch": "vit_base", "state_dict": both}, moco)
    return {"MoCo v3": f"{vit}={moco}", "DINO": f"{vit}={dino}"}


def archive(model, path):
    """Save weights as OpenAI's files are, filled up to the bytes that theirs have."""
    holder = torch.nn.Module()
    stamps = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    state = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    for name, tensor in (state | {name: torch.tensor(value) for name, value in stamps.items()}).items():
        place = holder
        *parents, leaf = name.split(".")
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, torch.nn.Module())
            place = getattr(place, parent)
        place.register_buffer(leaf, tensor)
    torch.jit.save(torch.jit.script(holder), str(path))
    for fill in ("", "fill"):  # the first rewrites the directory as zipfile does, then the second can count
        with zipfile.ZipFile(path, "a") as file:
            entry = zipfile.sizeFileHeader + zipfile.sizeCentralDir + 2 * len(fill)
            lacking = registry()["weights"][path.name]["bytes"] - path.stat().st_size - entry
            file.writestr(fill or "first", bytes(lacking if fill else 0))


def build(profile, tiny):
    """The installation around the file of a profile: the paper's with two networks, and for tiny ones with
    small masks as well."""
    rng, place = np.random.default_rng(0), profile.parent
    build_datasets(place / "data", rng)
    build_pairs(place / "data" / "gcc3m", rng)
    masks = build_weights(place / "weights", tiny)
    settings = yaml.safe_load((REPOSITORY / "eclip_lib" / "profiles" / "paper.yaml").read_text())
    settings |= {"networks": NETWORKS}
    if tiny:
        settings |= {"masks": masks, "training": settings["training"] | {"epochs": 2, "views": 2}}
    settings["scratch"] = {NETWORKS[-1]: f"{place}/weights/epoch_32.pt"}
    profile.write_text(yaml.safe_dump(settings, sort_keys=False))
