"""Notebook 08: what makes the map opposite? Where in the depth of a ViT it begins, and what it shows (beyond
the paper); `arms`: what becomes of it where CLIP is trained with another pool."""

from functools import lru_cache

import matplotlib.pyplot as plt
import pandas as pd

from .. import files, plots
from ..evaluation import counts, table
from ..explainers import explainer
from ..method import similarity
from ..networks.loading import is_vit
from . import controls

KEYS = ["dataset", "network", "training"]
NONE = "no ViT among the networks"
WHAT = ["absent", "mean", "text", "against_others"]  # of `what_table`

# ---------------------------------------------------------------------- measured


def trainings(run):
    """{(network, training): `Clip`} of the run's ViTs: every training that the profile names, else its own
    weights."""
    found = {}
    for network in filter(is_vit, run.networks):
        for tag in run.replicates.get(network, [run.pretrained]):
            clip = run.load_clip(network, tag)
            found[network, clip.pretrained.removeprefix(f"{network}-")] = clip
    return found


def at_depths(clip):
    """{blocks: explainer} of a ViT: CLIP's own map read behind so many of its blocks, 0 for the patch
    embedding. All read one forward pass of a batch."""
    features = lru_cache(1)(clip.encode_depths)  # a tensor is the same key while it is the same object

    def behind(blocks):
        def explain(images, text):
            return similarity(features(images)[blocks], text, clip.projection)

        explain.identity = ["depth", blocks, files.code_digest("studies/causes.py")]
        return explain

    return {blocks: behind(blocks) for blocks in range(len(clip.model.visual.transformer.resblocks) + 1)}


def depth_table(run, clips):
    """mIoU and mSC in % of the map read at every depth, with intervals over images: one line a dataset,
    network, training and number of `blocks`. clips: as of `trainings`."""
    found = [pd.DataFrame()]
    measures = ["mIoU", "mSC", "mSC_low", "mSC_high"]
    for (network, training), clip in clips.items():
        rows = pd.concat([run.evaluate(clip, name, at_depths(clip)) for name in run.datasets])
        part = table(rows.assign(network=network, training=training), [*KEYS, "method"], measures, run.seed)
        found.append(part.rename(columns={"method": "blocks"}))
    return pd.concat(found, ignore_index=True)


def what_table(run, clips):
    """Contrasts of CLIP's own map in %, see `controls`, with intervals over images: one line a dataset,
    network and training. `mean`: of the map's mean over all texts."""
    found = [pd.DataFrame()]
    for (network, training), clip in clips.items():
        own = explainer("clip", clip)
        methods = {"clip": own, "mean": controls.the_mean(own)}
        rows = pd.concat([controls.measured(run, clip, name, methods) for name in run.datasets])
        every = controls.control_table(rows.assign(network=network)).set_index("dataset")
        part, mean = (every[every["method"] == name].drop(columns=["network", "method"]) for name in methods)
        for end in ("", "_low", "_high"):
            part[f"mean{end}"] = mean[f"own{end}"]
        part = part.reset_index()
        part.insert(1, "network", network), part.insert(2, "training", training)
        found.append(part)
    return pd.concat(found, ignore_index=True)


def lines(depths, what):
    """Both tables as the arms' rows have them: one line a dataset, network and training, `mSC_0` and so on
    being the map's after so many blocks, mIoU and mSC those of the last."""
    groups = depths.groupby(KEYS, sort=False)
    by_depth = depths.pivot(index=KEYS, columns="blocks", values="mSC").add_prefix("mSC_")
    return groups[["mIoU", "mSC"]].last().join(by_depth).join(what.set_index(KEYS)[WHAT]).reset_index()


# ---------------------------------------------------------------------- in words


def depth_in_words(depths):
    """At which depths the map is opposite, a sentence a dataset and network, and what follows for
    self-attention."""
    if depths.empty:
        return NONE
    found, early, late = [], 0, 0
    for (dataset, network), part in depths.groupby(["dataset", "network"], sort=False):
        below = part.pivot(index="training", columns="blocks", values="mSC_high") < 0
        first, last = below.iloc[:, 0], below.iloc[:, -1]
        early, late = early + (first & last).sum(), late + last.sum()
        mean = part.groupby("blocks")["mSC"].mean()
        found.append(
            f"{dataset}, {network}: of {len(below)} trainings opposite at the patch embedding {first.sum()}, "
            f"behind the last block {last.sum()}, at every depth {below.all(axis=1).sum()}; mean mSC "
            f"{mean.iloc[0]:.1f} at the patch embedding, {mean.iloc[-1]:.1f} at the end."
        )
    return "\n".join([*found, _so_attention(early, late)])


def _so_attention(early, late):
    """What follows where `late` maps are opposite at their end, `early` of these at the patch embedding."""
    of = f"of the maps that are opposite at the end, {late}, {early} are so before any token sees another"
    if not late:
        return "So there is nothing to explain: no map is opposite at its end."
    return (
        f"So self-attention is not needed for it: {of}."
        if early
        else f"So it comes with self-attention: {of}."
    )


def what_in_words(what):
    """Does CLIP prefer the background, or avoid the named object? A sentence a dataset and network."""
    if what.empty:
        return NONE
    found = []
    for (dataset, network), part in what.groupby(["dataset", "network"], sort=False):
        n, said = len(part), []
        for column, words in (
            ("own", "the map is opposite in {} of {}, not opposite in {}"),
            ("absent", "the map of an absent class is lower on the object in {} of {}, higher in {}"),
            ("text", "the named object is lower than in an absent class's map in {} of {}, higher in {}"),
            ("against_others", "lower than the image's other objects in {} of {}, higher in {}"),
        ):
            above, _, below = counts(part, column)
            said.append(words.format(below, n, above))
        found.append(f"{dataset}, {network}: {'; '.join(said)}. {_so(part)}")
    return "\n".join(found)


def _so(part):
    """What follows of a network whose map is opposite; of a good map absent classes are low on objects
    too."""
    opposite, absent, text = (part[f"{column}_high"] < 0 for column in ("own", "absent", "text"))
    if not opposite.all():
        return "Its map is not opposite in every training." if opposite.any() else "Its map is not opposite."
    if absent.all() and text.all():
        return "It prefers the background whatever is named, and avoids the named object besides."
    if absent.all():
        return "It prefers the background, whatever is named."
    return "It avoids the named object." if text.all() else "The reason is not the same in every training."


# ---------------------------------------------------------------------- figures


def depth_figure(curves, colour):
    """mSC by depth, one panel a dataset, one line a training, coloured by the column `colour`. curves:
    dataset, training, `colour`, blocks, mSC. Returns the figure."""
    datasets, kinds = (list(dict.fromkeys(curves[name])) for name in ("dataset", colour))
    figure, axes = plots.grid(1, len(datasets), (5 * len(datasets), 2.8), sharey=True)
    for ax, dataset in zip(axes[0], datasets, strict=True):
        for (kind, _), part in curves[curves["dataset"] == dataset].groupby([colour, "training"], sort=False):
            ax.plot(part["blocks"], part["mSC"], color=f"C{kinds.index(kind)}", marker=".", alpha=0.7)
        ax.axhline(0, color="gray", linestyle="--", linewidth=1)
        ax.set(title=dataset, xlabel="blocks before the map is read (0: patch embedding)")
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("mSC (%)")
    handles = [plt.Line2D([], [], color=f"C{k}") for k in range(len(kinds))]
    figure.legend(handles, kinds, loc="outside upper center", ncols=len(kinds), frameon=False, fontsize=8)
    return figure
