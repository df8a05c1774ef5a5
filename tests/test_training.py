"""The pooled-feature cache and the training of a pair: Eq. 9 against loops, restarts, damage, ranks."""

import io
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eclip_lib as eclip
from eclip_lib import cache as caching
from eclip_lib import training
from eclip_lib.datasets.pairs import CocoPairs, CsvPairs, ScenePairs, WebPairs

SOURCE = {"count": 24, "size": 8}


@pytest.fixture(scope="module")
def clip():
    return eclip.load_clip("scenes-ViT-32", None)


@pytest.fixture(scope="module")
def cached(clip, tmp_path_factory):
    backbone = eclip.load_attention("vit_tiny_patch16_224", None)
    return caching.cache_features(
        clip, ScenePairs(**SOURCE), tmp_path_factory.mktemp("cache"), {"tiny": backbone}, batch_size=8
    )


def content(cache):
    return {path.name: path.read_bytes() for path in sorted(cache.folder.iterdir())}


@torch.no_grad()
def test_the_cache_holds_what_pooling_each_pair_alone_gives(clip, tmp_path):
    backbone = eclip.load_attention("vit_tiny_patch16_224", None)
    source = ScenePairs(count=4, size=2)
    masks = {"tiny": backbone, "ground truth": True}
    cache = caching.cache_features(clip, source, tmp_path, masks, augment=None)
    assert len(cache) == 4 and cache.columns == ["attention", "average", "max", "masked_max:tiny", "masked_max:ground truth"]
    rows = [pair for part in source.parts for pair in source.read(part)]
    for column in cache.columns:
        read = [cache.read(shard, column) for shard in cache.shards]
        image, text = (torch.cat(parts) for parts in zip(*read, strict=True))
        for k, (_, scene, caption) in enumerate(rows):
            picture = scene.image
            prepared = clip.preprocess(picture)[None]
            features = clip.encode_image(prepared)
            plain = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
            attention = backbone(plain, features.grid)
            if column.endswith("ground truth"):  # a cell's share of foreground pixels
                cells = [
                    [(scene.labels[y : y + 32, x : x + 32] > 0).mean() for x in range(0, 224, 32)] for y in range(0, 224, 32)
                ]
                attention = torch.tensor(cells, dtype=torch.float32).flatten()[None]
            expected = eclip.pool(features, column.split(":")[0], attention)[0]
            torch.testing.assert_close(image[k], expected, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(text[k], clip.encode_text(caption)[0], atol=1e-5, rtol=1e-4)


def test_a_resnet_cache_reads_the_feature_map_or_the_tokens(tmp_path):
    resnet, source = eclip.load_clip("scenes-RN", None), ScenePairs(count=2, size=2)
    with torch.no_grad():
        features = resnet.encode_image(torch.stack([resnet.preprocess(s.image) for _, s, _ in source.read(source.parts[0])]))
    cache = caching.cache_features(resnet, source, tmp_path, augment=None)
    assert cache.columns == ["attention", "average", "max", "tokens/average", "tokens/max"]
    for column, reads, tokens in (("max", "feature_map", features.feature_map), ("tokens/max", "tokens", features.tokens)):
        torch.testing.assert_close(cache.read(cache.shards[0], column)[0], tokens.amax(1), atol=1e-4, rtol=1e-3)
        assert training.train_pair(resnet, cache, column, epochs=1, batch_size=2)[0].reads == reads


def test_ground_truth_masks_need_a_source_that_has_them(clip, tmp_path):
    for source, augment in ((ScenePairs(count=2), "deit"), (object(), None)):
        with pytest.raises(ValueError, match="ground-truth masks need"):
            caching.cache_features(clip, source, tmp_path, {"ground truth": True}, augment=augment)


def test_views_differ_and_workers_change_nothing(clip, tmp_path):
    one, two = (
        caching.cache_features(clip, ScenePairs(count=4, size=4), tmp_path / str(w), views=2, workers=w) for w in (0, 2)
    )
    assert content(one) == content(two) and len(one) == 8
    first, second = (one.read(one.shards[0], "max", view)[0] for view in (0, 1))
    assert torch.equal(torch.cat([first, second]), one.read(one.shards[0], "max")[0]) and not torch.equal(first, second)
    for epoch, rows in enumerate((first, second, first)):  # an epoch trains on one view of every pair
        ((image, _),) = training.batches(one, "max", 4, 0, epoch)
        assert sorted(image[:, 0].tolist()) == sorted(rows[:, 0].tolist())


def test_another_configuration_is_another_folder(clip, tmp_path):
    folders = {
        caching.cache_features(clip, ScenePairs(count=2), tmp_path, **options).folder
        for options in ({}, {"views": 2}, {"augment": None}, {"seed": 1})
    }
    assert len(folders) == 4
    for options in ({"precision": "bf16"}, {"size": (224, 448)}):
        other = eclip.load_clip("scenes-ViT-32", **options)
        folders.add(caching.cache_features(other, ScenePairs(count=2), tmp_path).folder)
    assert len(folders) == 6


def test_deits_augmentation_takes_every_picture(clip):
    """At its strongest RandAugment would keep no bit of a channel, which Pillow refuses."""
    transform = caching.augmentation(clip)
    (posterize,) = (op for step in transform.transforms for op in getattr(step, "ops", []) if op.name.startswith("Posterize"))
    assert [posterize.level_fn(level, {})[0] for level in (0, 5, 9, 10)] == [4, 2, 1, 1]
    for seed in range(300):
        random.seed(seed), torch.manual_seed(seed)
        for size in ((1, 1), (1, 500), (640, 480)):
            assert transform(Image.new("RGB", size, "red")).shape == (3, 224, 224)


def test_damage_is_found_named_and_mended(clip, cached, tmp_path):
    cache = caching.cache_features(clip, ScenePairs(**SOURCE), tmp_path, batch_size=8)
    before = content(cache)
    cache.shards[0].write_bytes(cache.shards[0].read_bytes()[:-10])
    flipped = bytearray(cache.shards[1].read_bytes())
    flipped[-5] ^= 1
    cache.shards[1].write_bytes(flipped)
    cache.shards[2].unlink()
    with pytest.warns(UserWarning, match="0000[01].safetensors is damaged"):
        caching.cache_features(clip, ScenePairs(**SOURCE), tmp_path, batch_size=8)
    assert content(cache) == before


KILLED = """
import eclip_lib as eclip
from eclip_lib import cache
from eclip_lib.datasets.pairs import ScenePairs
cache.cache_features(eclip.load_clip("scenes-ViT-32", None), ScenePairs(count=24, size=8), {folder!r}, batch_size=8)
"""


def test_a_killed_pass_resumes_to_the_same_bytes(clip, tmp_path):
    whole = caching.cache_features(clip, ScenePairs(**SOURCE), tmp_path / "whole", batch_size=8)
    job = subprocess.Popen([sys.executable, "-c", KILLED.format(folder=str(tmp_path / "cut"))])
    end = time.time() + 60
    while not list((tmp_path / "cut").glob("*/*.safetensors")) and time.time() < end:
        time.sleep(0.01)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    again = caching.cache_features(clip, ScenePairs(**SOURCE), tmp_path / "cut", batch_size=8)
    leftovers = [name for name in content(again) if name.endswith(".partial")]
    assert {k: v for k, v in content(again).items() if k not in leftovers} == content(whole)


def test_a_full_disk_is_one_clear_sentence(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError, match="free some space and run again"):
            caching.write(tmp_path / "00000.safetensors", b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def jpeg(colour):
    picture = io.BytesIO()
    Image.new("RGB", (30, 20), colour).save(picture, "JPEG")
    return picture.getvalue()


def test_broken_images_of_a_web_dataset_are_skipped_and_counted(clip, tmp_path):
    for shard, pictures in enumerate(([jpeg("red"), b"broken", jpeg("blue")], [b"", b"broken"])):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as tar:
            for k, data in enumerate(pictures):
                for suffix, blob in (("jpg", data), ("txt", b"a photo of the star"), ("json", b"{}")):
                    about = tarfile.TarInfo(f"{k:05d}.{suffix}")
                    about.size = len(blob)
                    tar.addfile(about, io.BytesIO(blob))
    cache = caching.cache_features(clip, WebPairs(tmp_path / "*.tar"), tmp_path / "cache")
    assert len(cache) == 2 and cache.about["skipped"] == 3
    assert sum(len(text) for _, text in training.batches(cache, "max", 2, 0, 0)) == 2
    with pytest.raises(FileNotFoundError, match="no image-caption pair"):
        WebPairs(tmp_path / "none-*.tar")


def test_a_csv_of_paths_and_captions(clip, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg("green"))
    (tmp_path / "list.csv").write_text("filepath\ttitle\na.jpg\ta photo of the drop\n")
    assert len(caching.cache_features(clip, CsvPairs(tmp_path / "list.csv"), tmp_path / "cache")) == 1
    (tmp_path / "list.csv").write_text("path,title\n")
    with pytest.raises(ValueError, match="needs the columns filepath and title"):
        CsvPairs(tmp_path / "list.csv")


def test_real_coco_captions(clip, samples, tmp_path):
    source = CocoPairs(samples / "coco")
    assert sum(len(part) for part in source.parts) == 395
    source.parts = [range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # words the demo network never saw
        assert len(caching.cache_features(clip, source, tmp_path)) == 3


def slow_loss(image, text, scale):
    """Eq. 9 as InfoNCE both ways, pair by pair."""
    n, total = len(image), 0.0
    cosine = [[float(i @ t / i.norm() / t.norm()) * scale for t in text] for i in image]
    for k in range(n):
        row = math.log(sum(math.exp(cosine[k][j]) for j in range(n)))
        column = math.log(sum(math.exp(cosine[j][k]) for j in range(n)))
        total += (row - cosine[k][k] + column - cosine[k][k]) / 2
    return total / n


def test_the_loss_is_equation_9(clip):
    pair, image, text = training.new_pair(clip, 128, "tokens"), torch.randn(6, 128), torch.randn(6, 128)
    with torch.no_grad():
        value = training.contrastive_loss(training._Both(pair), image, text, 14.3)
        assert float(value) == pytest.approx(slow_loss(pair.image(image), pair.text(text), 14.3), abs=1e-4)


def test_the_schedule_is_warm_up_then_cosine():
    rates = [training.learning_rate(step, 100, 10, 1e-4) for step in range(101)]
    assert rates[0] == 1e-6 and rates[5] == pytest.approx((1e-6 + 1e-4) / 2) and rates[10] == pytest.approx(1e-4)
    assert rates[55] == pytest.approx((1e-4 + 1e-6) / 2) and rates[100] == pytest.approx(1e-6)


def test_every_row_is_served_once_an_epoch(cached):
    seen = torch.cat([image for image, _ in training.batches(cached, "max", 8, seed=0, epoch=1)])
    stored = torch.cat([cached.read(shard, "max")[0] for shard in cached.shards])
    assert sorted(seen.sum(1).tolist()) == sorted(stored.sum(1).tolist())
    other = torch.cat([image for image, _ in training.batches(cached, "max", 8, seed=0, epoch=2)])
    assert not torch.equal(seen, other)


def test_training_lowers_the_loss_and_locks_the_rest(clip, cached, tmp_path):
    before, seen = caching.digest(clip.model), []
    pair, history = training.train_pair(
        clip, cached, "masked_max:tiny", epochs=8, batch_size=8, lr=1e-2, on_epoch=lambda epoch, _: seen.append(epoch)
    )
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] and list(history["epoch"]) == seen == list(range(1, 9))
    assert caching.digest(clip.model) == before
    pair.save(tmp_path / "pair.safetensors")
    again = eclip.Projection.load(tmp_path / "pair.safetensors", clip)
    settings = json.loads(again.metadata["settings"])
    assert again.metadata["pooling"] == "masked_max:tiny" and (settings["epochs"], settings["augment"]) == (
        8,
        cached.about["augment"],
    )
    assert again.metadata["mask"] == " ".join(cached.about["masks"]["tiny"])
    with pytest.raises(ValueError, match="was made for scenes-ViT-32"):
        eclip.Projection.load(tmp_path / "pair.safetensors", eclip.load_clip("scenes-ViT-16", None))
    repeat, _ = training.train_pair(clip, cached, "masked_max:tiny", epochs=8, batch_size=8, lr=1e-2)
    assert torch.equal(repeat.image.weight, pair.image.weight)


def test_a_pair_may_start_from_clips_own(clip):
    pair = training.new_pair(clip, 128, "tokens", init="clip")
    assert torch.equal(pair.image.weight, clip.projection.image.weight)
    with pytest.raises(ValueError, match="init is"):
        training.new_pair(clip, 128, "tokens", init="zeros")


def test_mistakes_are_named(clip, cached):
    with pytest.raises(ValueError, match="not 'masked_max:dino'"):
        training.train_pair(clip, cached, "masked_max:dino")
    with pytest.raises(ValueError, match="holds features of scenes-ViT-32"):
        training.train_pair(eclip.load_clip("scenes-RN", None), cached, "max")


def test_eclip_train_makes_a_pair_that_explains(clip, tmp_path):
    from typer.testing import CliRunner

    from eclip_lib import cli

    out = tmp_path / "pair.safetensors"
    options = [
        "--mask",
        "vit_tiny_patch16_224",
        "--mask-checkpoint",
        "random",
        "--cache",
        tmp_path,
        "--batch-size",
        4,
        "--epochs",
        2,
    ]
    result = CliRunner().invoke(cli.app, ["train", "scenes:8", str(out), "--workers", "0", *map(str, options)])
    assert result.exit_code == 0, result.output
    trained = eclip.load_clip("scenes-ViT-32")
    pair = eclip.Projection.load(out, trained)
    assert pair.metadata["pooling"] == "masked_max:mask" and out.with_suffix(".csv").exists()
    maps = eclip.explainer("eclip", trained, projection=pair)(
        torch.randn(1, 3, 224, 224), trained.encode_text("a photo of the star")
    )
    assert maps.shape == (1, 1, 7, 7)
    assert "names no image-caption pairs" in str(CliRunner().invoke(cli.app, ["train", "gcc3m", str(out)]).exception)


RANK = """
import sys, torch, torch.distributed as dist
import eclip_lib as eclip
from eclip_lib import cache, training
from eclip_lib.datasets.pairs import ScenePairs
folder, out = sys.argv[1:]
dist.init_process_group("gloo")
clip = eclip.load_clip("scenes-ViT-32", None)
cached = cache.cache_features(clip, ScenePairs(count=24, size=8), folder, batch_size=8)
pair, history = training.train_pair(clip, cached, "max", epochs=3, batch_size=8, lr=1e-2)
if dist.get_rank() == 0:
    pair.save(out)
    history.to_csv(out + ".csv")
dist.destroy_process_group()
"""


def test_one_and_two_ranks_agree(clip, tmp_path):
    cached = caching.cache_features(clip, ScenePairs(**SOURCE), tmp_path, batch_size=8)
    pair, history = training.train_pair(clip, cached, "max", epochs=3, batch_size=8, lr=1e-2)
    script, out = tmp_path / "rank.py", tmp_path / "two.safetensors"
    script.write_text(RANK)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
        str(tmp_path),
        str(out),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(eclip.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=120, env=environment, capture_output=True)
    two = eclip.Projection.load(out, clip)
    torch.testing.assert_close(two.image.weight, pair.image.weight, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(two.text.weight, pair.text.weight, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_the_validation_loss_is_eq_9_on_full_batches(clip, cached):
    pair = training.new_pair(clip, 128, "tokens")
    rows = [cached.read(shard, "max") for shard in cached.shards]
    image, text = (torch.cat(parts) for parts in zip(*rows, strict=True))
    slow = []
    for start in range(0, len(text) // 8 * 8, 8):
        i, t = (
            z / z.norm(dim=-1, keepdim=True) for z in (pair.image(image[start : start + 8]), pair.text(text[start : start + 8]))
        )
        odds = (clip.logit_scale * i @ t.T).double().exp()
        own = odds.diagonal()
        slow.append(float((-(own / odds.sum(0)).log() - (own / odds.sum(1)).log()).mean() / 2))
    value = training.validation_loss(clip, cached, pair, "max", batch_size=8)
    assert value == pytest.approx(sum(slow) / len(slow), rel=1e-4)
