"""Downloads over a loopback server that breaks on purpose, unpacking, `eclip data`, and no network at all."""

import hashlib
import io
import shutil
import tarfile
import threading
import time
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from export import write_coco, write_voc

import eclip_lib as eclip
from eclip_lib import cli
from eclip_lib import downloads as download
from eclip_lib.commands import forecast, passes
from eclip_lib.commands import resources as data
from eclip_lib.commands.notebooks import notebooks
from eclip_lib.networks import checkpoints as weights
from eclip_lib.studies import pooling_ablation

CONTENT = bytes(range(256)) * 20000  # 5 MB
NOWHERE = "http://127.0.0.1:9/file"  # nothing listens there


@pytest.fixture()
def server():
    """Serves `files`; `breaks`: so many transfers stop halfway; `ranges`: whether it knows byte ranges."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(self.headers.get("Range"))
            content = server.files.get(self.path.strip("/"))
            if content is None:
                return self.send_error(404)
            asked = server.ranges and self.headers["Range"]
            start = int(asked.removeprefix("bytes=").strip("-")) - server.off if asked else 0
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            for header in ({"Content-Length": str(len(content) - start)} | server.headers).items():
                self.send_header(*header)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            end = len(content)
            if server.breaks:
                server.breaks, end = server.breaks - 1, start + (len(content) - start) // 2
            self.wfile.write(content[start:end])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.breaks, server.ranges, server.requests = {"file": CONTENT}, 0, True, []
    server.off, server.headers = 0, {}
    server.url = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def sha(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_transfer_is_taken_up_again(server, tmp_path, ranges):
    server.breaks, server.ranges = 2, ranges
    path = download.fetch(server.url + "file", tmp_path / "file", len(CONTENT), sha(CONTENT))
    assert path.read_bytes() == CONTENT and len(server.requests) == 3 and list(tmp_path.iterdir()) == [path]
    assert [r is not None for r in server.requests] == [False, True, True]


def test_a_server_that_sends_another_range_is_asked_for_all(server, tmp_path):
    server.off, path = 1, tmp_path / "file"
    download.partial_of(path).write_bytes(CONTENT[:100])
    assert download.fetch(server.url + "file", path).read_bytes() == CONTENT
    assert server.requests == ["bytes=100-", None]


@pytest.mark.parametrize(
    "headers, expected, said",
    [
        ({"Content-Encoding": "gzip"}, None, "what is packed by gzip, not the file"),
        ({"Content-Type": "text/html"}, None, "a web page, not the file"),
        ({"Transfer-Encoding": "chunked"}, None, "IncompleteRead"),
        ({}, len(CONTENT) + 1, "size or checksum differs"),
        ({}, len(CONTENT) - 1, "size or checksum differs"),
    ],
)
def test_what_is_not_the_file_is_refused_without_a_checksum(server, tmp_path, headers, expected, said):
    server.headers = headers
    with pytest.raises(OSError, match=said):
        download.fetch(server.url + "file", tmp_path / "file", expected)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "abc"}])
def test_what_was_no_part_of_the_file_is_fetched_afresh(server, tmp_path, headers):
    (tmp_path / ".file.eclip-partial").write_bytes(b"x" * 100)
    server.headers = headers
    path = download.fetch(server.url + "file", tmp_path / "file", len(CONTENT), sha(CONTENT))
    assert path.read_bytes() == CONTENT and server.requests == ["bytes=100-", None]


def test_a_killed_download_goes_on_where_it_stopped(server, tmp_path):
    (tmp_path / ".file.eclip-partial").write_bytes(CONTENT[:3_000_000])
    (tmp_path / "file.partial").write_bytes(b"mine")
    path = download.fetch(server.url + "file", tmp_path / "file", len(CONTENT), sha(CONTENT))
    assert path.read_bytes() == CONTENT and (tmp_path / "file.partial").read_bytes() == b"mine"
    assert server.requests == ["bytes=3000000-"]


def test_what_cannot_be_downloaded_says_why_and_leaves_nothing(server, tmp_path, monkeypatch):
    server.files["other"] = b"x" * 100
    begin = time.time()
    wrong = {"404": (server.url + "none", 5), "checksum differs": (server.url + "other", 100)}
    for message, (url, expected) in (wrong | {"refused": (NOWHERE, 5)}).items():
        with pytest.raises(OSError, match=message):
            download.fetch(url, tmp_path / "file", expected, sha(CONTENT))
    assert list(tmp_path.iterdir()) == [] and time.time() - begin < 10
    server.breaks = 100
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(OSError, match="connection closed after"):
        download.fetch(server.url + "file", tmp_path / "file", len(CONTENT), sha(CONTENT))
    assert (tmp_path / ".file.eclip-partial").exists()  # for the next attempt


def test_a_full_disk_is_noticed_before_the_transfer(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    with pytest.raises(OSError, match="file needs 5.12 MB on the disk of .* 1 kB free"):
        download.fetch(server.url + "file", tmp_path / "new" / "file", len(CONTENT))
    assert server.requests == []


def archive(kind, members):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as file:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                if content is None:
                    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                info.size = len(content or b"")
                file.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_unpacking_merges_and_refuses_to_leave_the_folder(tmp_path, kind):
    root, path = tmp_path / "root", tmp_path / f"a.{kind}"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "mine.json").write_text("kept")
    path.write_bytes(archive(kind, {"annotations/new.json": b"new", "val/1.jpg": b"1"}))
    download.unpack(path, root)
    there = ["annotations/mine.json", "annotations/new.json", "val/1.jpg"]
    assert sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) == there
    bad = [{"good": b"1", name: b"2"} for name in ("../evil", "/evil", "a/../../evil")]
    bad += [{"good": b"1", "link": None}] if kind == "tar" else []
    for members in bad:
        path.write_bytes(archive(kind, members))
        with pytest.raises(ValueError, match="not unpacked"):
            download.unpack(path, root)
    assert not list(tmp_path.rglob("evil")) and not list(tmp_path.rglob("good"))
    path.write_bytes(b"nothing of the sort")
    with pytest.raises(ValueError, match="neither a tar nor a zip"):
        download.unpack(path, root)


@pytest.fixture()
def small_registry(server, tmp_path, monkeypatch):
    """The registry with datasets and weights of a few kilobytes on the loopback server."""
    scenes = eclip.load_dataset("scenes", limit=3)
    write_voc(tmp_path / "voc", scenes)
    write_coco(tmp_path / "coco", scenes)
    known = dict(weights.registry())
    known["datasets"] = dict(known["datasets"])
    for name, file in (("voc2012", "voc.tar"), ("coco2017", "coco.zip")):
        stem, _, kind = file.partition(".")
        inside = {path: path.read_bytes() for path in (tmp_path / stem).rglob("*") if path.is_file()}
        packed = archive(kind, {str(p.relative_to(tmp_path / stem)): data for p, data in inside.items()})
        about = {"url": server.url + file, "bytes": len(packed), "md5": hashlib.md5(packed).hexdigest()}
        known["datasets"][name] = known["datasets"][name] | {"images": 3, "files": [about]}
        server.files[file] = packed
    monkeypatch.setattr(weights, "registry", lambda: known)
    monkeypatch.setenv("ECLIP_WEIGHTS", str(tmp_path / "weights"))
    return known


def states(run):
    return dict(data.status(run)[["part", "state"]].itertuples(index=False))


def test_status_and_fetch(small_registry, server, tmp_path, capsys, monkeypatch):
    root = tmp_path / "data"
    names = {"datasets": "voc2012,coco2017", "networks": "ViT-B-32"}
    run = eclip.load_profile("paper", device="cpu", root=str(root), **names)
    assert set(states(run).values()) == {"missing"}
    server.breaks = 1
    assert data.fetch("voc2012", root) == f"voc2012: 3 images under {root}"
    (root / "val2017").mkdir()
    found = states(run)
    assert found["voc2012"] == "present" and found["coco2017"].startswith("partial:")
    assert "instances_val2017.json is missing" in found["coco2017"]
    data.fetch("coco2017", root)
    assert states(run)["coco2017"] == "present"
    before = len(server.requests)
    data.fetch("coco2017", root)
    assert len(server.requests) == before and not list(root.glob("*.tar")) and not list(root.glob("*.zip"))
    picture = next((root / "val2017").glob("*.jpg"))
    whole = picture.read_bytes()
    for broken, state in (
        (whole[:-1], "partial: 1 files are not as they came"),
        (whole[:-1] + b"x", "present"),
    ):
        picture.write_bytes(broken)  # of another size; or only of other content, which `status` does not read
        assert states(run)["coco2017"].startswith(state)
        data.fetch("coco2017", root)
        assert picture.read_bytes() == whole
    assert len(server.requests) == before + 2
    checked = data.status(run).set_index("part")["checked"]
    assert checked["coco2017"] == "sizes, not contents"
    said = data.as_text(data.status(run)).splitlines()
    assert "coco2017: present (" in " ".join(said) and f"    where    {root}" in said
    assert max(map(len, said)) < 90 + len(str(root))  # a terminal, not a table
    monkeypatch.setattr("sys.argv", ["eclip", "data", "fetch", "imagenet-s50", "gcc3m", "--root", str(root)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code
    printed = capsys.readouterr().out
    assert "data_preparation.sh" in printed and "img2dataset" in printed and str(root) in printed
    with pytest.raises(ValueError, match="nothing known of 'mnist'"):
        data.fetch("mnist", root)


@pytest.mark.parametrize("pairs, count", [("web:{}/{{0..1}}.tar", 2), ("web:{}", 2), ("csv:{}/0.csv", 1)])
def test_pairs_are_found_where_training_finds_them(tmp_path, pairs, count):
    folder = tmp_path / "of [x]"
    for name in ("0.tar", "1.tar", "0.csv"):
        eclip.files.write(folder / name, "x")
    for word, state in ((folder, f"present: {count} files"), (tmp_path / "gone", "missing")):
        run = eclip.load_profile("demo", device="cpu", pairs=pairs.format(word))
        assert data.status(run).set_index("part")["state"][run.pairs] == state


@pytest.mark.parametrize("own", [False, True])
def test_a_fetch_that_is_killed_while_unpacking_leaves_nothing(
    small_registry, server, tmp_path, monkeypatch, own
):
    root, archive = tmp_path / "data", tmp_path / "data" / "voc.tar"
    eclip.files.write(root / ".unpacking-x" / "VOCdevkit" / "1.jpg", "of a killed one")
    if own:
        archive.write_bytes(server.files["voc.tar"])
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(download, "unpack", lambda *_: exec("raise KeyboardInterrupt"))
        data.fetch("voc2012", root)
    assert archive.exists()
    data.fetch("voc2012", root)
    names = {path.name for path in root.iterdir()}
    assert names == {"VOCdevkit", ".voc.tar.unpacked"} | ({"voc.tar"} if own else set())


def test_a_file_in_the_way_of_a_dataset_is_named_before_the_download(small_registry, server, tmp_path):
    eclip.files.write(tmp_path / "VOCdevkit", "mine")
    with pytest.raises(FileExistsError) as error:
        data.fetch("voc2012", tmp_path)
    assert error.value.filename == str(tmp_path / "VOCdevkit") and not server.requests


def test_an_interrupted_fetch_of_two_files_keeps_the_first(small_registry, server, tmp_path, monkeypatch):
    files = small_registry["datasets"]["voc2012"]["files"] + small_registry["datasets"]["coco2017"]["files"]
    small_registry["datasets"]["voc2012"]["files"] = files
    right, files[1]["url"] = files[1]["url"], NOWHERE
    with pytest.raises(OSError):
        data.fetch("voc2012", tmp_path / "data")
    files[1]["url"], before = right, len(server.requests)
    data.fetch("voc2012", tmp_path / "data")
    assert len(server.requests) == before + 1


def test_weights_come_from_the_folder_or_the_registry(small_registry, server, tmp_path):
    model = eclip.load_clip("ViT-S-32-alt", None).model
    buffer = io.BytesIO()
    torch.save({k: v + 0.01 if v.is_floating_point() else v for k, v in model.state_dict().items()}, buffer)
    content = server.files["small.pt"] = buffer.getvalue()
    about = {"for": "ViT-S-32-alt", "tag": "openai", "licence": "", "url": server.url + "small.pt"}
    about |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    small_registry["weights"] = {"small.pt": about}
    server.breaks = 1
    for _ in range(2):  # downloaded, then found
        clip = eclip.load_clip("ViT-S-32-alt", "openai")
        assert torch.equal(clip.model.visual.proj, model.visual.proj + 0.01) and clip.pretrained == "openai"
    assert len(server.requests) == 2
    run = eclip.load_profile("paper", device="cpu", networks="ViT-S-32-alt")
    assert states(run)["ViT-S-32-alt: small.pt"] == "present"
    for broken, state in ((content[:-1], "partial"), (content[:-1] + b"x", "present")):
        (weights.folder() / "small.pt").write_bytes(broken)
        assert states(run)["ViT-S-32-alt: small.pt"].startswith(state)
        data.fetch("small.pt", None)
        assert (weights.folder() / "small.pt").read_bytes() == content


def test_what_a_user_brought_is_kept(small_registry, server, tmp_path):
    root, mine = tmp_path / "data", tmp_path / "data" / "annotations" / "instances_val2017.json"
    root.mkdir()
    (root / "coco.zip").write_bytes(server.files["coco.zip"])  # whole: taken, and left there
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    (root / "voc.tar").write_bytes(b"my own")
    with pytest.warns(
        UserWarning, match="1 files in .*kept as annotations/instances_val2017.json.replaced-1"
    ):
        data.fetch("coco2017", root)
    assert server.requests == [] and (root / "coco.zip").read_bytes() == server.files["coco.zip"]
    with pytest.warns(UserWarning, match="1 files in .* kept as voc.tar.replaced-1"):
        data.fetch("voc2012", root)
    assert mine.with_name(f"{mine.name}.replaced-1").read_bytes() == b"mine" != mine.read_bytes()
    assert (root / "voc.tar.replaced-1").read_bytes() == b"my own" and not (root / "voc.tar").exists()


def test_without_a_network_one_sentence_comes_within_seconds(small_registry, monkeypatch, capsys):
    known = {name: {**about, "url": NOWHERE} for name, about in small_registry["weights"].items()}
    monkeypatch.setitem(small_registry, "weights", known)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    begin = time.time()
    registered = "ViT-B-16.pt .351 MB. is not in .*weights and could not be downloaded; .* ECLIP_WEIGHTS"
    neither = "neither in the cache nor could they be downloaded"
    for load, words, *arguments in (
        (eclip.load_clip, registered, "ViT-B-16"),
        (eclip.load_clip, neither, "ViT-B-32", "laion2b_s34b_b79k"),
        (eclip.load_attention, "dino_vitbase16_pretrain.pth", "vit_base_patch16_224.dino"),
        (eclip.load_attention, "vit-b-300ep.pth.tar", "vit_base_patch16_224", "vit-b-300ep.pth.tar"),
        (eclip.load_attention, neither, "vit_small_patch14_dinov2.lvd142m"),
        (eclip.Projection.find, "no projection pair at nobody/here, here or on the hub", "nobody/here", None),
    ):
        with pytest.raises((ValueError, OSError), match=words) as error:
            load(*arguments)
        assert "\n" not in str(error.value)
    assert time.time() - begin < 15
    assert capsys.readouterr().err == ""


def test_the_plan_counts_passes_and_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", "eclip reproduce --profile paper --networks ViT-B-16 --dry-run".split())
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code
    printed = capsys.readouterr().out
    assert "9 notebooks" in printed and "10 views of each, of which the disk holds one at a time" in printed
    assert "voc2012 (1449 images)" in printed and "eclip data fetch" in printed and "GPU hours" in printed
    assert "GPU" not in forecast.as_text(eclip.load_profile("demo"))
    per_image = forecast.encoder_flops("ViT-B-16")
    tokens, width = 197, 768  # twelve blocks of q, k, v, out and a fourfold MLP, attention itself,
    by_hand = 12 * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)  # and the patch embedding
    by_hand += 2 * 196 * 768 * width + 2 * width * 512
    assert abs(per_image - by_hand) < 0.05 * by_hand


@pytest.mark.parametrize("network, columns", [("scenes-ViT-32", 9), ("scenes-RN", 9)])
def test_the_plans_bytes_are_those_of_a_cache(tmp_path, network, columns):
    run = eclip.load_profile("demo", networks=network, pairs="scenes:200", limit=2, out=tmp_path)
    clip, models = run.load_clip(network), run.load_masks()
    cache = run.features(clip, pooling_ablation.masks_for(run, clip, models))
    assert len(cache.columns) == columns
    written = sum(path.stat().st_size for path in cache.folder.glob("*.safetensors"))
    assert written == pytest.approx(200 * forecast.bytes_of_a_pair(network, cache.about["masks"]), rel=0.02)
    attention = sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*.safetensors")) - written
    plan = forecast.plan(run).set_index("part")
    assert attention / 1e9 == pytest.approx(plan["GB"]["masks, shared"], rel=0.15)
    assert plan["trainings"][network] == len(run.every_training(cache.columns, clip.is_vit))


def test_the_plan_counts_the_passes_that_features_take(tmp_path):
    run = eclip.load_profile("demo", networks="scenes-ViT-32,scenes-RN", pairs="scenes:8", out=tmp_path)
    counts, models = {"clip": 0, "masks": 0}, run.load_masks()

    def count(module, inputs, _):
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
            counts["clip" if module.bias is None else "masks"] += len(inputs[0])

    with torch.nn.modules.module.register_module_forward_hook(count):
        for network in run.networks:
            clip = run.load_clip(network)
            run.features(clip, pooling_ablation.masks_for(run, clip, models))
    plan = forecast.plan(run).set_index("part")["pair passes"]
    assert counts == {"clip": plan[run.networks].sum(), "masks": plan["masks, shared"]}


def test_other_trainings_of_a_network_are_passes_more():
    run = eclip.load_profile("demo", limit=50)
    plans = [forecast.plan(run), forecast.plan(run.model_copy(update={"scratch": {}, "replicates": {}}))]
    more, less = (plan.set_index("part")["image passes"]["scenes-ViT-32"] for plan in plans)
    assert more - less == (1 + 5 + 4) * 2 * 50  # the small set's, those of 01, and 08's but for its one


def test_the_plan_for_a_crawl_is_the_measured_page():
    page = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text().replace("\n", " ")
    for rate in (forecast.ASSUMED_RATE, forecast.public_rate()):
        for name, gpus, *values in forecast.crawl_plan(rate=rate).round(3).itertuples(index=False):
            cells = [name, str(gpus), *(f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in values)]
            assert f"| {' | '.join(cells)} |" in page
    times, known = forecast.public_rate() / forecast.ASSUMED_RATE, forecast.crawl_plan(rate=rate, known=True)
    size, seconds = forecast.PICTURE
    trained = pd.read_csv(forecast.BENCHMARKS / "foundation.csv").set_index("what")["ours"]
    trained = int(trained["training over the cache, C=512, batch 1024"])
    assert round(times) == 4 and 10 * 3.318e6 / trained / 60 == pytest.approx(15, rel=0.1)
    for words in (
        f"{forecast.PUBLIC_IMAGES:,} images a second",
        f"{rate / 1e12:.0f} TFLOP/s, four times",
        f"{known['hours'][0]:.2f} hours of one such GPU for GCC3M and {known['cores a GPU'][0]:.1f} cores",
        f"{size / 1e3:.0f} kB a stored picture and {1000 * seconds:.1f} ms to decode",
        f"{trained:,} pairs a second",
        "ten epochs of GCC3M take a quarter of an hour",
    ):
        assert words in page, words


def test_passes_are_counted_in_a_notebooks_own_kernel(tmp_path):
    code = """import torch, eclip_lib as eclip
eclip.load_clip("scenes-ViT-32").encode_image(torch.zeros(3, 3, 224, 224))
eclip.load_attention("vit_tiny_patch16_224", None)(torch.zeros(2, 3, 224, 224))
assert limit == 5"""
    parameters = nbformat.v4.new_code_cell("limit = None", metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (tmp_path / "out").mkdir()
    nbformat.write(book, tmp_path / "book.ipynb")
    found = passes.counted(tmp_path / "book.ipynb", tmp_path / "out", 5)
    assert found == {"coarse": 3, "fine": 0, "others": 0, "masks": 2}
    assert list(pd.read_csv(forecast.PASSES)["notebook"]) == [path.stem for path in notebooks()]


def test_a_plan_counts_the_pairs_that_are_there(samples, tmp_path):
    for number in range(5):  # three are counted, the others taken by their size
        pairs = {f"{k}.{end}": b"x" * 9000 for k in range(20) for end in ("jpg", "txt")}
        (tmp_path / "gcc3m").mkdir(exist_ok=True)
        (tmp_path / "gcc3m" / f"{number}.tar").write_bytes(archive("tar", pairs))
    (tmp_path / "gcc3m" / "00.tar").write_bytes(b"cut off")
    for pairs, count in (
        (f"coco:{samples / 'coco'}", 395),
        (f"web:{tmp_path}/gcc3m/*.tar", 100),
        (f"web:{tmp_path}/gcc3m/[01].tar", 40),
        ("web:/here/cc12m/*.tar", 12_423_374),
        ("coco-train:/here", 591_753),
        (None, 3000),
    ):
        assert forecast.pair_count(eclip.load_profile("demo", pairs=pairs)) == count


def test_a_profile_without_pairs_trains_nothing():
    run = eclip.load_profile("photos")
    assert [path.stem[:2] for path in notebooks(run)] == ["00", "01", "04", "06", "07", "08"]
    assert list(forecast.plan(run)["pair passes"]) == [0, 0, 0]
    needed = data.status(run)["part"]
    assert list(needed) == ["voc2012", "ViT-B-32: ViT-B-32.pt"]


def test_the_registry_is_complete():
    known = weights.registry()
    for about in [*known["datasets"].values(), *known["pairs"].values()]:
        assert about["licence"] and about["images"]
        assert "steps" in about or all({"url", "bytes", "md5"} <= set(f) for f in about["files"])
    for name, about in known["weights"].items():
        assert about["url"].endswith(name) and about["licence"]
        assert about["tag"] != "openai" or (about["sha256"] in about["url"] and about["bytes"])
