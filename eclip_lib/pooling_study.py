"""What notebook 03 draws and decides about poolings and masks: Fig. 3, Table 3, and what lies beyond them."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from . import discovery
from .ablation import chosen_mask, over_seeds, row_name, score_pairs, seed_table, train_rows
from .cache import GROUND_TRUTH, TOKENS
from .clip import is_vit
from .evaluation import bootstrap
from .masks import Own, noise, saliency


def loss_figure(losses, chance):
    """Training loss by epoch, one panel a network, one line a pooling (mean over seeds). losses: list of DataFrames of `train_rows`;
    chance: ln of the batch size."""
    losses = pd.concat(losses, ignore_index=True).assign(pooling=lambda t: t["pooling"].map(row_name))
    grid = sns.relplot(
        losses, x="epoch", y="loss", hue="pooling", col="network", kind="line", height=2.6, aspect=1.2, errorbar=None
    )
    grid.set(ylim=(0, None)).set_titles("{col_name}")
    for ax in grid.axes.flat:
        ax.axhline(chance, color="gray", linestyle=":")
    return grid.figure


def table_3_figure(table, title):
    """mIoU and mSC of every pooling, one group of bars a network; the line on a bar spans the trainings. Returns the figure."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 2.8))
    names, networks = list(dict.fromkeys(table["pooling"])), list(dict.fromkeys(table["network"]))
    for ax, value in zip(axes, ("mIoU", "mSC"), strict=True):
        for k, name in enumerate(names):
            part = table[table["pooling"] == name].set_index("network").loc[networks]
            x = np.arange(len(networks)) + (k - (len(names) - 1) / 2) * 0.8 / len(names)
            ax.bar(x, part[value], 0.75 / len(names), color=sns.color_palette()[k], label=name)
            ax.vlines(x, part[f"{value}_low"], part[f"{value}_high"], color="black")
        ax.axhline(0, color="gray", linewidth=0.8)
        ax.set_xticks(range(len(networks)), networks, fontsize=8)
        ax.set(ylabel=f"{value} (%)")
    axes[1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def map_sheet(run, clip, pairs, name, count=4):
    """Fig. 3 -> arguments of `plots.sheet`: image, ground truth, CLIP's own map, then every pooling's (first training)."""
    shown, columns = discovery.examples(run.load_dataset(name), count), [key for key in pairs if key[1] == 0]
    rows, picked = [], []
    for example in shown:
        class_name = max(example.masks, key=lambda n: example.masks[n].sum())
        maps = [discovery.maps_of(clip, example, pairs[key])[class_name] for key in columns]
        rows.append((example.image, [None, example.masks[class_name], discovery.maps_of(clip, example)[class_name], *maps]))
        picked.append(class_name)
    names = [row_name(column).replace("max, mask: ", "masked max:\n") for column, _ in columns]
    return rows, ["image", "ground truth", "CLIP", *names], picked


def masks_for(run, clip, models):
    """The masks of one network's cache: the run's own, and on its first ViT those beyond the paper: ground truth where the pairs have it,
    CLIP's own attention, saliency, noise. Notebooks 03 and 05 ask for the same ones, so they share one cache."""
    if clip.network != next((network for network in run.networks if is_vit(network)), None):
        return models
    extra = {"CLIP's own": Own(clip), "pixel saliency": saliency, "noise": noise}
    if run.pairs.startswith("scenes") and run.training["augment"] is None:
        extra = {GROUND_TRUTH: True} | extra
    return extra | models


def paper_columns(run):
    """The columns of Table 3."""
    return ["attention", "average", "max", *(f"masked_max:{name}" for name in run.masks)]


def beyond(run, clips, caches, rows):
    """Table 3's max rows again for the first ViT, beside other masks and a start from CLIP's own pair -> DataFrame over seeds.

    clips, caches: by network. rows: Table 3's, {network: `score_pairs`}."""
    network = next(filter(is_vit, clips), None)
    if network is None:
        return pd.DataFrame()
    clip, cache = clips[network], caches[network]
    found = {(key, name): part for (key, name), part in rows[network].items() if "max" in key[0]}
    pairs = train_rows(run, clip, cache, [column for column in cache.columns if column not in paper_columns(run)])[0]
    again = train_rows(run, clip, cache, [chosen_mask(run)], init="clip")[0]
    pairs |= {(f"{column}, from CLIP's pair", seed): pair for (column, seed), pair in again.items()}
    table = over_seeds(seed_table(run, {network: found | score_pairs(run, clip, pairs)}))
    return table.sort_values("dataset", kind="stable", ignore_index=True)


def resnet_grid(run, clips, caches, rows):
    """{feature map, tokens after the attention pool} x {average, max, masked max} on every ResNet -> DataFrame over seeds. Arguments as of
    `beyond`."""
    lines = []
    for network, clip in clips.items():
        if is_vit(network):
            continue
        columns = ["average", "max", chosen_mask(run)]
        tokens = train_rows(run, clip, caches[network], [TOKENS + column for column in columns])[0]
        feature_map = {(key, name): part for (key, name), part in rows[network].items() if key[0] in columns}
        for reads, found in (("feature map", feature_map), ("tokens after the pool", score_pairs(run, clip, tokens))):
            table = over_seeds(seed_table(run, {network: found}))
            table.insert(2, "reads", reads)
            lines.append(table)
    return pd.concat(lines, ignore_index=True) if lines else pd.DataFrame()


def ordering(run, rows, resamples=1000):
    """The paper's comparisons of Table 3, paired: {network: `score_pairs`} -> DataFrame, differences in points with 95 % intervals from a
    bootstrap over images and trainings together."""
    lines = []
    for network, found in rows.items():
        columns = list(dict.fromkeys(key[0] for key, _ in found if key != "CLIP"))
        steps = [("average", "attention"), ("max", "attention"), ("max", "average")]
        masked = [column for column in columns if column.startswith("masked_max")]
        steps += [(column, "max") for column in masked] + ([(masked[-1], masked[0])] if len(masked) > 1 else [])
        steps = [pair for pair in steps if set(pair) <= set(columns)]
        for name in run.datasets:
            for better, worse in steps:
                line = {"dataset": name, "network": run.title(network), "better": row_name(better), "than": row_name(worse)}
                for measure, value in (("mIoU", "iou"), ("mSC", "score_contrast")):
                    draws = [_draws(run, found, name, column, value, resamples) for column in (better, worse)]
                    line[measure] = _mean(found, name, better, value) - _mean(found, name, worse, value)
                    line[f"{measure}_low"], line[f"{measure}_high"] = np.percentile(draws[0] - draws[1], [2.5, 97.5])
                lines.append(line)
    return pd.DataFrame(lines)


def _trainings(found, name, column):
    return [part for (key, dataset), part in found.items() if dataset == name and key != "CLIP" and key[0] == column]


def _mean(found, name, column, value):
    means = [part.groupby("class_name")[value].mean().mean() for part in _trainings(found, name, column)]
    return 100 * sum(means) / len(means)


def _draws(run, found, name, column, value, resamples):
    """Class means over resampled images, of resampled trainings; the same draws for every column."""
    every = np.stack([bootstrap(part, value, resamples, run.seed) for part in _trainings(found, name, column)])
    chosen = np.random.default_rng(run.seed).integers(0, len(every), (len(every), resamples))
    return np.take_along_axis(every, chosen, 0).mean(0)
