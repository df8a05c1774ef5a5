"""A run: what a profile's run loads, and caches, trains and evaluates once.

`demo` and `paper` are YAML files in `profiles/`; a profile may also be the path of another file of that form.
Features, trained pairs and rows are made once a run, under `out`, keyed by what they contain; every notebook
of the run takes them from there."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from . import files
from .datasets import load_dataset
from .datasets.image_text import load_pairs
from .evaluation import evaluate
from .evaluation.evaluator import COLUMNS, MORE, labelled, read_rows
from .feature_cache import cache_features
from .networks.attention import load_attention, mask_identity
from .networks.loading import load_clip
from .poolings import Pooling
from .profiles import UNCHANGED, Profile, built, checked, read_settings
from .projection import Projection
from .results import Results
from .training import train_pairs


@dataclass(frozen=True)
class Trained:
    """A trained pair: `pair`, its `losses` (DataFrame of epoch, loss, lr, seconds), and {epoch: pair} in
    between."""

    pair: Projection
    losses: pd.DataFrame
    snapshots: dict[int, Projection]


TRAINS = ("method.py", "projection.py", "poolings.py", "recipe.py", "training.py", "datasets", "networks")


def training_digest():
    """Digest of the code that decides pairs."""
    return files.code_digest(*TRAINS)


def core_digest():
    """Digest of the code that decides rows."""
    return files.code_digest(*TRAINS, "shift.py", "explainers", "evaluation")


class Run(Results):
    """A profile as it is run: `Results` with what they are made from."""

    # ------------------------------------------------------------------ what it loads

    def load_clip(self, network, pretrained=UNCHANGED):
        """The network with the profile's weights, on the profile's device."""
        pretrained = self.pretrained if pretrained == UNCHANGED else pretrained
        clip = load_clip(network, pretrained, self.device, precision=self.precision)
        self.saw("weights", f"{network}, {clip.pretrained}", lambda: clip.identity["model"])
        return clip

    def load_clips(self):
        """{network: `Clip`} of all networks."""
        return {network: self.load_clip(network) for network in self.networks}

    def load_masks(self):
        """{name: the self-supervised model whose attention is the mask}; random weights where CLIP's are."""
        models = {}
        for name, (network, checkpoint) in self.mask_models.items():
            checkpoint = None if self.pretrained is None else checkpoint or "default"
            models[name] = load_attention(network, checkpoint, self.device)
            self.saw("weights", f"{name}, {network}", lambda model=models[name]: mask_identity(model)[1])
        return models

    def load_dataset(self, name, limit=UNCHANGED):
        """A dataset under `root`, cut to `limit`."""
        dataset = load_dataset(name, self.root_of(name), self.limit if limit == UNCHANGED else limit)
        if limit == UNCHANGED:
            self.saw("datasets", name, lambda: len(dataset))
        return dataset

    def load_pairs(self, pairs=None):
        """The source of image-caption pairs (`pairs`, else the run's), cut to `limit_pairs`."""
        source = load_pairs(pairs or self.pairs)
        return source if self.limit_pairs is None else source.first(self.limit_pairs)

    # ------------------------------------------------------------------ what it makes once

    def features(self, clip, masks, pairs=None, views=None, augment=UNCHANGED):
        """The pooled features of the run's image-caption pairs -> `Cache`.

        Where the run's training sees several views, the disk holds one at a time, and all pairs that
        notebooks 02, 03 and 05 train on these features are trained now, while each view is there."""
        training = self.training
        keep = views is not None or training.views == 1
        with files.alone(self.out / "cache" / f".{clip.network}.lock".replace("/", "_")):
            cache = cache_features(
                clip,
                self.load_pairs(pairs),
                self.out / "cache",
                masks,
                views or training.views,
                training.augment if augment == UNCHANGED else augment,
                self.seed,
                workers=self.workers,
                description=f"{clip.network}: {pairs or self.pairs}",
                keep=keep,
            )
            if not keep:
                self.train_all(clip, cache, self.every_training(cache.columns, len(masks) > len(self.masks)))
        self.saw("pairs", f"{pairs or self.pairs}, {clip.network}", lambda: len(cache))
        return cache

    def every_training(self, columns, beyond):
        """[(pooling, seed, init)] of all that the notebooks train on the columns of one network's cache;
        `beyond`: whether it has the masks beyond the paper's, where 03 also starts from CLIP's pair."""
        every = [(column, "random") for column in columns] + [(self.chosen_mask, "clip")] * beyond
        return [(pooling, seed, init) for pooling, init in every for seed in range(self.trainings)]

    def _made_by(self, code):
        return [self.device.partition(":")[0], code]

    @property
    def chosen_mask(self) -> Pooling:
        """ECLIP's own pooling: masked max pooling with the last mask of the run (the profiles': DINO)."""
        return Pooling("masked_max", list(self.masks)[-1])

    def train(self, clip, features, pooling, seed=0, init="random", **settings) -> Trained:
        """A pair trained on one pooling of cached features with the run's settings, or those given."""
        return self.train_all(clip, features, [(pooling, seed, init)], **settings)[0]

    def train_all(self, clip, features, wanted, **settings) -> list[Trained]:
        """A pair for each (pooling, seed, init) of `wanted`; those that this run has not trained yet are
        trained side by side, so that a view which does not stay on disk is made once for all of them."""
        settings = self.training.model_dump(exclude={"views", "augment"}) | settings
        epochs = settings["epochs"]
        watched = sorted({1, 2, max(2, epochs // 4), epochs} & {*range(epochs + 1)})
        folders, found, missing = [], {}, {}
        made_by = [features.identity, self._made_by(training_digest())]
        with files.alone(self.out / "trained" / f".{clip.network}.lock".replace("/", "_")):
            for pooling, seed, init in wanted:
                settings |= {"seed": self.seed + seed, "init": init}
                about = {"pooling": str(Pooling.of(pooling)), **settings}
                folder = self.out / "trained" / files.digest([*made_by, about])
                folders.append(folder)
                try:
                    found[folder] = _read_trained(folder, watched)
                except (OSError, ValueError):  # not there, or not whole
                    missing[folder] = about
            if missing:
                _train(clip, features, missing, watched)
        return [found.get(folder) or _read_trained(folder, watched) for folder in folders]

    def evaluate(self, clip, dataset, explainers, observe=None) -> pd.DataFrame:
        """Rows of {method or (method, seed): explainer} on a dataset (a name, or a `Dataset`), see
        `evaluation.evaluate`.

        An explainer of the registry that was measured before in this run, on the same images with the same
        weights, is read from `out`/rows; the others share one pass. With `observe` all are measured anew."""
        dataset = self.load_dataset(dataset) if isinstance(dataset, str) else dataset
        known = dataset.identity  # looks at every file
        about = [clip.identity, known, self._made_by(core_digest())]
        columns = [*COLUMNS, *MORE["image_threshold"]]
        folder, paths, found = self.out / "rows" / dataset.name / clip.network, {}, {}
        for key, explain in explainers.items():
            if known and (identity := getattr(explain, "identity", None)):
                paths[key] = folder / f"{identity[0]}-{files.digest([about, identity])}.csv"
                found[key] = None if observe else read_rows(paths[key], columns)
        missing = {key: explain for key, explain in explainers.items() if found.get(key) is None}
        if missing:
            options = {"observe": observe, "measures": ["image_threshold"]}  # which costs nothing more
            rows = evaluate(missing, dataset, clip, self.workers, self.batch_size, **options)
            size = len(rows) // len(missing)
            for number, key in enumerate(missing):
                found[key] = rows.iloc[number * size : (number + 1) * size]
                if key in paths:
                    files.write(paths[key], files.as_csv(found[key], index=False))
        return pd.concat([labelled(found[key], key) for key in explainers], ignore_index=True)[columns]

    def once(self, name, about, measure) -> pd.DataFrame:
        """The table that `measure()` returns, kept in `out`/rows and read from there where all that decides
        it is the same: `about` (a list of `Clip`s, `Dataset`s and what JSON can say) and the code. Measured
        anew where one of them has no identity."""
        known = [getattr(thing, "identity", thing) for thing in about]
        if any(what is None and thing is not None for thing, what in zip(about, known, strict=True)):
            return measure()
        key = files.digest([known, self._made_by(core_digest()), files.code_digest("studies", "shift.py")])
        path = self.out / "rows" / f"{name}-{key}.csv"
        if (table := read_rows(path)) is None:
            table = measure()  # its floats as CSV gives them back
            table = table.astype(dict.fromkeys(table.select_dtypes("float32"), float))
            files.write(path, files.as_csv(table, index=False))
        return table


def _train(clip, features, missing, watched):
    """Train {folder: settings} side by side, and keep the pairs as they are after the `watched` epochs."""
    folders = list(missing)

    def keep(number, epoch, pair):
        if epoch in watched:
            pair.save(folders[number] / f"epoch{epoch}.safetensors")

    states = None if features.keep else [folder / "state.pt" for folder in folders]
    trained = train_pairs(clip, features, list(missing.values()), keep, states)
    for folder, (pair, losses) in zip(folders, trained, strict=True):
        pair.save(folder / "pair.safetensors")
        files.write(folder / "losses.csv", files.as_csv(losses, index=False))
        (folder / "state.pt").unlink(missing_ok=True)
    if not features.keep:
        features.drop()


def _read_trained(folder, watched):
    losses = pd.read_csv(folder / "losses.csv", float_precision="round_trip")
    pairs = {epoch: Projection.load(folder / f"epoch{epoch}.safetensors") for epoch in watched}
    return Trained(Projection.load(folder / "pair.safetensors"), losses, pairs)


# ---------------------------------------------------------------------- opening one


def load_profile(profile: str | Path = "demo", **parameters) -> Run:
    """Open a profile by name or path; `parameters` replace its settings where they are neither None nor
    "profile".

    `networks` and `datasets` may be comma-separated strings (papermill passes scalars). `pretrained`:
    "profile" keeps the profile's; None, "null", "none" or "random" means random weights. Raises ValueError,
    FileNotFoundError."""
    path, settings = read_settings(profile, parameters)
    return checked(built(Run, settings, path), path)


def open_run(variables, notebook=None) -> Run:
    """The run of a notebook from the variables of its parameters cell (`globals()`), see `load_profile`; says
    what is run, and begins the part of `run.json` that bears the notebook's name."""
    names = [name for name in (*Profile.model_fields, "out", "part", "dropped") if name in variables]
    run = load_profile(variables["profile"], **{name: variables[name] for name in names})
    if run.device == "cpu" and torch.get_num_threads() == 1 and variables.get("workers") is None:
        run.workers = 0  # other notebooks have the other cores, and scenes are then drawn once a process
    print(f"profile {run.name}; {run.weights}")
    print(f"networks: {', '.join(run.networks)} | datasets: {', '.join(run.datasets)}")
    if run.dropped:
        print(f"not there and left out: {', '.join(run.dropped)}")
    if notebook:
        run.begin(notebook)
    return run
