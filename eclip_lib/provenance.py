"""Where numbers come from: commit, versions, device, and `run.json`, the note of a run's folder."""

import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError

from . import files


def commit():
    """{commit: of this clone, or "unknown"; tree: whether files that git knows are "as committed" or
    "changed"}."""
    if not (files.REPOSITORY / ".git").exists() or not shutil.which("git"):
        return {"commit": "unknown", "tree": "unknown"}
    options = {"cwd": files.REPOSITORY, "capture_output": True, "text": True}
    commands = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    head, changes = (subprocess.run(["git", *words], **options).stdout.strip() for words in commands)
    return {"commit": head or "unknown", "tree": "changed" if changes else "as committed"}


def versions():
    """{what: version} of all that a number may hang on."""
    names = {"torch": "torch", "open_clip": "open_clip_torch", "timm": "timm", "eclip_lib": "eclip-lib"}
    found = {name: files.version_of(known) for name, known in names.items()}
    return {"python": platform.python_version()} | found


@cache
def device_name(device):
    """The name of a GPU; of a CPU its kind."""
    cuda = device.startswith("cuda") and torch.cuda.is_available()
    return torch.cuda.get_device_name(torch.device(device)) if cuda else f"{device} ({platform.machine()})"


GATHERED = ("weights", "datasets", "pairs", "notebooks")  # by name, from several processes


class _Part(BaseModel, strict=True):
    """What is read of what `run.json` says of a notebook."""

    state: str
    seconds: float
    changed: list[str] = []
    dropped: list[str] = []
    made: dict[str, str] = {}


class _Facts(BaseModel, strict=True):
    """What is read of `run.json`."""

    changed: list[str] = []
    dropped: list[str] = []
    settings: dict = {}
    weights: dict = {}
    datasets: dict[str, int] = {}
    pairs: dict = {}
    notebooks: dict[str, _Part] = {}


class Record:
    """A JSON file of facts that several processes add to; each `add` is atomic."""

    def __init__(self, path):
        self.path = Path(path)

    def read(self) -> dict:
        """All facts so far; {} where there are none, half of them, or others than `add` writes."""
        facts = files.read_json(self.path)
        try:
            _Facts.model_validate(facts)
        except ValidationError:
            return {}
        return facts

    def add(self, facts: dict):
        """Facts take the place of those of the same name; of what is `GATHERED` each keeps its own."""
        with files.alone(self.path.with_name(f".{self.path.name}.lock")):
            known = self.read()
            if not known and files.read_json(self.path):  # another program's, or a hand's: kept
                files.set_aside(self.path)
            gathered = {kind: known.get(kind, {}) | facts[kind] for kind in GATHERED if kind in facts}
            files.write(self.path, files.as_json(known | facts | gathered))
