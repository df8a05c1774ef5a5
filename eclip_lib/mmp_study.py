"""What notebook 05 trains and shows: ECLIP by masked max pooling for every network, and that nothing else changed."""

import copy

import pandas as pd
import torch

from . import discovery
from .ablation import cached, chosen_mask, over_seeds, score_pairs, seed_table, train_rows
from .cache import cache_features
from .datasets.pairs import load_pairs
from .evaluation import bootstrap, recognize, summarize
from .pooling_study import masks_for
from .training import train_pair


def train_eclip(run, clip, models, snapshots=()):
    """Train ECLIP for one network: masked max pooling with the last mask of the run, one pair a seed.

    snapshots: epochs after which the first pair is kept. Returns (pairs {(column, seed)}, losses, {epoch: pair}); the first pair is
    saved under `out`/pairs for the later notebooks."""
    cache = cached(run, clip, masks_for(run, clip, models))
    column, kept = chosen_mask(run), {}

    def keep(epoch, pair):
        if epoch in snapshots and epoch not in kept:
            kept[epoch] = copy.deepcopy(pair).requires_grad_(False)

    pairs, losses = train_rows(run, clip, cache, [column], on_epoch=keep)
    pairs[column, 0].save(run.pair_path(clip.network))
    return pairs, losses, kept


def snapshot_sheet(run, clip, kept, name, count=3):
    """Arguments of `plots.sheet`: image, ground truth, CLIP's map, then the learned pair's after each kept epoch."""
    rows, picked = [], []
    for example in discovery.examples(run.load_dataset(name), count):
        class_name = max(example.masks, key=lambda n: example.masks[n].sum())
        maps = [discovery.maps_of(clip, example, pair)[class_name] for pair in (None, *kept.values())]
        rows.append((example.image, [None, example.masks[class_name], *maps]))
        picked.append(class_name)
    return rows, ["image", "ground truth", "CLIP", *(f"epoch {epoch}" for epoch in kept)], picked


def tables(run, clips, pairs):
    """Table 1's rows of CLIP and ECLIP -> (one line a network, dataset and method with intervals over images; ECLIP over seeds;
    paired gains of ECLIP over CLIP)."""
    rows = {network: score_pairs(run, clip, pairs[network]) for network, clip in clips.items()}
    lines, gains = [], []
    for network, found in rows.items():
        first = next(key for key, _ in found if key != "CLIP")
        for name in run.datasets:
            for method, key in (("CLIP", "CLIP"), ("ECLIP", first)):
                line = {"dataset": name, "network": run.title(network), "method": method}
                lines.append(line | summarize(found[key, name], seed=run.seed)[discovery.MEASURES].to_dict())
            gains.append(
                {"dataset": name, "network": run.title(network), **gain(found[first, name], found["CLIP", name], run.seed)}
            )
    return pd.DataFrame(lines), over_seeds(seed_table(run, rows)), pd.DataFrame(gains)


def gain(ours, theirs, seed=0):
    """Paired difference of two methods' rows in points, with 95 % bootstrap intervals over images: mIoU and mSC."""
    line = {}
    for measure, value in (("mIoU", "iou"), ("mSC", "score_contrast")):
        draws = bootstrap(ours, value, seed=seed) - bootstrap(theirs, value, seed=seed)
        line[measure] = summarize(ours, 1, seed)[measure] - summarize(theirs, 1, seed)[measure]
        line[f"{measure}_low"], line[f"{measure}_high"] = (
            torch.tensor(draws).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        )
    return line


VIEWS = {"as they are": (1, None), "augmented once": (1, "deit"), "afresh each epoch": (10, "deit")}


def views_study(run, clip, models, count=500, batch_size=64):
    """What augmentation does to ECLIP, on `count` scenes of their own: none, DeiT's once (views=1), DeiT's afresh (views=10, in turn).

    The other settings are the run's. Returns one line a dataset and kind of views: mIoU and mSC over trainings, and the loss of the last
    epoch."""
    mask, settings = list(run.masks)[-1], {k: v for k, v in run.training.items() if k not in ("views", "augment", "batch_size")}
    pairs, losses = {}, {}
    for kind, (views, augment) in VIEWS.items():
        cache = cache_features(
            clip, load_pairs(f"scenes:{count}"), run.out / "cache", {mask: models[mask]}, views, augment, seed=run.seed,
            workers=run.workers, description=kind,
        )  # fmt: skip
        for seed in range(run.trainings):
            pair, history = train_pair(clip, cache, chosen_mask(run), batch_size=batch_size, seed=run.seed + seed, **settings)
            pairs[kind, seed] = pair
            losses.setdefault(kind, []).append(history["loss"].iloc[-1])
    table = over_seeds(seed_table(run, {clip.network: score_pairs(run, clip, pairs)})).rename(columns={"pooling": "views"})
    return table.assign(loss=table["views"].map(lambda kind: sum(losses[kind]) / len(losses[kind])))


def recognition(run, clip):
    """Class-token scores of the first dataset (Eq. 3) and their mAP in %, as (bytes of the scores, mAP)."""
    scores, _, value = recognize(run.load_dataset(run.datasets[0]), clip, run.workers, run.batch_size)
    return scores.tobytes(), value


def verdict(gains):
    """One sentence a dataset and network, from the paired intervals."""
    lines = []
    for _, r in gains.iterrows():
        words = [
            f"{m} {'higher' if r[f'{m}_low'] > 0 else 'lower' if r[f'{m}_high'] < 0 else 'not decided'}"
            for m in ("mIoU", "mSC")
        ]
        lines.append(f"{r['dataset']}, {r['network']}: ECLIP against CLIP: {', '.join(words)}")
    return "\n".join(lines)
