"""Profiles: which networks, weights, datasets and device a run uses. Those of `SHIPPED` are YAML files beside
this one; a profile may also be the path of another file of that form."""

import os
from pathlib import Path
from typing import Annotated, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .. import files
from ..datasets import REGISTRY
from ..networks import demo
from ..networks.checkpoints import is_path, registry

UNCHANGED = "profile"  # a parameter's value that means: as the profile says
SHIPPED = ("demo", "photos", "paper-quick", "paper")
INCIDENTAL = {"device", "root", "workers", "batch_size"}  # what moves no number of a table

Number = Annotated[int, Field(strict=True)]  # neither True nor "4"
Count = Annotated[Number, Field(ge=1, lt=2**32)]
Seed = Annotated[Number, Field(ge=0, lt=2**32)]
Processes = Annotated[Number, Field(ge=0, le=1024)]


class Training(BaseModel):
    """How a new pair is trained, see `training` and `feature_cache`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    epochs: Number = Field(ge=1, le=100_000)
    batch_size: Number = Field(ge=2, le=2**24)  # one pair alone has nothing to be told apart from
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    views: Number = Field(ge=1, le=10_000)
    augment: Literal["deit"] | None


class Profile(BaseModel):
    """A profile's file."""

    model_config = ConfigDict(extra="forbid")
    networks: list[str] = Field(min_length=1)
    pretrained: str | None
    datasets: list[str] = Field(min_length=1)
    replicates: dict[str, list[str]]  # network: its trainings, from different seeds
    scratch: dict[str, str] = {}  # network: its weights after a training on `pairs` alone (Table 4)
    root: str | None
    limit: Count | None
    batch_size: Number = Field(ge=1, le=2**24)
    workers: Processes
    device: str
    precision: Literal["fp32", "bf16"]
    seed: Seed
    masks: dict[str, str]  # name: timm or demo network, or "network=checkpoint"
    pairs: str | None  # image-caption pairs to train on, see `datasets.image_text`; None: nothing is trained
    limit_pairs: Count | None = None  # only the first so many of them
    projection: str | None = None  # pairs of one's own for ECLIP, see `Projection.find`; None: notebook 05's
    training: Training
    trainings: Number = Field(ge=1, le=1000)  # seeds of a trained pair

    @property
    def weights(self):
        """What the networks' weights are, in words for titles."""
        if self.pretrained is None:
            return "random weights: nothing here was learned"
        own = self.pretrained == "default" and set(self.networks) <= {*demo.NETWORKS}
        return "this repository's mini CLIPs" if own else f"weights: {self.pretrained}"

    def title(self, network):
        """The network's name for tables and figures; random weights say so."""
        return f"{network} (random weights)" if self.pretrained is None else network

    @property
    def mask_models(self) -> dict[str, tuple[str, str]]:
        """{name: (network, checkpoint or "")} of `masks`."""
        parts = {name: where.partition("=") for name, where in self.masks.items()}
        return {name: (network, checkpoint) for name, (network, _, checkpoint) in parts.items()}

    def root_of(self, name):
        """The folder of a dataset: `root` is one folder for all, or "name=folder,name=folder"."""
        roots = _by_dataset(str(self.root))
        return self.root if roots is None else roots.get(name)


def read_settings(profile, parameters):
    """A profile's file with the parameters that replace its settings -> (the file, settings for a `Run`,
    among them `name`, `out`, `part` and `changed`). Raises ValueError, FileNotFoundError."""
    path = files.place(profile)
    if str(profile) in SHIPPED:
        path = Path(__file__).parent / f"{profile}.yaml"
    if not os.path.isfile(path):  # False for what no file can be called
        said = f"no profile {files.few([profile])!r}; there are {', '.join(SHIPPED)}"
        raise FileNotFoundError(f"{said}, or give the path of a YAML file")
    if path.stem.casefold() in SHIPPED and str(profile) not in SHIPPED:
        said = f"{path}: a profile of your own needs a name of its own"
        raise ValueError(f"{said}; {path.stem} is the repository's")
    before, known = _read(path), [*Profile.model_fields, "out", "part", "dropped"]
    for name in parameters:
        files.require_known(name, known, "a profile has no parameter")
    given = {k: v for k, v in parameters.items() if v != UNCHANGED and (v is not None or k == "pretrained")}
    out, part, dropped = given.pop("out", None), given.pop("part", None), _listed(given.pop("dropped", []))
    settings = _anchored(before) | given
    if isinstance(settings["training"], dict):
        settings["training"] = before["training"] | settings["training"]
    for name in ("networks", "datasets"):
        settings[name] = _listed(settings[name])
    if str(settings["pretrained"]).lower() in ("none", "null", "random"):
        settings["pretrained"] = None
    if settings["networks"] != before["networks"] or settings["pretrained"] != before["pretrained"]:
        settings["replicates"] = {}
    if settings["pretrained"] != before["pretrained"] and "scratch" not in given:
        settings["scratch"] = {}
    changed = [name for name in given if settings[name] != before[name]]
    compared = {name: settings[name] for name in changed if name not in INCIDENTAL}
    place = path.stem if not compared else f"{path.stem}-{files.digest(compared)[:6]}"
    own = files.REPOSITORY / "runs" / place
    out = files.place(out) if out else own
    if part is None:  # one of the profile's networks, in a folder that is not for it alone
        alone = len(settings["networks"]) == 1 < len(before["networks"]) and out.absolute() != own
        part = settings["networks"][0] if alone and settings["networks"][0] in before["networks"] else ""
    named = ("networks", "replicates", "scratch", "datasets", "masks")
    kept = {name: _without(settings[name], dropped) for name in named}
    kept |= {"pairs": None} if "pairs" in dropped else {}
    kept["whole"] = _without(before["networks"] if part else settings["networks"], dropped)
    about = {"name": path.stem, "out": out, "part": part, "changed": changed, "dropped": dropped}
    return path, settings | kept | about


def _without(names, dropped):
    if not isinstance(names, list | dict):
        return names  # its check says what it must be
    kept = [name for name in names if name not in dropped]
    return {name: names[name] for name in kept} if isinstance(names, dict) else kept


class _Once(yaml.SafeLoader):
    """YAML in which no key is given twice."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        if twice := [key for number, key in enumerate(names) if key in names[:number]]:
            said = f"{files.few(twice)} given twice, until line {node.end_mark.line}"
            raise yaml.constructor.ConstructorError(None, None, said)
        return super().construct_mapping(node, deep)


def _read(path):
    try:
        settings = yaml.load(path.read_text(), _Once)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not readable YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(settings, dict):
        known = sorted(Profile.model_fields)
        raise ValueError(f"{path}: a profile is a list of settings by name; it has {known}")
    return built(Profile, settings, path).model_dump(mode="json")


def built(kind, settings, path):
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        problems = error.errors()
        kinds = {"missing": "loc", "extra_forbidden": "loc", "invalid_key": "input"}
        keys = [problem[kinds[problem["type"]]] for problem in problems if problem["type"] in kinds]
        keys = [".".join(map(str, key)) if isinstance(key, tuple) else str(key) for key in keys]
        path = _given(problems[0]["loc"][0], settings.get("changed", ()), path)
        if keys:
            raise ValueError(
                f"{path}: unknown or missing keys {files.few(keys)}; a profile has exactly "
                f"{', '.join(Profile.model_fields)}"
            ) from error
        name = ".".join(map(str, problems[0]["loc"]))
        said = problems[0]["msg"].replace("Input should", "must")
        if problems[0]["type"] == "too_short":
            said = f"must name at least one {name.rstrip('s')}"
        raise ValueError(f"{path}: {name} {said}, not {files.few([problems[0]['input']])!r}") from error


def _given(name, changed, path):
    """Where a setting comes from: the profile's file, or what replaces it."""
    option = str(name).replace("_", "-")
    return f"{name} as given (--{option}, --set or -p)" if name in changed else path


def _listed(value):
    """Names that may be given as one word, separated by commas; each once. Raises ValueError for what are
    none."""
    if not isinstance(value, str | list | tuple):
        raise ValueError(f"networks, datasets and what is left out are lists of names, not {value!r}")
    names = files.names(value, "networks and datasets") if isinstance(value, str) else value
    return [name for number, name in enumerate(names) if name not in names[:number]]


def _by_dataset(root):
    """ "name=folder,name=folder" -> {dataset: folder}, or None where it is a folder for all."""
    parts = [part.partition("=") for part in root.split(",")]
    own = all(mark and name.strip() in REGISTRY for name, mark, _ in parts)
    return {name.strip(): folder for name, _, folder in parts} if own else None


def _anchored(settings):
    """A profile's own paths start at the repository, wherever the notebook runs."""

    def at(place):
        return str(files.REPOSITORY / files.place(place))

    def placed(where, mark):
        kind, found, place = where.partition(mark)
        known = not found or kind.startswith("scenes") or place in registry()["weights"]
        return where if known else f"{kind}{found}{at(place)}"

    masks = {name: placed(where, "=") for name, where in settings["masks"].items()}
    roots = _by_dataset(root) if (root := settings["root"]) else None
    root = ",".join(f"{name}={at(folder)}" for name, folder in roots.items()) if roots else root and at(root)
    pairs = settings["pairs"] and placed(settings["pairs"], ":")
    scratch = {name: at(where) if is_path(where) else where for name, where in settings["scratch"].items()}
    return settings | {"root": root, "pairs": pairs, "masks": masks, "scratch": scratch}


def checked(run, path):
    for name in run.datasets:
        files.require_known(name, REGISTRY, f"{_given('datasets', run.changed, path)}: no dataset")
    if run.device.startswith("cuda") and not torch.cuda.is_available():
        path = _given("device", run.changed, path)
        said = f"{path}: device {files.few([run.device])!r}, but torch sees no CUDA device here"
        raise ValueError(f"{said}; -p device cpu runs without one")
    return run
