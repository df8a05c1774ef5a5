"""Notebook 05: ECLIP by masked max pooling, and that nothing else changed (§3.3, Table 1)."""

import matplotlib.pyplot as plt
import pandas as pd

from .. import files, plots, provenance
from ..datasets import examples
from ..evaluation import counts, over_trainings, recognize, trainings_apart
from ..explainers import explainer
from .itsm_discovery import over_clips
from .pooling_ablation import seed_table


def snapshot_sheet(run, clip, trained, name):
    """Image, ground truth, CLIP's map, then the learned pair's after each kept epoch. Returns the figure."""
    shown = {"CLIP": (clip, explainer("clip", clip))}
    for epoch, pair in trained.snapshots.items():
        shown[f"epoch {epoch}"] = (clip, explainer("eclip", clip, projection=pair))
    return plots.map_sheet(examples(run.load_dataset(name), 3), shown)


# kind: views, augmentation
VIEWS = {"as they are": (1, None), "augmented once": (1, "deit"), "afresh each epoch": (10, "deit")}


def views_table(run, rows, losses):
    """Rows of pairs by kind of views, and {(kind, seed): loss of the last epoch} -> one line a dataset and
    kind: mIoU and mSC over trainings, and the mean loss."""
    measured = over_trainings(seed_table(run, rows)).rename(columns={"pooling": "views"})
    return measured.assign(loss=measured["views"].map(pd.Series(losses).groupby(level=0).mean()))


def recognition(run, clip, after=None, name=None):
    """Class-token scores of a dataset, by default the first (Eq. 3), and their mAP in %, as (digest of the
    scores, mAP). `after`: the pair that was trained since; before and after are measured each by itself, once
    a run."""
    dataset = run.load_dataset(name or run.datasets[0])

    def measure():
        scores, _, value = recognize(dataset, clip, run.workers, run.batch_size)
        return pd.DataFrame([{"scores": f"sha {files.digest(scores.tobytes())}", "mAP": value}])

    here = [run.batch_size, provenance.device_name(run.device)]  # bits are compared
    about = [clip, dataset, after and files.digest(after), here]
    return tuple(run.once("recognition", about, measure).iloc[0])


def verdict(gained, seeds, untrained, learned, same, views=None):
    """What ECLIP changes, what it leaves as it was, and what augmentation does to it: sentences computed from
    the tables.

    gained: over CLIP, intervals over images. seeds: a line a training of the pair. untrained:
    `over_trainings` of the pairs before their first step; learned: what training adds to them. same:
    {network: whether CLIP's recognition scores are the same bytes after training}."""
    over, of = over_clips(seeds), f"of {len(gained)} cases (datasets and networks"
    (up, open_, down), many = counts(over, "mSC"), int(over["trainings"].min())
    lines = [
        f"Over {many} training{'s' * (many > 1)} of the pair, by Student's t, ECLIP's mSC is above 0 in {up} "
        f"{of}), below in {down}; {open_} open."
    ]
    for measure in ("mIoU", "mSC"):
        more, even, less = counts(gained, measure)
        said = f"ECLIP's {measure}, of its first training, lies above CLIP's in {more} {of}, over images)"
        lines.append(f"{said}, below in {less}; {even} open.")
    right, wrong = (untrained["mSC_min"] > 0).sum(), (untrained["mSC_max"] < 0).sum()
    more, even, less = counts(learned, "mSC")
    lines.append(
        f"Before its first step, at random, every pair's mSC is above 0 in {right} {of}), below in {wrong}; "
        f"training adds to it in {more}, by Student's t, takes from it in {less}; {even} open."
    )
    turned = (over["mSC_low"] > 0).groupby(over["network"]).all()
    kept = (
        f"recognition, the scores of the class token, is bit-identical in {sum(same.values())} of {len(same)}"
    )
    lines.append(f"So ECLIP turns the map of {turned.sum()} of {len(turned)} networks here, and {kept}.")
    for name, part in () if views is None else views.groupby("dataset", sort=False):
        rows = part.set_index("views")
        for kind, row in rows.drop(index="as they are").iterrows():
            gap = trainings_apart(row, rows.loc["as they are"])
            lines.append(f"{name}: pictures {kind} against pictures as they are: {gap}.")
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
