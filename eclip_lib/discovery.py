"""What notebook 01 measures and draws about CLIP's own map: Figs. 1, 6, 10 and the CLIP rows of Table 1."""

import pandas as pd
import torch
from scipy import stats

from . import plots
from .clip import PROMPT
from .evaluation import evaluate, summarize
from .explainers import explainer
from .itsm import itsm, similarity
from .profiles import REPOSITORY

MEASURES = ["mIoU", "mIoU_low", "mIoU_high", "mSC", "mSC_low", "mSC_high", "mIoU_pairs", "mSC_pairs", "floor"]


def examples(dataset, count, start=0):
    """The first `count` annotated images from `start` on, of which each brings a class not shown before where there is one."""
    chosen, seen, spare = [], set(), []
    for index in range(start, min(len(dataset), start + 10 * count)):
        example = dataset[index]
        if not example.masks:
            continue
        fresh = [name for name in example.masks if name not in seen]
        (chosen if fresh else spare).append(example)
        seen |= set(example.masks)
        if len(chosen) == count:
            break
    return (chosen + spare)[:count]


@torch.no_grad()
def maps_of(clip, example, projection=None):
    """Every present class's map of one image, at the image's size: {class name: float32 [H, W]}."""
    names = list(example.masks)
    text = clip.encode_text([PROMPT.format(name) for name in names])
    features = clip.encode_image(clip.preprocess(example.image)[None])
    cells = similarity(features, text, projection or clip.projection)
    return dict(zip(names, itsm(cells, example.image.size[::-1])[0].cpu(), strict=True))


def map_sheet(run, name, count=6):
    """Fig. 10 for one dataset -> arguments of `plots.sheet`: image, ground truth and every network's map, one class a row."""
    shown = examples(run.load_dataset(name), count)
    picked = [max(example.masks, key=lambda n: example.masks[n].sum()) for example in shown]
    rows = [[e.image, [None, e.masks[c]]] for e, c in zip(shown, picked, strict=True)]
    for network in run.networks:
        clip = run.load_clip(network)
        for row, example, class_name in zip(rows, shown, picked, strict=True):
            row[1].append(maps_of(clip, example)[class_name])
    return rows, ["image", "ground truth", *map(run.title, run.networks)], picked


def transposed(sheet):
    """Fig. 1's layout from Fig. 10's sheet: ground truth and map below each other, one network a column, an image each."""
    rows, columns, picked = sheet
    networks = columns[2:]
    image = [rows[k % len(rows)] for k in range(len(networks))]
    titles = [f"{network}\n{picked[k % len(rows)]}" for k, network in enumerate(networks)]
    truth = [maps[1] for _, maps in image]
    found = [maps[2 + k] for k, (_, maps) in enumerate(image)]
    return [([i for i, _ in image], truth), ([i for i, _ in image], found)], titles, ["ground truth", "CLIP"]


def table(run, rows):
    """Rows of `evaluate` by (network, dataset) -> one line each: dataset, network and `summarize`'s measures in %."""
    lines = [
        {"dataset": name, "network": run.title(network), **summarize(part, seed=run.seed)[[*MEASURES, "images", "pairs"]]}
        for (network, name), part in rows.items()
    ]
    return pd.DataFrame(lines).astype({"images": int, "pairs": int})


def replicate_table(run, rows):
    """The same for every further training of a network that the profile names; `rows` saves evaluating the first again."""
    lines = []
    for network, tags in run.replicates.items():
        for tag in tags:
            clip = run.load_clip(network, tag)
            for name in run.datasets:
                again = rows.get((network, name)) if tag == tags[0] else None
                part = (
                    evaluate(explainer("clip", clip), run.load_dataset(name), clip, run.workers, run.batch_size)
                    if again is None
                    else again
                )
                lines.append({"dataset": name, "network": network, "training": tag, **summarize(part, seed=run.seed)[MEASURES]})
    return pd.DataFrame(lines)


def over_models(seeds):
    """Mean over trainings with its 95 % t interval, for mIoU and mSC; one line a dataset and network."""
    lines = []
    for (name, network), part in seeds.groupby(["dataset", "network"], sort=False) if len(seeds) else ():
        line = {"dataset": name, "network": network, "trainings": len(part)}
        for value in ("mIoU", "mSC"):
            line[value], half = part[value].mean(), stats.t.ppf(0.975, len(part) - 1) * stats.sem(part[value])
            line[f"{value}_low"], line[f"{value}_high"] = line[value] - half, line[value] + half
        line["negative"] = int((part["mSC"] < 0).sum())
        lines.append(line)
    return pd.DataFrame(lines)


def reported(name, method=None):
    """A table of the paper, quoted (`results/reported/`); `method` keeps one method's rows."""
    quoted = pd.read_csv(REPOSITORY / "results" / "reported" / f"{name}.csv")
    return quoted if method is None else quoted[quoted["method"] == method].reset_index(drop=True)


def pixel_shares(maps, masks, void=None, bins=25):
    """Where the scores of foreground and background lie: [P, H, W] -> [P, 2, bins], shares of each set's pixels in equal bins of
    [0, 1]; nan where the set is empty."""
    index = (maps * bins).int().clamp_(max=bins - 1)
    index = torch.where(masks, index, index + bins)
    index = index if void is None else index.masked_fill(void, 2 * bins)
    index = index.flatten(1) + torch.arange(len(maps), device=maps.device)[:, None] * (2 * bins + 1)
    counts = torch.bincount(index.flatten(), minlength=len(maps) * (2 * bins + 1)).reshape(len(maps), -1)[:, : 2 * bins]
    counts = counts.double().reshape(len(maps), 2, bins)
    return counts / counts.sum(2, keepdim=True)


def evaluate_all(run, method="clip"):
    """A method on every network and dataset of a run, one pass each -> (rows, histograms), both by (network, dataset): the rows of
    `evaluate`, and `pixel_shares` averaged over all pairs."""
    rows, histograms = {}, {}
    for network in run.networks:
        clip = run.load_clip(network)
        for name in run.datasets:
            shares = []
            rows[network, name] = evaluate(
                explainer(method, clip), run.load_dataset(name), clip, run.workers, run.batch_size, description=f"{network} on {name}",
                observe=lambda *scored, shares=shares: shares.append(pixel_shares(*scored).cpu()),
            )  # fmt: skip
            histograms[network, name] = torch.cat(shares).nanmean(0).numpy()
    return rows, histograms


def contrast_cases(run, rows):
    """Fig. 6 from the first network and dataset: an opposite map, a high and a low contrast of nearly equal IoU.

    Returns (figure, DataFrame of the three cases)."""
    (network, name), part = next(iter(rows.items()))
    part = part.dropna(subset="score_contrast").sort_values("score_contrast")
    usual = part[part["foreground"].between(0.05, 0.6)]
    part = usual if len(usual) >= 3 else part
    high = part.iloc[-1]
    close = part[part["score_contrast"].between(0, 0.5 * high["score_contrast"])]
    low = close.iloc[(close["iou"] - high["iou"]).abs().argmin()] if len(close) else part.iloc[len(part) // 2]
    cases = pd.DataFrame([part.iloc[0], high, low], index=["(a) mSC < 0", "(b) high mSC", "(c) low mSC"])
    clip, dataset, panels = run.load_clip(network), run.load_dataset(name), []
    wanted = set(cases["image_id"])
    found = {example.image_id: example for example in dataset if example.image_id in wanted}
    for _, case in cases.iterrows():
        example = found[case["image_id"]]
        panels.append((example.image, [None, example.masks[case["class_name"]], maps_of(clip, example)[case["class_name"]]]))
    figure = plots.sheet(panels, ["image", "ground truth", run.title(network)], list(cases.index))
    return figure, cases[["image_id", "class_name", "iou", "threshold", "score_contrast", "foreground"]]


def opposite_shares(run, rows):
    """Per network and dataset, in % of the pairs: negative contrast, and best mask at threshold 0 (the whole image)."""
    lines = [
        {"dataset": name, "network": run.title(network), "opposite": 100 * (part["score_contrast"] < 0).mean(),
         "at threshold 0": 100 * (part["threshold"] == 0).mean()}
        for (network, name), part in rows.items()
    ]  # fmt: skip
    return pd.DataFrame(lines)


def direction(low, high):
    """What an interval of mSC says about a map."""
    return (
        "opposite (mSC below 0)" if high < 0 else "as one expects (mSC above 0)" if low > 0 else "undecided (interval holds 0)"
    )


def verdict(table, over_seeds):
    """Sentences computed from the tables: what each network's map does on each dataset."""
    lines = []
    for _, r in table.iterrows():
        lines.append(
            f"{r['dataset']}, {r['network']}: {direction(r['mSC_low'], r['mSC_high'])}; mSC {r['mSC']:.0f}; "
            f"mIoU {r['mIoU']:.0f}, floor {r['floor']:.0f}"
        )
    for _, r in over_seeds.iterrows():
        lines.append(
            f"{r['dataset']}, {r['network']}, over {r['trainings']} trainings: {direction(r['mSC_low'], r['mSC_high'])}, "
            f"{r['negative']} of {r['trainings']} negative"
        )
    return "\n".join(lines)
