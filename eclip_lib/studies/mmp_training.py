"""Notebook 05: ECLIP by masked max pooling for every network, and that nothing else changed (§3.3, Table
1)."""

import pandas as pd

from .. import plots
from ..datasets import examples
from ..evaluation import gains, in_words, over_trainings, recognize, table
from ..explainers import explainer
from .pooling_ablation import masks_for, score_pairs, seed_table


def train_eclip(run, clip, models):
    """Train ECLIP for one network, one pair a seed -> [`Trained`]; the first is saved under `out`/pairs for
    the later notebooks."""
    features = run.features(clip, masks_for(run, clip, models))
    trained = [run.train(clip, features, run.chosen_mask, seed) for seed in range(run.trainings)]
    run.save_pair(trained[0].pair, clip.network)
    return trained


def tables(run, clips, trained):
    """Table 1's rows of CLIP and ECLIP -> (one line a network, dataset and method with intervals over images;
    ECLIP over seeds; paired gains of ECLIP over CLIP)."""
    rows = []
    for network, clip in clips.items():
        pairs = {("ECLIP", seed): part.pair for seed, part in enumerate(trained[network])}
        rows.append(score_pairs(run, clip, pairs))
    rows = pd.concat(rows, ignore_index=True)
    first = rows[(rows["method"] == "CLIP") | (rows["seed"] == 0)]
    seeds = seed_table(run, rows).assign(pooling=run.chosen_mask.label)
    gained = gains(first, [("ECLIP", "CLIP")], run.seed).drop(columns=["better", "than"])
    return table(first, seed=run.seed), over_trainings(seeds), gained


def snapshot_sheet(run, clip, trained, name, count=3):
    """Image, ground truth, CLIP's map, then the learned pair's after each kept epoch. Returns the figure."""
    shown = {"CLIP": (clip, explainer("clip", clip))}
    for epoch, pair in trained.snapshots.items():
        shown[f"epoch {epoch}"] = (clip, explainer("eclip", clip, projection=pair))
    return plots.map_sheet(examples(run.load_dataset(name), count), shown)


VIEWS = {"as they are": (1, None), "augmented once": (1, "deit"), "afresh each epoch": (10, "deit")}


def views_study(run, clip, models, count=500, batch_size=64):
    """What augmentation does to ECLIP, on `count` scenes of their own: none, DeiT's once (views=1), DeiT's
    afresh (views=10, in turn).

    The other settings are the run's. Returns one line a dataset and kind of views: mIoU and mSC over
    trainings, and the loss of the last epoch."""
    pairs, losses = {}, []
    for kind, (views, augment) in VIEWS.items():
        masks = {run.chosen_mask.mask: models[run.chosen_mask.mask]}
        features = run.features(clip, masks, f"scenes:{count}", views, augment)
        for seed in range(run.trainings):
            trained = run.train(clip, features, run.chosen_mask, seed, batch_size=batch_size)
            pairs[kind, seed] = trained.pair
            losses.append({"views": kind, "loss": trained.losses["loss"].iloc[-1]})
    measured = over_trainings(seed_table(run, score_pairs(run, clip, pairs))).rename(
        columns={"pooling": "views"}
    )
    return measured.merge(
        pd.DataFrame(losses).groupby("views", as_index=False).mean(), on="views", how="left"
    )


def recognition(run, clip):
    """Class-token scores of the first dataset (Eq. 3) and their mAP in %, as (bytes of the scores, mAP)."""
    scores, _, value = recognize(run.load_dataset(run.datasets[0]), clip, run.workers, run.batch_size)
    return scores.tobytes(), value


def verdict(gained):
    """One sentence a dataset and network, from the paired intervals."""
    lines = []
    for _, r in gained.iterrows():
        words = [
            f"{m} {in_words(r[f'{m}_low'], r[f'{m}_high'], 'higher', 'lower', 'not decided')}"
            for m in ("mIoU", "mSC")
        ]
        lines.append(f"{r['dataset']}, {r['network']}: ECLIP against CLIP: {', '.join(words)}")
    return "\n".join(lines)
