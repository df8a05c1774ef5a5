"""Notebook 01: what CLIP's own map looks like and how opposite it is (Figs. 1, 6, 10 and the CLIP rows of
Table 1)."""

import textwrap
from functools import partial

import pandas as pd
import torch

from .. import plots
from ..evaluation import MEASURES, counts, grouped, in_words, spread, t_interval, table
from ..explainers import explainer, map_of
from ..networks.clip import PROMPT


def pixel_shares(maps, masks, void=None, bins=25):
    """Where the scores of foreground and background lie: [P, H, W] -> [P, 2, bins], shares of each set's
    pixels in equal bins of [0, 1]; nan where the set is empty."""
    index = (maps * bins).int().clamp_(max=bins - 1)
    index = torch.where(masks, index, index + bins)
    index = index if void is None else index.masked_fill(void, 2 * bins)
    index = index.flatten(1) + torch.arange(len(maps), device=maps.device)[:, None] * (2 * bins + 1)
    counts = torch.bincount(index.flatten(), minlength=len(maps) * (2 * bins + 1)).reshape(len(maps), -1)
    counts = counts[:, : 2 * bins].double().reshape(len(maps), 2, bins)
    return counts / counts.sum(2, keepdim=True)


def histogram(run, clip, name):
    """`pixel_shares` of CLIP's maps, averaged over all pairs of a dataset and measured once -> [2, bins]. The
    same pass writes the rows of `Run.evaluate`."""
    dataset = run.load_dataset(name)
    return run.once("histogram", [clip, dataset], partial(_histogram, run, clip, dataset)).to_numpy()


def _histogram(run, clip, dataset):
    shares = []
    keep = lambda *scored: shares.append(pixel_shares(*scored).cpu())  # noqa: E731
    run.evaluate(clip, dataset, {"clip": explainer("clip", clip)}, observe=keep)
    return pd.DataFrame(torch.cat(shares).nanmean(0).numpy())


def clip_table(run, rows):
    """One line a dataset and network: `summarize`'s measures in %, images and pairs."""
    found = table(rows, ("dataset", "network"), [*MEASURES, "images", "pairs"], run.seed)
    return found.astype({"images": int, "pairs": int})


def training_table(run):
    """The same for every training of a network that the profile names, one line each."""
    rows = []
    for network, tags in run.replicates.items():
        for tag in tags:
            clip = run.load_clip(network, tag)
            explain = {("clip", tag): explainer("clip", clip)}
            rows += [run.evaluate(clip, name, explain) for name in run.datasets]
    if not rows:
        return pd.DataFrame()
    found = table(pd.concat(rows), ("dataset", "network", "seed"), seed=run.seed)
    return found.rename(columns={"seed": "training"})


def over_clips(trainings):
    """Mean over trainings, of CLIP or of a pair, with its 95 % interval by Student's t, for mIoU and mSC;
    one line a dataset and network."""

    def line(part):
        means = {value: spread(value, t_interval(part[value])) for value in ("mIoU", "mSC")}
        negative = int((part["mSC"] < 0).sum())
        return {"trainings": len(part), **means["mIoU"], **means["mSC"], "negative": negative}

    return grouped(trainings, ("dataset", "network"), line)


def contrast_cases(run, rows):
    """Fig. 6 from the first network and dataset: an opposite map, a high and a low contrast of nearly equal
    IoU.

    Returns (figure, DataFrame of the three cases)."""
    network, name = run.networks[0], run.datasets[0]
    part = rows[(rows["network"] == run.title(network)) & (rows["dataset"] == name)]
    part = part.dropna(subset="score_contrast").sort_values("score_contrast")
    usual = part[part["foreground"].between(0.05, 0.6)]
    part = usual if len(usual) >= 3 else part
    high = part.iloc[-1]
    close = part[part["score_contrast"].between(0, 0.5 * high["score_contrast"])]
    low = close.iloc[(close["iou"] - high["iou"]).abs().argmin()] if len(close) else part.iloc[len(part) // 2]
    cases = pd.DataFrame([part.iloc[0], high, low], index=["(a) mSC < 0", "(b) high mSC", "(c) low mSC"])
    clip, dataset = run.load_clip(network), run.load_dataset(name)
    explain, wanted = explainer("clip", clip), set(cases["image_id"])
    found = {example.image_id: example for example in dataset if example.image_id in wanted}
    panels, labels = [], []
    for label, case in cases.iterrows():
        example, class_name = found[case["image_id"]], case["class_name"]
        labels.append(f"{label}\n{textwrap.fill(PROMPT.format(class_name), 14)}")
        heat = map_of(clip, explain, example.image, PROMPT.format(class_name))
        judged = plots.judged(example, class_name, heat)
        panels.append((example.image, [None, example.masks[class_name], judged]))
    figure = plots.sheet(panels, ["image", "ground truth", "CLIP"], labels)
    figure.suptitle(f"{run.title(network)} on {name}; {run.weights}", fontsize=8)
    return figure, cases[["image_id", "class_name", "iou", "threshold", "score_contrast", "foreground"]]


def opposite_shares(rows):
    """Per network and dataset, in % of the pairs: negative contrast, and best mask at threshold 0 (the whole
    image)."""

    def line(part):
        signs = {"opposite": part["score_contrast"] < 0, "at threshold 0": part["threshold"] == 0}
        return {name: 100 * found.mean() for name, found in signs.items()}

    return grouped(rows, ("dataset", "network"), line)


def direction(low, high):
    """What an interval of mSC says about a map."""
    words = ("as one expects (mSC above 0)", "opposite (mSC below 0)", "undecided (interval holds 0)")
    return in_words(low, high, *words)


def verdict(measured, over, shares):
    """Is CLIP's map opposite? Sentences computed from the tables."""
    up, open_, down = counts(measured, "mSC")
    lines = [
        f"CLIP's map is opposite (mSC below 0, with its interval over images) in {down} of {len(measured)} "
        f"cases, not opposite in {up}, undecided in {open_}.",
        f"Of single (image, class) pairs {shares['opposite'].min():.0f} to {shares['opposite'].max():.0f} % "
        f"have a negative contrast, and of {shares['at threshold 0'].min():.0f} to "
        f"{shares['at threshold 0'].max():.0f} % the best mask is the whole image.",
    ]
    for _, r in over.iterrows():
        said = f"{direction(r['mSC_low'], r['mSC_high'])}, {r['negative']} of {r['trainings']} negative"
        lines.append(f"{r['dataset']}, {r['network']}, over {r['trainings']} trainings: {said}.")
    return "\n".join(lines)
