"""Sharing a pair: local folders, and a local stand-in of the hub's HTTP calls."""

import base64
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import eclip_lib as eclip
from eclip_lib.files import REPOSITORY, digest

PAIR = REPOSITORY / "results" / "demo" / "pairs" / "scenes-ViT-32-ECLIP.safetensors"


def test_a_folder_holds_the_pair_and_a_card(tmp_path, monkeypatch):
    pair = eclip.Projection.load(PAIR)
    pair.save_pretrained(tmp_path / "pair")
    again = eclip.Projection.from_pretrained(str(tmp_path / "pair"))
    assert digest(again) == digest(pair) == digest(eclip.Projection.load(PAIR))
    assert again.metadata == pair.metadata and again.reads == pair.reads
    card = (tmp_path / "pair" / "README.md").read_text()
    assert card.startswith("---\n") and "license: mit" in card and "for scenes-ViT-32" in card
    assert all(f"| {name} | `{value}` |" in card for name, value in pair.metadata.items())
    assert "pipeline_tag: image-segmentation\n" in card
    assert "](https://arxiv.org/abs/2209.07046)" in card and "[eclip_lib](https://" in card
    with monkeypatch.context() as patch:  # a clone on the path, not installed
        patch.setattr(importlib.metadata, "metadata", lambda name: importlib.metadata.distribution("no-such"))
        assert str(pair.generate_model_card()) == card
    eclip.load_dataset("scenes")[0].image.save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = {"REPO": "pair"}  # its lines run
    exec(card.split("```python\n")[1].split("```")[0], names)
    assert names["heat"].shape == (224, 224) and float(names["heat"].max()) == 1
    (tmp_path / "mine.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="no projection.safetensors in .*, which holds mine.safet"):
        eclip.Projection.from_pretrained(str(tmp_path))


def test_a_pair_is_read_from_wherever_it_lies(tmp_path, monkeypatch):
    pair, folder = eclip.Projection.load(PAIR), tmp_path / "pair"
    for network in ("first", "second"):  # the card is of the pair that lies beside it
        pair.metadata["network"] = network
        pair.save_pretrained(folder)
        assert f"| network | `{network}` |" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("my own words")
    pair.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "my own words"
    (folder / "config.json").write_text("null")  # the mixin's, which no pair needs
    for place in (folder, folder / "projection.safetensors"):
        assert digest(eclip.Projection.from_pretrained(place)) == digest(pair)
    for word in ("./nowhere", tmp_path / "nowhere", "a b/c d"):
        with pytest.raises(FileNotFoundError, match=f"no projection pair at {word}, here or on the hub"):
            eclip.Projection.from_pretrained(word)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "hub.example.org")
    with pytest.raises(FileNotFoundError, match="HF_ENDPOINT: unknown url type"):
        eclip.Projection.from_pretrained("me/pair")


@pytest.fixture()
def hub():
    """Just enough of the hub: make a repository, take a commit of small files, hand them out again."""
    files, calls = {}, []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, about=None, headers=(), body=None, code=200):
            body = json.dumps(about).encode() if body is None else body
            self.send_response(code)
            for name, value in {"Content-Length": len(body), **dict(headers)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"] or 0))
            calls.append(self.path)
            if "preupload" in self.path:
                wanted = json.loads(content)["files"]
                about = {"uploadMode": "regular", "shouldIgnore": False}
                return self.answer({"files": [{"path": f["path"]} | about for f in wanted]})
            if "commit" in self.path:
                for line in map(json.loads, content.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                url = f"{address}/me/pair"
                made = {"commitUrl": f"{url}/commit/{'0' * 40}", "commitOid": "0" * 40}
                return self.answer(made | {"pullRequestUrl": None})
            return self.answer({"url": f"{address}/me/pair", "id": "me/pair", "name": "me/pair"})

        def do_GET(self):
            name = self.path.split("?")[0].rpartition("/resolve/")[2].partition("/")[2]
            if name in files:
                return self.answer(body=files[name], headers={"ETag": f'"{name}"', "X-Repo-Commit": "0" * 40})
            about = {"error": "not found", "id": "me/pair", "sha": "0" * 40, "siblings": []}
            self.answer(about, code=404 if "/resolve/" in self.path else 200)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield address, files, calls
    server.shutdown()


def test_a_pair_goes_to_the_hub_and_comes_back(hub, tmp_path):
    address, files, calls = hub
    code = f"""
import torch, eclip_lib as eclip
pair = eclip.Projection.load({str(PAIR)!r})
pair.push_to_hub("me/pair", token="hf_x")
again = eclip.Projection.from_pretrained("me/pair", token=False)
assert all(torch.equal(a, b) for a, b in zip(pair.state_dict().values(), again.state_dict().values()))
assert again.metadata == pair.metadata
"""
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    assert files["projection.safetensors"] == PAIR.read_bytes() and b"# ECLIP's pair" in files["README.md"]
    assert any("commit" in call for call in calls)
