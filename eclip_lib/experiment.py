"""A run: a profile's settings, and what a run loads, caches, trains, evaluates, saves and checks.

`demo` and `paper` are YAML files in `profiles/`; a profile may also be the path of another file of that form.
Features, trained pairs and rows are made once a run, under `out`, keyed by what they contain; every notebook
of the run takes them from there."""

import io
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from . import files
from .datasets import REGISTRY, load_dataset
from .datasets.image_text import load_pairs
from .evaluation import evaluate
from .evaluation.evaluator import COLUMNS
from .evaluation.regression import differences
from .feature_cache import Pooling, cache_features
from .files import REPOSITORY
from .networks.attention import load_attention
from .networks.loading import load_clip
from .profiles import INCIDENTAL, UNCHANGED, Profile, built, checked, read_settings
from .projection import Projection
from .training import train_pair

TOLERANCE = 0.05  # of a regression cell, in the table's own unit: percent, mostly; see docs/architecture.md


@dataclass(frozen=True)
class Trained:
    """A trained pair: `pair`, its `losses` (DataFrame of epoch, loss, lr, seconds), and {epoch: pair} as it
    was in between."""

    pair: Projection
    losses: pd.DataFrame
    snapshots: dict[int, Projection]


def core_digest():
    """Digest of the code that decides features, pairs and rows."""
    rooms = ("method", "projection", "shift", "feature_cache", "training")
    return files.code_digest(
        *(f"{room}.py" for room in rooms), "datasets", "networks", "explainers", "evaluation"
    )


class Run(Profile):
    """A profile as it is run. `changed` names the settings that differ from the profile's file; `out` is the
    folder that is written."""

    name: str
    out: Path
    changed: list[str] = []
    saved: list[str] = []  # tables of this notebook, in order

    # ------------------------------------------------------------------ what it loads

    @property
    def weights(self):
        """What the networks' weights are, in words for titles."""
        random = self.pretrained is None
        return "random weights: nothing here was learned" if random else f"weights: {self.pretrained}"

    def load_clip(self, network, pretrained=UNCHANGED):
        """The network with the profile's weights, on the profile's device."""
        pretrained = self.pretrained if pretrained == UNCHANGED else pretrained
        return load_clip(network, pretrained, self.device, precision=self.precision)

    def load_clips(self):
        """{network: `Clip`} of all networks."""
        return {network: self.load_clip(network) for network in self.networks}

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
        parts = [part.partition("=") for part in str(self.root).split(",")]
        if all(mark and key.strip() in REGISTRY for key, mark, _ in parts):
            return {key.strip(): folder for key, _, folder in parts}.get(name)
        return self.root

    def title(self, network):
        """The network's name for tables and figures; random weights say so."""
        return f"{network} (random weights)" if self.pretrained is None else network

    # ------------------------------------------------------------------ what it makes once

    def features(self, clip, masks, pairs=None, views=None, augment=UNCHANGED):
        """The pooled features of the run's image-caption pairs -> `Cache`."""
        pairs, training = pairs or self.pairs, self.training
        return cache_features(
            clip,
            load_pairs(pairs),
            self.out / "cache",
            masks,
            views or training.views,
            training.augment if augment == UNCHANGED else augment,
            seed=self.seed,
            workers=self.workers,
            description=f"{clip.network}: {pairs}",
        )

    @property
    def _made_by(self):
        return [self.device.partition(":")[0], core_digest()]

    @property
    def chosen_mask(self) -> Pooling:
        """ECLIP's own pooling: masked max pooling with the last mask of the run (the profiles': DINO)."""
        return Pooling("masked_max", list(self.masks)[-1])

    def train(self, clip, features, pooling, seed=0, init="random", **settings) -> Trained:
        """A pair trained on one pooling of cached features with the run's settings, or those given."""
        settings = self.training.model_dump(exclude={"views", "augment"}) | settings
        settings |= {"seed": self.seed + seed, "init": init}
        pooling, epochs = Pooling.of(pooling), settings["epochs"]
        key = files.digest([features.identity, str(pooling), settings, self._made_by])
        folder = self.out / "trained" / key
        watched = sorted({1, 2, max(2, epochs // 4), epochs} & {*range(epochs + 1)})

        def keep(epoch, pair):
            if epoch in watched:
                pair.save(folder / f"epoch{epoch}.safetensors")

        try:
            return _read_trained(folder, watched)
        except (OSError, ValueError):  # not there, or not whole
            pair, losses = train_pair(clip, features, pooling, on_epoch=keep, **settings)
            pair.save(folder / "pair.safetensors")
            files.write(folder / "losses.csv", files.as_csv(losses, index=False))
            return _read_trained(folder, watched)

    def evaluate(self, clip, dataset, explainers, observe=None) -> pd.DataFrame:
        """Rows of {method or (method, seed): explainer} on a dataset (a name, or a `Dataset`), see
        `evaluation.evaluate`.

        An explainer of the registry that was measured before in this run, on the same images with the same
        weights, is read from `out`/rows; the others share one pass. With `observe` all are measured anew."""
        dataset = self.load_dataset(dataset) if isinstance(dataset, str) else dataset
        known = dataset.identity
        about = [clip.identity, known, self._made_by]
        paths, found = {}, {}
        for key, explain in explainers.items():
            identity = known and getattr(explain, "identity", None)
            if identity:
                name = f"{identity[0]}-{files.digest([about, identity])}.csv"
                paths[key] = self.out / "rows" / dataset.name / clip.network / name
            if identity and observe is None and (rows := _read_rows(paths[key])) is not None:
                found[key] = rows
        missing = {key: explain for key, explain in explainers.items() if key not in found}
        if missing:
            title = f"{clip.network} on {dataset.name}"
            rows = evaluate(
                missing, dataset, clip, self.workers, self.batch_size, description=title, observe=observe
            )
            sizes = len(rows) // len(missing)
            for number, key in enumerate(missing):
                found[key] = rows.iloc[number * sizes : (number + 1) * sizes]
                if key in paths:
                    files.write(paths[key], files.as_csv(found[key], index=False))
        return pd.concat([_labelled(found[key], key) for key in explainers], ignore_index=True)[COLUMNS]

    # ------------------------------------------------------------------ what it writes

    def path(self, kind, name):
        """`out`/tables/name.csv, `out`/figures/name.png or `out`/pairs/name.safetensors."""
        suffix = {"tables": "csv", "figures": "png", "pairs": "safetensors"}[kind]
        return self.out / kind / f"{name}.{suffix}"

    def committed(self, kind, name):
        """The same file as committed."""
        return REPOSITORY / "results" / self.name / kind / self.path(kind, name).name

    def folders(self, kind):
        """Where a table or figure may lie: this run's folder, then the committed results of the profile."""
        return [self.out / kind, *([] if self.compared_by else [self.committed(kind, "any").parent])]

    def save_table(self, table, name):
        """Write a table of this run (index included where it is named) as CSV and return it; an empty one
        leaves no file."""
        self.saved.append(name)
        if table.empty:
            self.path("tables", name).unlink(missing_ok=True)
        else:
            index = table.index.names != [None]
            files.write(self.path("tables", name), files.as_csv(table, index=index, float_format="%.4f"))
        return table

    def save_figure(self, figure, name):
        """Write a matplotlib figure of this run as PNG, in 256 colours: noisy scenes take a quarter of the
        space."""
        picture, small = io.BytesIO(), io.BytesIO()
        figure.savefig(picture, dpi=100, bbox_inches="tight")
        image = Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        image.save(small, "PNG", optimize=True)
        files.write(self.path("figures", name), small.getvalue())

    def save_timings(self, table):
        """Timings are no results: they lie beside the tables, and nothing compares them."""
        files.write(self.out / "timings.csv", files.as_csv(table, index=False))

    def save_pair(self, pair, network):
        """Keep the pair trained for a network (`out`/pairs) for the notebooks that follow."""
        pair.save(self.path("pairs", f"{network}-ECLIP"))

    def load_pair(self, clip):
        """The pair notebook 05 trained for a network: this run's, else the committed one. Raises
        FileNotFoundError, ValueError."""
        own, committed = (where("pairs", f"{clip.network}-ECLIP") for where in (self.path, self.committed))
        same = committed.exists() and set(self.compared_by) <= {"networks", "datasets", "limit"}
        if not own.exists() and not same:
            raise FileNotFoundError(
                f"no trained pair for {clip.network}: run notebook 05 first (it writes {own})"
            )
        return Projection.load(own if own.exists() else committed, clip)

    # ------------------------------------------------------------------ what it checks

    @property
    def compared_by(self):
        """The settings that make this run another experiment than the committed one."""
        return [name for name in self.changed if name not in INCIDENTAL]

    def check(self, tolerance=TOLERANCE):
        """The regression cell: compare every table that this notebook saved with the committed one, every
        number and word of it.

        Returns a line a table. Raises AssertionError that names all tables and numbers that are off by more
        than `tolerance`, or by a hundredth of the largest number of their column where that is less."""
        if self.compared_by:
            own = ", ".join(self.compared_by)
            return f"not compared with results/{self.name}: this run has its own {own}"
        lines, wrong = [], []
        for name in dict.fromkeys(self.saved):
            ours, theirs = (_read_table(where("tables", name)) for where in (self.path, self.committed))
            if theirs is None:
                lines.append(f"{name}: nothing committed to compare with")
                continue
            empty = pd.DataFrame(columns=theirs.columns)
            wrong += [
                f"{name}: {what}" for what in differences(empty if ours is None else ours, theirs, tolerance)
            ]
            lines.append(f"{name}: {len(theirs)} rows agree with results/{self.name} within {tolerance}")
        if wrong:
            raise AssertionError("\n".join([f"{len(wrong)} differences from results/{self.name}:", *wrong]))
        return "\n".join(lines)


def _read_table(path):
    return pd.read_csv(path) if path.exists() else None


def reported(name, method=None):
    """A table of the paper, quoted (`results/reported/`); `method` keeps one method's rows."""
    quoted = pd.read_csv(REPOSITORY / "results" / "reported" / f"{name}.csv")
    return quoted if method is None else quoted[quoted["method"] == method].reset_index(drop=True)


def _read_trained(folder, watched):
    losses = pd.read_csv(folder / "losses.csv", float_precision="round_trip")
    pairs = {epoch: Projection.load(folder / f"epoch{epoch}.safetensors") for epoch in watched}
    return Trained(Projection.load(folder / "pair.safetensors"), losses, pairs)


def _read_rows(path):
    """Rows that were measured before, or None where they are not there or not whole."""
    try:
        return pd.read_csv(path, dtype={"image_id": str}, float_precision="round_trip")[COLUMNS]
    except (OSError, ValueError, KeyError):
        return None


def _labelled(rows, key):
    method, seed = key if isinstance(key, tuple) else (key, None)
    return rows.assign(method=method, seed=seed)


# ---------------------------------------------------------------------- opening one


def load_profile(profile: str | Path = "demo", **parameters) -> Run:
    """Open a profile by name or path; `parameters` replace its settings where they are neither None nor
    "profile".

    `networks` and `datasets` may be comma-separated strings (papermill passes scalars). `pretrained`:
    "profile" keeps the profile's; None, "null", "none" or "random" means random weights. Raises ValueError,
    FileNotFoundError."""
    path, settings = read_settings(profile, parameters)
    return checked(built(Run, settings, path), path)


def open_run(variables) -> Run:
    """The run of a notebook from the variables of its parameters cell (`globals()`), see `load_profile`; says
    what is run."""
    names = set(variables) & {*Profile.model_fields, "out"}
    run = load_profile(variables["profile"], **{name: variables[name] for name in names})
    print(f"profile {run.name}; {run.weights}")
    print(f"networks: {', '.join(run.networks)} | datasets: {', '.join(run.datasets)}")
    return run
