"""New pairs of projections for a run's networks: trained on cached features, scored in one pass (notebooks 03 and 05, Table 3)."""

import pandas as pd

from .cache import TOKENS, cache_features
from .datasets.pairs import load_pairs
from .discovery import MEASURES
from .evaluation import evaluate, summarize
from .explainers import explainer
from .training import train_pair


def cached(run, clip, masks):
    """The pooled features of the run's image-caption pairs, under `out`/cache: other notebooks find them there."""
    settings = run.training
    return cache_features(
        clip, load_pairs(run.pairs), run.out / "cache", masks, settings["views"], settings["augment"], seed=run.seed,
        workers=run.workers, description=f"{clip.network}: {run.pairs}",
    )  # fmt: skip


def chosen_mask(run):
    """The column of ECLIP's own pooling: masked max pooling with the last mask of the run (the profiles': DINO)."""
    return f"masked_max:{list(run.masks)[-1]}"


def train_rows(run, clip, cache, columns, seeds=None, init="random", on_epoch=None):
    """Train a pair for every column and seed with the run's settings -> ({(column, seed): `Projection`}, losses as a DataFrame)."""
    settings = {k: v for k, v in run.training.items() if k not in ("views", "augment")}
    pairs, losses = {}, []
    for column in columns:
        for seed in range(run.trainings) if seeds is None else seeds:
            pair, history = train_pair(clip, cache, column, seed=run.seed + seed, init=init, on_epoch=on_epoch, **settings)
            pairs[column, seed] = pair
            losses.append(history.assign(network=run.title(clip.network), pooling=column, seed=seed))
    return pairs, pd.concat(losses, ignore_index=True)


def score_pairs(run, clip, pairs):
    """Evaluate pairs of projections in one pass a dataset -> {(key of `pairs`, dataset): rows of `evaluate`}; CLIP's own under "CLIP"."""
    methods = {"CLIP": explainer("clip", clip), **{key: explainer("eclip", clip, projection=p) for key, p in pairs.items()}}
    rows = {}
    for name in run.datasets:
        found = evaluate(
            methods, run.load_dataset(name), clip, run.workers, run.batch_size, description=f"{clip.network} on {name}"
        )
        rows |= {(key, name): part for key, part in found.items()}
    return rows


def row_name(column):
    """A column of the cache as Table 3 calls it: "max, mask: DINO"."""
    kind, _, mask = column.removeprefix(TOKENS).partition(":")
    return f"max, mask: {mask}" if kind == "masked_max" else kind


def seed_table(run, rows):
    """One line a network, dataset, pooling and seed: `summarize`'s measures in %. rows: {network: `score_pairs`}, keys (column, seed)."""
    lines = []
    for network, found in rows.items():
        for (key, name), part in found.items():
            if key != "CLIP":
                line = {"dataset": name, "network": run.title(network), "pooling": row_name(key[0]), "seed": key[1]}
                lines.append(line | summarize(part, seed=run.seed)[MEASURES].to_dict())
    return pd.DataFrame(lines)


def over_seeds(table, by=("dataset", "network", "pooling")):
    """Mean over seeds, with the smallest (`_low`) and the largest (`_high`), for mIoU and mSC; `seeds` says how many."""
    columns = {"seeds": ("mIoU", "size")}
    for value in ("mIoU", "mSC"):
        columns |= {value: (value, "mean"), f"{value}_low": (value, "min"), f"{value}_high": (value, "max")}
    return table.groupby(list(by), sort=False).agg(**columns).reset_index()
