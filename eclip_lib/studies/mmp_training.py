"""Notebook 05: ECLIP by masked max pooling, and that nothing else changed (§3.3, Table 1)."""

import matplotlib.pyplot as plt
import pandas as pd

from .. import files, plots
from ..datasets import examples
from ..evaluation import counts, gains, over_trainings, recognize, table, trainings_apart
from ..explainers import explainer
from .pooling_ablation import score_pairs, seed_table


def tables(run, rows):
    """Table 1's rows of CLIP and ECLIP -> (one line a network, dataset and method with intervals over images,
    of ECLIP's first training; ECLIP over trainings; paired gains of ECLIP over CLIP)."""
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
    measured = over_trainings(seed_table(run, score_pairs(run, clip, pairs)))
    mean = pd.DataFrame(losses).groupby("views", as_index=False).mean()
    return measured.rename(columns={"pooling": "views"}).merge(mean, on="views", how="left")


def recognition(run, clip, after=None):
    """Class-token scores of the first dataset (Eq. 3) and their mAP in %, as (digest of the scores, mAP).
    `after`: the pair that was trained since; before and after are measured each by itself, once a run."""
    dataset = run.load_dataset(run.datasets[0])

    def measure():
        scores, _, value = recognize(dataset, clip, run.workers, run.batch_size)
        return pd.DataFrame([{"scores": f"sha {files.digest(scores.tobytes())}", "mAP": value}])

    about = [clip, dataset, after and files.digest(after)]
    return tuple(run.once("recognition", about, measure).iloc[0])


def verdict(gained, views=None):
    """What ECLIP changes, and what augmentation does to it: sentences computed from the tables."""
    lines = []
    for measure in ("mIoU", "mSC"):
        up, open_, down = counts(gained, measure)
        said = f"ECLIP's {measure} lies above CLIP's in {up} of {len(gained)} cases"
        lines.append(f"{said}, below in {down}; {open_} open")
    for name, part in () if views is None else views.groupby("dataset", sort=False):
        rows = part.set_index("views")
        for kind, row in rows.drop(index="as they are").iterrows():
            gap = trainings_apart(row, rows.loc["as they are"])
            lines.append(f"{name}: pictures {kind} against pictures as they are: {gap}")
    return "\n".join(lines)


# ---------------------------------------------------------------------- Fig. 5

BOXES = {  # name: x, y, label, colour
    "image": (0, 2, "image", "white"),
    "text": (0, 0, "text", "white"),
    "encoder": (1.6, 2, "CLIP image\nencoder", "lightgray"),
    "reader": (1.6, 0, "CLIP text\nencoder", "lightgray"),
    "dino": (1.6, 1, "DINO\nattention A", "white"),
    "pool": (3.7, 1.5, "masked max\npooling (Eq. 7)", "white"),
    "phi_i": (5.7, 2, r"$\hat\phi_i$", "palegreen"),
    "phi_t": (5.7, 0.6, r"$\hat\phi_t$", "palegreen"),
    "loss": (7.4, 1.3, "InfoNCE\n(Eq. 9)", "white"),
    "map": (9.2, 1.3, "cosine, resize,\nmin-max: the map", "white"),
    "own": (5.7, 2.9, r"CLIP's own $\phi_i$", "lightgray"),
    "own_t": (5.7, -0.3, r"CLIP's own $\phi_t$", "lightgray"),
    "score": (11.2, 1.3, "cosine:\nrecognition\n(mAP)", "lightgray"),
}
PLAIN = "image encoder, text reader, image dino, reader own_t, phi_i loss, phi_t loss".split(", ")
ARROWS = {tuple(ends.split()): ("", 0) for ends in PLAIN} | {  # from, to: label, curvature
    ("encoder", "pool"): ("tokens $F_i$", 0),
    ("dino", "pool"): ("$A$", 0),
    ("pool", "phi_i"): ("$F_{mc}$", 0),
    ("encoder", "phi_i"): ("at test time: every token $F_i$, no mask", -0.08),
    ("encoder", "own"): ("$F_c$", -0.12),
    ("reader", "phi_t"): ("$F_t$", 0),
    ("phi_i", "map"): ("", -0.15),
    ("phi_t", "map"): ("", 0.15),
    ("own", "score"): ("", -0.2),
    ("own_t", "score"): ("", 0.2),
}
TRAINING = {"dino", "pool", "loss"}


def architecture():
    """Fig. 5, drawn anew: what is locked (grey), what learns (green), what is used in training alone
    (dashed); recognition keeps CLIP's class token and own pair. Returns the figure."""
    figure, ax = plt.subplots(figsize=(12, 4))
    ax.set(xlim=(-0.7, 12), ylim=(-0.7, 3.3))
    patches = {}
    for name, (x, y, label, colour) in BOXES.items():
        line = "--" if name in TRAINING else "-"
        style = {"boxstyle": "round,pad=0.35", "fc": colour, "ec": "black", "ls": line}
        drawn = ax.text(x, y, label, ha="center", va="center", fontsize=9, bbox=style)
        patches[name] = drawn.get_bbox_patch()
    figure.canvas.draw()  # the boxes get their sizes, where the arrows end
    for (start, end), (label, bend) in ARROWS.items():
        style = {"arrowstyle": "->", "connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 0}
        style |= {"patchA": patches[start], "patchB": patches[end]}
        style["ls"] = "--" if {start, end} & TRAINING else "-"
        (x0, y0, *_), (x1, y1, *_) = BOXES[start], BOXES[end]
        ax.annotate("", (x1, y1), (x0, y0), arrowprops=style)
        lift = 0.1 - bend * (x1 - x0) / 2
        ax.text((x0 + x1) / 2, (y0 + y1) / 2 + lift, label, ha="center", fontsize=8)
    ax.axis("off")
    ax.set_title("ECLIP: grey is locked, green learns, dashed is used in training alone", fontsize=10)
    figure.tight_layout()
    return figure
