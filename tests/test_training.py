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
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tqdm import auto, std

import eclip_lib as eclip
from eclip_lib import feature_cache as caching
from eclip_lib import files, training, viewer
from eclip_lib.commands import explain
from eclip_lib.commands.pairs import fitting
from eclip_lib.datasets.image_text import CocoPairs, CsvPairs, ScenePairs, WebPairs, load_pairs
from eclip_lib.datasets.pair_views import augmentation

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
    return {path.name: path.read_bytes() for path in sorted(cache.view().folder.glob("[!.]*"))}


@torch.no_grad()
def test_the_cache_holds_what_pooling_each_pair_alone_gives(clip, tmp_path):
    backbone = eclip.load_attention("vit_tiny_patch16_224", None)
    source = ScenePairs(count=4, size=2)
    masks = {"tiny": backbone, "ground truth": True}
    cache = caching.cache_features(clip, source, tmp_path, masks, augment=None)
    names = ["attention", "average", "max", "masked_max:tiny", "masked_max:ground truth"]
    assert len(cache) == 4 and list(map(str, cache.columns)) == names
    rows = [pair for part in source.parts for pair in source.read(part)]
    for column in cache.columns:
        read = [cache.view().read(shard, column) for shard in cache.view().shards]
        image, text = (torch.cat(parts) for parts in zip(*read, strict=True))
        for k, (_, scene, caption) in enumerate(rows):
            picture = scene.image
            prepared = clip.preprocess(picture)[None]
            features = clip.encode_image(prepared)
            plain = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
            attention = backbone(plain, features.grid)
            if column.mask == "ground truth":  # a cell's share of foreground pixels
                starts = [(y, x) for y in range(0, 224, 32) for x in range(0, 224, 32)]
                cells = [(scene.labels[y : y + 32, x : x + 32] > 0).mean() for y, x in starts]
                attention = torch.tensor(cells, dtype=torch.float32)[None]
            expected = eclip.pool(features, column.method, attention)[0]
            torch.testing.assert_close(image[k], expected, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(text[k], clip.encode_text(caption)[0], atol=1e-5, rtol=1e-4)


def test_a_resnet_cache_reads_the_feature_map_or_the_tokens(tmp_path):
    resnet, source = eclip.load_clip("scenes-RN", None), ScenePairs(count=2, size=2)
    images = torch.stack([resnet.preprocess(scene.image) for _, scene, _ in source.read(source.parts[0])])
    with torch.no_grad():
        features = resnet.encode_image(images)
    cache = caching.cache_features(resnet, source, tmp_path, augment=None)
    assert list(map(str, cache.columns)) == ["attention", "average", "max", "tokens/average", "tokens/max"]
    read = {"max": ("feature_map", features.feature_map), "tokens/max": ("tokens", features.tokens)}
    for column, (reads, tokens) in read.items():
        torch.testing.assert_close(
            cache.view().read(cache.view().shards[0], column)[0], tokens.amax(1), atol=1e-4, rtol=1e-3
        )
        assert training.train_pair(resnet, cache, column, epochs=1, batch_size=2)[0].reads == reads


def test_ground_truth_masks_need_a_source_that_has_them(clip, tmp_path):
    for source, augment in ((ScenePairs(count=2), "deit"), (object(), None)):
        with pytest.raises(ValueError, match="ground-truth masks need"):
            caching.cache_features(clip, source, tmp_path, {"ground truth": True}, augment=augment)


def test_the_bar_counts_pairs(clip, tmp_path, monkeypatch):
    bars = []

    def bar(**options):
        bars.append(std.tqdm(**options | {"disable": False, "file": io.StringIO()}))
        return bars[-1]

    monkeypatch.setattr(caching, "tqdm", bar)
    for count in (3, 5):  # other pairs, other shards
        caching.cache_features(clip, ScenePairs(count, size=2), tmp_path, augment=None)
    assert [(one.total, one.n, one.unit) for one in bars] == [(3, 3, "pair"), (5, 5, "pair")]


def test_views_differ_and_workers_change_nothing(clip, tmp_path):
    source = ScenePairs(count=4, size=4)
    one, two = (caching.cache_features(clip, source, tmp_path / str(w), views=2, workers=w) for w in (0, 2))
    assert content(one) == content(two) and len(one) == 4 and one.identity == two.identity
    first, second = (view.read(view.shards[0], "max")[0] for view in map(one.view, (0, 1)))
    assert not torch.equal(first, second) and one.view(2) is one.view(0)


@pytest.mark.parametrize("broken", [0, 1])
def test_dropped_views_give_the_numbers_of_kept_ones_on_the_disk_of_one(clip, tmp_path, broken):
    """Views made when their epoch comes, several pairs side by side, also when they are broken off."""
    masks = {"tiny": eclip.load_attention("vit_tiny_patch16_224", None)}
    options = {"masks": masks, "views": 3, "batch_size": 8}
    kept = caching.cache_features(clip, ScenePairs(**SOURCE), tmp_path / "kept", **options)
    wanted = [{"pooling": p, "epochs": 4, "batch_size": 8, "lr": 1e-2} for p in ("max", "masked_max:tiny")]
    wanted = [settings | {"weight_decay": 0.05, "seed": 0, "init": "random"} for settings in wanted]
    alone = [training.train_pair(clip, kept, **settings) for settings in wanted]
    folder, states, seen = tmp_path / "dropped", [tmp_path / "a.pt", tmp_path / "b.pt"], []

    def watch(number, epoch, _):
        seen.append((number, epoch))
        shards = [path for path in folder.rglob("*.safetensors") if path.stat().st_size > 20_000]
        assert len(shards) == len(kept.view().shards)  # those of the attention are smaller
        if broken and seen == [(0, 1), (1, 1), (0, 2)]:
            raise KeyboardInterrupt

    def train():
        cache = caching.cache_features(clip, ScenePairs(**SOURCE), folder, **options, keep=False)
        assert cache.identity == kept.identity and len(cache) == len(kept)
        return training.train_pairs(clip, cache, wanted, watch, states)

    if broken:
        with pytest.raises(KeyboardInterrupt):
            train()
    for (pair, losses), (same, again) in zip(alone, train(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(pair.parameters(), same.parameters(), strict=True))
        assert list(losses["loss"]) == list(again["loss"])
    done = [(number, epoch) for epoch in range(1, 5) for number in (0, 1)]
    assert seen == (done[:3] + done[2:] if broken else done)


def test_a_masks_attention_is_computed_once_for_all_networks(tmp_path, monkeypatch):
    """On equal views alone: another input size is another picture."""
    mask, passes = eclip.load_attention("vit_tiny_patch16_224", None), []
    monkeypatch.setattr(mask.model.patch_embed, "forward", counted(mask.model.patch_embed.forward, passes))
    source, made = ScenePairs(count=4, size=2), {}
    for network, size, fresh in (
        ("scenes-ViT-32", None, 4),
        ("scenes-RN", None, 0),
        ("scenes-ViT-16", (288, 288), 4),
    ):
        clip, before = eclip.load_clip(network, None, **({"size": size} if size else {})), sum(passes)
        together = caching.cache_features(clip, source, tmp_path / "shared", {"tiny": mask})
        assert sum(passes) - before == fresh, network
        apart = caching.cache_features(clip, source, tmp_path / network, {"tiny": mask})
        made[network] = together.identity == apart.identity
    assert all(made.values())


def counted(forward, passes):
    def call(images, *arguments, **options):
        passes.append(len(images))
        return forward(images, *arguments, **options)

    return call


def test_one_tar_more_makes_one_shard_more(clip, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    pattern, made = f"{tmp_path}/{{a,b}}/*.tar", []
    for colour, place in (
        ("red", "a/0.tar"),
        ("tan", "b/1.tar"),
        ("blue", "b/0.tar"),
    ):  # also one of that name
        packed(tmp_path / place, [jpeg(colour)])
        view = caching.cache_features(clip, WebPairs(pattern), tmp_path / "cache").view()
        made.append({path: path.stat().st_mtime_ns for path in view.shards})
    assert [len(shards) for shards in made] == [1, 2, 3]
    assert made[0].items() <= made[1].items() <= made[2].items()


def test_another_configuration_is_another_folder(clip, tmp_path):
    folders = {
        caching.cache_features(clip, ScenePairs(count=2), tmp_path, **options).view().folder
        for options in ({}, {"augment": None}, {"seed": 1})
    }
    assert len(folders) == 3
    for options in ({"precision": "bf16"}, {"size": (224, 448)}):
        other = eclip.load_clip("scenes-ViT-32", **options)
        folders.add(caching.cache_features(other, ScenePairs(count=2), tmp_path).view().folder)
    assert len(folders) == 5


def test_deits_augmentation_takes_every_picture(clip):
    """At its strongest RandAugment would keep no bit of a channel, which Pillow refuses."""
    transform = augmentation(clip)
    ops = next(step.ops for step in transform.transforms if hasattr(step, "ops"))
    (posterize,) = (op for op in ops if op.name.startswith("Posterize"))
    assert [posterize.level_fn(level, {})[0] for level in (0, 5, 9, 10)] == [4, 2, 1, 1]
    for seed in range(300):
        random.seed(seed), torch.manual_seed(seed)
        for size in ((1, 1), (1, 500), (640, 480)):
            assert transform(Image.new("RGB", size, "red")).shape == (3, 224, 224)


def test_damage_is_found_named_and_mended(clip, cached, tmp_path):
    cache = caching.cache_features(clip, ScenePairs(**SOURCE), tmp_path, batch_size=8)
    before, view = content(cache), cache.view()
    view.shards[0].write_bytes(view.shards[0].read_bytes()[:-10])
    flipped = bytearray(view.shards[1].read_bytes())
    flipped[-5] ^= 1
    view.shards[1].write_bytes(flipped)
    view.shards[2].unlink()
    with pytest.warns(UserWarning, match="0000[01].safetensors is damaged"):
        caching.cache_features(clip, ScenePairs(**SOURCE), tmp_path, batch_size=8)
    assert content(cache) == before
    for note, half in zip(sorted(view.folder.glob("0*.json")), ("", "{", "[]"), strict=True):
        note.write_text(half)  # what is no whole note is not believed
    caching.cache_features(clip, ScenePairs(**SOURCE), tmp_path, batch_size=8)
    assert content(cache) == before


KILLED = """
import os, signal
import eclip_lib as eclip
from eclip_lib import feature_cache
from eclip_lib.datasets.image_text import ScenePairs
clip, whole = eclip.load_clip("scenes-ViT-32", None), iter([os.fsync] * 2)
os.fsync = lambda file: next(whole, lambda file: os.kill(os.getpid(), signal.SIGKILL))(file)
feature_cache.cache_features(clip, ScenePairs(count=24, size=8), {folder!r}, batch_size=8)
"""


def test_a_killed_pass_resumes_to_the_same_bytes(clip, tmp_path):
    """Killed while it writes the second shard, which stays half-written beside the first one and its note."""
    whole = caching.cache_features(clip, ScenePairs(**SOURCE), tmp_path / "whole", batch_size=8)
    job = subprocess.run([sys.executable, "-c", KILLED.format(folder=str(tmp_path / "cut"))])
    assert job.returncode == -signal.SIGKILL
    partial, *first = sorted(tmp_path.glob("cut/*/*"))
    assert partial.suffix == ".partial" and [p.name for p in first] == ["00000.json", "00000.safetensors"]
    times = [path.stat().st_mtime_ns for path in first]
    again = caching.cache_features(clip, ScenePairs(**SOURCE), tmp_path / "cut", batch_size=8)
    assert content(again) == content(whole)
    assert [path.stat().st_mtime_ns for path in first] == times


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
VIEW = viewer.View(NOISE, ["a circle"], torch.ones(1), {"clip": torch.rand(1, 2, 2)})
WRITERS = {  # file name: what writes more than 1000 bytes
    "bytes": lambda path: files.write(path, b"x" * 5000),
    "state.pt": lambda path: training.write_state(path, {"key": torch.zeros(5000)}),
    "maps.npz": lambda path: explain.write_npz(path, {"map": np.random.rand(5000)}),
    "bare.jpg": lambda path: explain._draw(VIEW, [path], {}, True, "jet", 0.5),
    "sheet.jpg": lambda path: explain._draw(VIEW, [path], {}, False, "jet", 0.5),
    "sheet.pdf": lambda path: explain._draw(VIEW, [path], {}, False, "jet", 0.5),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_clear_sentence(tmp_path, name):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError, match=f"no room for {name} .* free some space and run again"):
            WRITERS[name](tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def jpeg(colour):
    picture = io.BytesIO()
    Image.new("RGB", (30, 20), colour).save(picture, "JPEG")
    return picture.getvalue()


def packed(path, pictures, caption="a photo of the star"):
    """A shard in img2dataset's layout."""
    with tarfile.open(path, "w") as tar:
        for k, data in enumerate(pictures):
            for suffix, blob in (("jpg", data), ("txt", caption.encode()), ("json", b"{}")):
                about = tarfile.TarInfo(f"{k:05d}.{suffix}")
                about.size = len(blob)
                tar.addfile(about, io.BytesIO(blob))


def test_broken_images_of_a_web_dataset_are_skipped_and_counted(clip, tmp_path):
    for shard, pictures in enumerate(([jpeg("red"), b"broken", jpeg("blue")], [b"", b"broken"])):
        packed(tmp_path / f"{shard:05d}.tar", pictures)
    with pytest.warns(
        UserWarning, match="3 of 5 pairs were skipped: 2 with a picture that cannot be .* 1 without"
    ):
        cache = caching.cache_features(clip, WebPairs(tmp_path / "*.tar"), tmp_path / "cache")
    assert len(cache) == 2
    assert json.loads((cache.view().folder / "manifest.json").read_text())["skipped"] == 3
    assert sum(len(text) for _, text in training.batches(cache.view(), "max", 2, 0, 0)) == 2
    with pytest.raises(FileNotFoundError, match="no image-caption pair"):
        WebPairs(tmp_path / "none-*.tar")


def test_the_bar_of_a_pass_ends_full_where_pairs_are_left_out(clip, tmp_path, monkeypatch):
    lines = ["filepath\ttitle", "a.jpg\ta circle", "a.jpg\t", "gone.jpg\ta star", "a.jpg\ta ring"]
    (tmp_path / "a.jpg").write_bytes(jpeg("green")), (tmp_path / "list.csv").write_text("\n".join(lines))
    bars = []

    def tqdm(**options):
        bars.append(auto.tqdm(**options | {"disable": False, "file": io.StringIO()}))
        return bars[-1]

    monkeypatch.setattr(caching, "tqdm", tqdm)
    with pytest.warns(UserWarning, match="2 of 4 pairs were skipped"):
        caching.cache_features(clip, CsvPairs(tmp_path / "list.csv"), tmp_path / "cache")
    assert [(bar.n, bar.total) for bar in bars] == [(4, 4)]


def test_what_is_in_a_part_counts_not_its_name_and_size(clip, tmp_path):
    """A tar is padded: a corrected caption keeps its size; a picture of a list may be replaced."""
    shard, picture, table = (tmp_path / name for name in ("00000.tar", "a.jpg", "list.csv"))
    table.write_text("filepath\ttitle\na.jpg\ta circle\n")
    for source in (f"web:{shard}", f"csv:{table}"):
        made = []
        for caption, colour in (("a red star", "red"), ("a new ring", "red"), ("a new ring", "tan")):
            packed(shard, [jpeg(colour)], caption), picture.write_bytes(jpeg(colour))
            table.write_text(f"filepath\ttitle\na.jpg\t{caption}\n")
            kept, fresh = (
                caching.cache_features(clip, load_pairs(source), tmp_path / name, augment=None)
                for name in ("kept", f"{source[:3]} {caption} {colour}")
            )
            made.append(kept.identity)
            assert kept.identity == fresh.identity
        assert len(set(made)) == 3


def test_a_csv_of_paths_and_captions(clip, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg("green"))
    (tmp_path / "list.csv").write_text("filepath\ttitle\na.jpg\ta photo of the drop\n")
    assert len(caching.cache_features(clip, CsvPairs(tmp_path / "list.csv"), tmp_path / "cache")) == 1
    (tmp_path / "list.csv").write_text("path,title\n")
    with pytest.raises(ValueError, match="needs the columns filepath and title"):
        CsvPairs(tmp_path / "list.csv")


@pytest.mark.parametrize(
    "table, titles",
    [
        ('filepath\ttitle\na.jpg\t"Stop" sign\nb.jpg\t"a ""tab""\there"\n', ['"Stop" sign', 'a "tab"\there']),
        ('filepath,title\na.jpg,5" nail\nb.jpg,"red, green"\n', ['5" nail', "red, green"]),
        (
            "filepath,title\na.jpg,a\u2028line\x0bor\x85two\r\n\r\nb.jpg,b\r\n",
            ["a\u2028line\x0bor\x85two", "b"],
        ),
        ('filepath,title\na.jpg,"one\ntwo"\n', ["one\ntwo"]),
        ('filepath,title\na.jpg,"one\ntwo, on grey"\n', ["one\ntwo, on grey"]),
        ('filepath,title\na.jpg,"hello\nb.jpg,bye"\n', ['"hello', 'bye"']),
        ("filepath,title\na.jpg," + "x" * 200_000 + "\n", ["x" * 200_000]),
    ],
)
def test_captions_come_out_of_a_table_as_they_are(tmp_path, table, titles):
    (
        (tmp_path / "list.csv").write_bytes(table.encode()),
        (tmp_path / "b.jpg").touch(),
        (tmp_path / "a.jpg").touch(),
    )
    assert [title for _, title in CsvPairs(tmp_path / "list.csv").pairs] == titles


def test_mistakes_in_a_table_name_its_line(tmp_path):
    for table, words in [
        ("filepath,title,title\na.jpg,a,b\n", "once each"),
        ("filepath,title\n\na.jpg,a,b\n", "line 3: 3 fields, not 2"),
        ('filepath,title\na.jpg,"one\ntwo, grey"\na.jpg,5" nail\na.jpg,"6" nail\n', "line 2: a quote opens"),
        ("sep=;\nfilepath;title\n", "by tabs or commas; name them so in its first line, which has sep=;"),
    ]:
        (tmp_path / "list.csv").write_text(table)
        with pytest.raises(ValueError, match=words):
            CsvPairs(tmp_path / "list.csv")


def test_a_damaged_note_counts_as_none(clip, tmp_path):
    source = ScenePairs(4, size=2)
    made = caching.cache_features(clip, source, tmp_path)
    note = sorted(made.view().folder.glob("0*.json"))[0]
    whole = json.loads(note.read_text())
    for key, value in [("pairs", None), ("pairs", "7"), ("skipped", None), ("skipped", {"x": "y"})]:
        note.write_text(json.dumps(whole | {key: value}))
        assert len(caching.cache_features(clip, source, tmp_path)) == 4
        assert json.loads(note.read_text()) == whole


def test_a_tar_is_read_once_and_a_folder_of_that_name_is_left_out(clip, tmp_path):
    packed(tmp_path / "a.tar", [jpeg("green")])
    (tmp_path / "link.tar").symlink_to("a.tar"), (tmp_path / "manifest.tar").mkdir()
    source = WebPairs(f"{tmp_path}/{{*,a*}}.tar")
    assert len(source.parts) == 2 and "manifest" not in source.names
    with pytest.warns(UserWarning, match="manifest.tar cannot be read: Is a directory; the others go on"):
        assert len(caching.cache_features(clip, source, tmp_path / "cache")) == 1


def test_contents_changed_behind_an_old_date_are_noticed(clip, tmp_path):
    picture, table = tmp_path / "a.bmp", tmp_path / "list.csv"
    table.write_text("filepath,title\na.bmp,a photo\n")
    made = []
    for colour in ("green", "red"):
        Image.new("RGB", (32, 32), colour).save(picture)
        os.utime(picture, ns=(1, 1))
        made.append(caching.cache_features(clip, CsvPairs(table), tmp_path / "cache").identity)
    assert made[0] != made[1]


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
        value = eclip.contrastive_loss(pair, image, text, 14.3)
        assert float(value) == pytest.approx(slow_loss(pair.image(image), pair.text(text), 14.3), abs=1e-4)


def test_the_schedule_is_warm_up_then_cosine():
    rates = [training.learning_rate(step, 100, 10, 1e-4) for step in range(101)]
    assert rates[0] == 1e-6
    assert rates[5] == pytest.approx((1e-6 + 1e-4) / 2)
    assert rates[10] == pytest.approx(1e-4)
    assert rates[55] == pytest.approx((1e-4 + 1e-6) / 2) and rates[100] == pytest.approx(1e-6)
    # the paper's ten epochs warm up for a tenth, and so does one alone
    assert [training.learning_rate(step, 100, 100, 1e-4) for step in range(101)] == rates
    assert training.learning_rate(0, 1, 1, 1e-4) == 1e-4


def test_every_row_is_served_once_an_epoch(cached):
    seen = torch.cat([image for image, _ in training.batches(cached.view(), "max", 8, seed=0, epoch=1)])
    view = cached.view()
    stored = torch.cat([view.read(shard, "max")[0] for shard in view.shards])
    assert sorted(seen.sum(1).tolist()) == sorted(stored.sum(1).tolist())
    other = torch.cat([image for image, _ in training.batches(cached.view(), "max", 8, seed=0, epoch=2)])
    assert not torch.equal(seen, other)


def test_training_lowers_the_loss_and_locks_the_rest(clip, cached, tmp_path):
    before, seen = files.digest(clip.model), []
    settings = {"epochs": 8, "batch_size": 8, "lr": 1e-2}
    watch = lambda epoch, _: seen.append(epoch)  # noqa: E731
    pair, history = training.train_pair(clip, cached, "masked_max:tiny", on_epoch=watch, **settings)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert list(history["epoch"]) == seen == list(range(1, 9))
    assert files.digest(clip.model) == before
    pair.save(tmp_path / "pair.safetensors")
    again = eclip.Projection.load(tmp_path / "pair.safetensors", clip)
    kept = json.loads(again.metadata["settings"])
    assert again.metadata["pooling"] == "masked_max:tiny"
    assert (kept["epochs"], kept["augment"]) == (8, cached.about["augment"])
    assert again.metadata["mask"] == " ".join(cached.about["masks"]["tiny"])
    with pytest.raises(ValueError, match="was made for scenes-ViT-32"):
        eclip.Projection.load(tmp_path / "pair.safetensors", eclip.load_clip("scenes-ViT-16", None))
    other = {k: (v + 0.01).contiguous() for k, v in clip.model.state_dict().items()}
    save_file(other, tmp_path / "random.safetensors")  # called as the weights that the pair was made for
    with pytest.raises(ValueError, match="not for scenes-ViT-32 with random"):
        namesake = eclip.load_clip("scenes-ViT-32", tmp_path / "random.safetensors")
        eclip.Projection.load(tmp_path / "pair.safetensors", namesake)
    repeat, _ = training.train_pair(clip, cached, "masked_max:tiny", **settings)
    assert torch.equal(repeat.image.weight, pair.image.weight)


def test_a_pair_may_start_from_clips_own(clip):
    pair = training.new_pair(clip, 128, "tokens", init="clip")
    assert torch.equal(pair.image.weight, clip.projection.image.weight)
    resnet = eclip.load_clip("scenes-RN")
    pair = training.new_pair(resnet, resnet.projection.image.in_features, "tokens", init="clip")
    assert files.digest(pair) == files.digest(resnet.projection)  # its biases as well
    with pytest.raises(ValueError, match="init is"):
        training.new_pair(clip, 128, "tokens", init="zeros")


def test_mistakes_are_named(clip, cached):
    with pytest.raises(ValueError, match="not 'masked_max:dino'"):
        training.train_pair(clip, cached, "masked_max:dino")
    with pytest.raises(ValueError, match="holds features of scenes-ViT-32"):
        training.train_pair(eclip.load_clip("scenes-RN", None), cached, "max")


def test_a_training_fits_its_network():
    paper = {"mask": "vit_base_patch16_224.dino", "epochs": 10, "batch_size": 1024, "lr": 1e-4}  # §4.1
    assert fitting("ViT-B-16") == paper
    assert fitting("scenes-RN") == {"mask": "scenes-DINO", "epochs": 20, "batch_size": 256, "lr": 3e-3}


def test_eclip_train_makes_a_pair_that_explains(clip, tmp_path):
    from typer.testing import CliRunner

    from eclip_lib import cli

    out = tmp_path / "pair.safetensors"
    options = "--workers 0 --batch-size 4 --epochs 2".split()
    result = CliRunner().invoke(cli.app, ["train", "scenes:8", str(out), "--cache", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    assert "(chance 1.386)" in result.output  # ln 4
    trained = eclip.load_clip("scenes-ViT-32")
    pair = eclip.Projection.load(out, trained)
    settings = json.loads(pair.metadata["settings"])
    assert (settings["epochs"], settings["batch_size"], settings["lr"]) == (2, 4, 3e-3)  # the demo's rate
    assert "scenes-DINO" in pair.metadata["mask"]
    assert pair.metadata["pooling"] == "masked_max:mask" and out.with_suffix(".csv").exists()
    maps = eclip.explainer("eclip", trained, projection=pair)(
        torch.randn(1, 3, 224, 224), trained.encode_text("a photo of the star")
    )
    assert maps.shape == (1, 1, 7, 7)
    result = CliRunner().invoke(cli.app, ["train", "gcc3m", str(out)])
    assert "names no image-caption pairs" in str(result.exception)


RANK = """
import sys, torch, torch.distributed as dist
import eclip_lib as eclip
from eclip_lib import feature_cache, training
from eclip_lib.datasets.image_text import WebPairs
folder, out = sys.argv[1:]
dist.init_process_group("gloo")
clip = eclip.load_clip("scenes-ViT-32", None)
cached = feature_cache.cache_features(clip, WebPairs(folder + "/*.tar"), folder, batch_size=8)
pair, history = training.train_pair(clip, cached, "max", epochs=3, batch_size=8, lr=1e-2)
if dist.get_rank() == 0:
    pair.save(out)
    history.to_csv(out + ".csv")
dist.destroy_process_group()
"""


def test_one_and_two_ranks_agree(clip, tmp_path):
    for number, colours in enumerate(("red tan gold pink", "blue cyan navy teal", "black gray", "lime plum")):
        packed(tmp_path / f"{number}.tar", map(jpeg, colours.split() * 2), f"a photo of the {colours}")
    cached = caching.cache_features(clip, WebPairs(tmp_path / "*.tar"), tmp_path / "alone", batch_size=8)
    pair, history = training.train_pair(clip, cached, "max", epochs=3, batch_size=8, lr=1e-2)
    script, out = tmp_path / "rank.py", tmp_path / "two.safetensors"
    script.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(files.REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, script, tmp_path, out], check=True, timeout=120, env=environment, capture_output=True
    )
    two = eclip.Projection.load(out, clip)
    torch.testing.assert_close(two.image.weight, pair.image.weight, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(two.text.weight, pair.text.weight, atol=1e-5, rtol=1e-3)
