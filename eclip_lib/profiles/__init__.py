"""Profiles: which networks, weights, datasets and device a run uses, and where its tables and figures go.

`demo` and `paper` are YAML files beside this one; a profile may also be the path of another file of that form."""

import io
import os
from dataclasses import dataclass, field, fields
from pathlib import Path

import pandas as pd
import torch
import yaml
from PIL import Image

from ..attention import load_attention
from ..clip import Projection, load_clip
from ..datasets import REGISTRY, load_dataset
from ..weights import registry

REPOSITORY = Path(__file__).parents[2]
TRAINING = {"epochs", "batch_size", "lr", "weight_decay", "views", "augment"}
UNCHANGED = "profile"  # a parameter's value that means: as the profile says


@dataclass
class Profile:
    """One run's settings. `changed` names those that differ from the profile's file; `out` is the folder that is written."""

    name: str
    networks: list[str]
    pretrained: str | None
    datasets: list[str]
    replicates: dict[str, list[str]]
    root: str | None
    limit: int | None
    batch_size: int
    workers: int
    device: str
    precision: str  # fp32 or bf16, see `load_clip`
    seed: int
    masks: dict[str, str]  # name: timm or demo network, or "network=checkpoint"
    pairs: str  # image-caption pairs that a new projection is trained on, see `datasets.pairs`
    training: dict  # epochs, batch_size, lr, weight_decay, views, augment: see `training` and `cache`
    trainings: int  # seeds of a trained pair
    out: Path
    changed: list[str] = field(default_factory=list)

    def load_clip(self, network, pretrained=UNCHANGED):
        """The network with the profile's weights, on the profile's device."""
        pretrained = self.pretrained if pretrained == UNCHANGED else pretrained
        return load_clip(network, pretrained, self.device, precision=self.precision)

    def load_masks(self):
        """{name: the self-supervised model whose attention is the mask}; random weights where CLIP's are."""
        models = {}
        for name, where in self.masks.items():
            network, _, checkpoint = where.partition("=")
            checkpoint = None if self.pretrained is None else checkpoint or "default"
            models[name] = load_attention(network, checkpoint, self.device)
        return models

    def load_dataset(self, name, limit=UNCHANGED):
        """A dataset under `root`, cut to `limit`."""
        return load_dataset(name, self.root_of(name), self.limit if limit == UNCHANGED else limit)

    def root_of(self, name):
        """The folder of a dataset: `root` is one folder for all, or "name=folder,name=folder"."""
        if self.root is not None and "=" in str(self.root):
            return dict(part.split("=", 1) for part in str(self.root).split(",")).get(name)
        return self.root

    def title(self, network):
        """The network's name for tables and figures; random weights say so."""
        return f"{network} (random weights)" if self.pretrained is None else network

    def path(self, kind, name):
        """`out`/tables/name.csv or `out`/figures/name.png; the folder is made."""
        path = self.out / kind / f"{name}.{'csv' if kind == 'tables' else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def folders(self, kind):
        """Where a table or figure may lie: this run's folder, then the committed results of the profile."""
        return [self.out / kind, *([] if self.changed else [REPOSITORY / "results" / self.name / kind])]

    def save_table(self, table, name):
        """Write a table of this run (index included where it is named) as CSV and return it; an empty one is not written."""
        if table.empty:
            return table
        partial = (path := self.path("tables", name)).with_suffix(f".{os.getpid()}.partial")
        table.to_csv(partial, index=table.index.names != [None], float_format="%.4f")
        os.replace(partial, path)
        return table

    def save_figure(self, figure, name):
        """Write a matplotlib figure of this run as PNG, in 256 colours: noisy scenes take a quarter of the space."""
        picture = io.BytesIO()
        figure.savefig(picture, dpi=100, bbox_inches="tight")
        Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
            self.path("figures", name), optimize=True
        )

    def pair_path(self, network, kind="ECLIP"):
        """Where this run keeps the pair trained for a network; the folder is made."""
        path = self.out / "pairs" / f"{network}-{kind}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def load_pair(self, clip, kind="ECLIP"):
        """The pair notebook 05 trained for a network: this run's, else the committed one. Raises FileNotFoundError, ValueError."""
        own = self.pair_path(clip.network, kind)
        committed = REPOSITORY / "results" / self.name / "pairs" / own.name
        if not own.exists() and not (committed.exists() and "pretrained" not in self.changed):
            raise FileNotFoundError(f"no trained pair for {clip.network}: run notebook 05 first (it writes {own})")
        return Projection.load(own if own.exists() else committed, clip)

    def check(self, name, tolerance, columns=None):
        """The regression cell: compare this run's table with the committed one, every numeric column of it (or `columns` alone).

        Returns one line that says so. Raises AssertionError where a number is off by more than `tolerance` or rows differ."""
        if self.changed:
            return f"{name}: not compared, this run has its own {', '.join(self.changed)}"
        committed = REPOSITORY / "results" / self.name / "tables" / f"{name}.csv"
        if not committed.exists():  # also a table that this profile leaves empty
            return f"{name}: no committed table of profile {self.name} to compare with"
        ours, theirs = (pd.read_csv(path, usecols=columns) for path in (self.path("tables", name), committed))
        numbers = theirs.select_dtypes("number").columns
        rest = theirs.columns.difference(numbers)
        assert list(ours.columns) == list(theirs.columns) and len(ours) == len(theirs), (
            f"{name}: other rows or columns than {committed}"
        )
        assert ours[rest].equals(theirs[rest]), f"{name}: other row names than {committed}"
        off = (ours[numbers] - theirs[numbers]).abs()
        bad = (off > tolerance) | (ours[numbers].isna() != theirs[numbers].isna())
        if bad.to_numpy().any():
            row, column = next((r, c) for r in bad.index for c in numbers if bad.loc[r, c])
            raise AssertionError(
                f"{name}: {int(bad.to_numpy().sum())} numbers differ by more than {tolerance} from results/{self.name}; "
                f"row {row}, {column}: {ours.loc[row, column]} here, {theirs.loc[row, column]} committed"
            )
        return f"{name}: {len(ours)} rows agree with results/{self.name} within {tolerance}"


def _listed(value):
    return [v.strip() for v in value.split(",") if v.strip()] if isinstance(value, str) else list(value)


def load_profile(profile: str | Path = "demo", **parameters) -> Profile:
    """Open a profile by name or path; `parameters` replace its settings where they are neither None nor "profile".

    `networks` and `datasets` may be comma-separated strings (papermill passes scalars). `pretrained`: "profile" keeps the
    profile's; None, "null", "none" or "random" means random weights. Raises ValueError, FileNotFoundError."""
    path = Path(__file__).parent / f"{profile}.yaml" if str(profile) in ("demo", "paper") else Path(profile)
    if not path.is_file():
        raise FileNotFoundError(f"no profile {str(profile)!r}; there are demo, paper, or give the path of a YAML file")
    try:
        settings = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    known = {f.name for f in fields(Profile)} - {"name", "out", "changed"}
    if not isinstance(settings, dict) or set(settings) != known:
        wrong = sorted(set(settings or ()) ^ known)
        raise ValueError(f"{path}: unknown or missing keys {wrong}; a profile has exactly {sorted(known)}")
    unknown = sorted(set(parameters) - known - {"out"})
    if unknown:
        raise ValueError(f"a profile has no parameter {unknown[0]!r}; it has {sorted(known | {'out'})}")
    given = {
        name: value for name, value in parameters.items() if value != UNCHANGED and (value is not None or name == "pretrained")
    }
    out = Path(given.pop("out", None) or REPOSITORY / "runs" / path.stem)
    before = dict(settings)
    settings |= given
    for name in ("networks", "datasets"):
        settings[name] = _listed(settings[name])
    if str(settings["pretrained"]).lower() in ("none", "null", "random"):
        settings["pretrained"] = None
    if settings["root"] and "=" not in str(settings["root"]) and "root" not in given:
        settings["root"] = str(REPOSITORY / settings["root"])  # a profile's own folder is the repository's
    if "pairs" not in given:
        settings["pairs"] = _anchored(settings["pairs"], ":")
    settings["masks"] = {name: _anchored(where, "=") for name, where in settings["masks"].items()}
    if set(settings["networks"]) != set(before["networks"]) or settings["pretrained"] != before["pretrained"]:
        settings["replicates"] = {}
    result = Profile(name=path.stem, out=out, **settings)
    result.changed = [name for name in given if settings[name] != before[name]]
    return _checked(result, path)


def _anchored(where, mark):
    """A profile's own "web:data/*.tar" or "network=weights/file" with its path from the repository on, wherever the notebook runs."""
    kind, found, place = where.partition(mark)
    return (
        where
        if not found or kind.startswith("scenes") or place in registry()["weights"]
        else f"{kind}{found}{REPOSITORY / place}"
    )


def _checked(profile, path):
    for name in profile.datasets:
        if name not in REGISTRY:
            raise ValueError(f"{path}: no dataset {name!r}; there are {', '.join(REGISTRY)}")
    for name, least in (("batch_size", 1), ("workers", 0), ("limit", 1), ("seed", 0), ("trainings", 1)):
        value = getattr(profile, name)
        if not (value is None and name == "limit") and (not isinstance(value, int) or value < least):
            raise ValueError(f"{path}: {name} must be a whole number of at least {least}, not {value!r}")
    if set(profile.training) != TRAINING:
        raise ValueError(f"{path}: training has exactly the keys {sorted(TRAINING)}, not {sorted(profile.training)}")
    if not profile.networks or not profile.datasets:
        raise ValueError(f"{path}: name at least one network and one dataset")
    if profile.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"{path}: device {profile.device!r}, but torch sees no CUDA device here; -p device cpu runs without one"
        )
    return profile
