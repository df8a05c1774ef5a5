"""Figures: a map over its image, sheets of such overlays, and where the scores of foreground and background
lie.

A map lies over its image in grey, foreground red and background blue as in the paper (Moreland's diverging
map, even to the eye; docs/using.md names one that is safe for every eye). Masks are outlines, in one colour
everywhere."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from .evaluation import score_contrast
from .explainers import map_of
from .networks.clip import PROMPT

CMAP, ALPHA, OUTLINE = "coolwarm", 0.65, "limegreen"
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442"]  # Okabe and Ito's


def notebook_style(cmap=CMAP):
    """Figures in notebooks as small JPEGs, so that a committed one stays under 1 MB; lines, dots and bars in
    colours for every eye, maps in `cmap` (a name of matplotlib's)."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    global CMAP
    CMAP = plt.get_cmap(cmap).name
    plt.rcParams["figure.dpi"] = 72
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=COLOURS)
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 75})


def literally(text):
    """A user's text for a figure, where matplotlib would read $ as mathematics."""
    return text.replace("$", r"\$")


def overlay(image, heat=None, ax=None, title=None, cmap=None, mask=None, words="", alpha=ALPHA):
    """Draw an image (PIL), in grey where a map lies over it: `heat` [H, W] in [0, 1], array or tensor, whose
    values lie in [0, 1]; a bool one is an outline, as `mask` is. `words`: in the corner. Returns the axes."""
    ax = ax or plt.gca()
    drawn, mask = (None if what is None else np.asarray(what) for what in (heat, mask))
    if drawn is not None and drawn.dtype == bool:
        drawn, mask = None, drawn
    ax.imshow(image if drawn is None else image.convert("L"), cmap="gray", vmin=0, vmax=255)
    if drawn is not None:
        ax.imshow(drawn.astype(float), cmap=cmap or CMAP, vmin=0, vmax=1, alpha=alpha)
    if mask is not None and np.any(mask) and not np.all(mask):
        for colour, width in (("black", 1.6), (OUTLINE, 0.9)):
            ax.contour(mask.astype(float), [0.5], colors=colour, linewidths=width)
    box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85}
    if words:
        ax.text(0.03, 0.03, words, fontsize=7, transform=ax.transAxes, bbox=box)
    ax.set(xticks=[], yticks=[])
    ax.set_title(title or "", fontsize=8)
    return ax


def grid(rows, columns, size, **options):
    """Axes close together, with room for titles and labels -> (figure, array of them)."""
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    return figure, axes


def blended(image, heat, cmap=None, alpha=ALPHA):
    """What `overlay` draws, as pixels: an image (PIL) in grey under a map [H, W] of its size -> PIL RGB."""
    colours = Image.fromarray(plt.get_cmap(cmap or CMAP)(np.asarray(heat), bytes=True)[..., :3])
    return Image.blend(image.convert("L").convert("RGB"), colours, alpha)


def sheet(rows, columns, names=None, cmap=None, size=1.5, alpha=ALPHA):
    """A sheet of overlays with a colour bar. rows: a list of (image, or one image a column; panels, one a
    column: None, a mask, a map, or `judged`); columns: their titles, or a list of them for every row; names:
    a label for each row. Returns the figure."""
    titles = columns if isinstance(columns[0], list) else [columns]
    shape = len(rows), len(titles[0])
    images = [[image] if not isinstance(image, list) else image for image, _ in rows]
    tall = [max(i.height / i.width for i in row) for row in images]
    tall = [min(max(ratio, 0.75), 2) for ratio in tall]  # names stand beside the flat ones
    figure, axes = grid(*shape, (size * shape[1] + 0.5, size * sum(tall) + 0.3), height_ratios=tall)
    for i, (image, panels) in enumerate(rows):
        for j, panel in enumerate(panels):
            below = image[j] if isinstance(image, list) else image
            heat, mask, words = panel if isinstance(panel, tuple) else (panel, None, "")
            title = titles[i][j] if i < len(titles) else None
            overlay(below, heat, axes[i, j], title, cmap, mask, words, alpha)
        if names:
            axes[i, 0].set_ylabel(names[i], fontsize=8)
    if any(len(ax.images) > 1 for ax in axes.flat):
        colour_bar(figure, axes, cmap)
    return figure


def colour_bar(figure, axes, cmap=None):
    """The scale of the maps, beside a figure's axes (an array of rows and columns)."""
    scale = plt.cm.ScalarMappable(plt.Normalize(0, 1), cmap or CMAP)
    bar = figure.colorbar(scale, ax=axes, shrink=min(1, 1.6 / len(axes)), aspect=18, pad=0.01)
    bar.set_ticks([0, 1], labels=["0", "1"], fontsize=7)
    bar.set_label("score in the map", fontsize=7, labelpad=-4)


def judged(example, name, heat):
    """A panel of `sheet`: a map [H, W] with the outline of one class and its contrast (mSC in %)."""
    mask = example.masks[name]
    void = None if example.void is None else torch.from_numpy(example.void)
    contrast = score_contrast(torch.as_tensor(heat), torch.from_numpy(mask), void)
    return heat, mask, f"{100 * float(contrast):+.0f}"


def map_sheet(shown, explainers, size=1.5):
    """Images, ground truth and the maps of {title: (clip, explainer)} with their contrast (%), one row an
    `Example` (its largest class), or an (`Example`, class). Returns the figure."""
    rows, names = [], []
    for item in shown:
        example, name = item if isinstance(item, tuple) else (item, item.largest)
        text = PROMPT.format(name)
        maps = [map_of(clip, explain, example.image, text) for clip, explain in explainers.values()]
        rows.append((example.image, [None, example.masks[name], *(judged(example, name, m) for m in maps)]))
        names.append(textwrap.fill(text, 14))
    return sheet(rows, ["image", "ground truth", *explainers], names, size=size)


def score_distribution(histograms, title=None):
    """Where along the ITSM foreground and background pixels lie, one panel a network.

    histograms: {name: (foreground [k], background [k])}, shares of pixels in k equal bins of [0, 1]. Returns
    the figure."""
    size = (3 * len(histograms), 2.6)
    figure, axes = plt.subplots(1, len(histograms), figsize=size, sharey=True, squeeze=False)
    looks = [{"label": "foreground", "color": "tab:red"}, {"label": "background", "color": "tab:blue"}]
    for ax, (name, pair) in zip(axes[0], histograms.items(), strict=True):
        for look, shares in zip(looks, pair, strict=True):
            ax.stairs(shares, np.linspace(0, 1, len(shares) + 1), fill=True, alpha=0.45, **look)
        ax.set(title=name, xlabel="score in the map", xlim=(0, 1))
    axes[0, 0].set_ylabel("share of pixels")
    axes[0, -1].legend(frameon=False, fontsize=8)
    figure.suptitle(title or "", fontsize=10)
    figure.tight_layout()
    return figure


def intervals(table, value, label, group="dataset", name="network", reference=0, ax=None):
    """Dots with 95 % intervals: columns `value`, `value`_low, `value`_high of a table, one row a `name`, one
    colour a `group`. A dashed line marks `reference` (None for none). Returns the axes."""
    ax = ax or plt.subplots(figsize=(6, 2.6))[1]
    names = list(dict.fromkeys(table[name]))
    groups = list(dict.fromkeys(table[group]))
    for k, part in enumerate(groups):
        rows = table[table[group] == part]
        x = [names.index(n) + (k - (len(groups) - 1) / 2) * 0.2 for n in rows[name]]
        below, above = rows[value] - rows[f"{value}_low"], rows[f"{value}_high"] - rows[value]
        look = {"fmt": "o", "markersize": 2.5, "capsize": 4, "linewidth": 1}  # no bar is hidden
        ax.errorbar(x, rows[value], [below, above], label=part, color=f"C{k}", **look)
    if reference is not None:
        ax.axhline(reference, color="gray", linestyle="--", linewidth=1)
    ax.set_xticks(range(len(names)), names, fontsize=8)
    ax.set(ylabel=label)
    ax.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(groups))
    ax.figure.tight_layout()
    return ax


SHIFT_COLOURS = {
    "background to foreground": "tab:blue",
    "foreground to background": "tab:red",
    "not shifted": "#404040",
}


def point_map(image, place, pooled, grid, kinds=None, mask=None, ax=None, title=None, seed=0):
    """Fig. 4: one point a channel at its token (jittered inside it, so that no point hides another), larger
    where its pooled value is.

    image: PIL. place: int [D] positions; pooled: [D] values; grid: (h, w); kinds: [D] indices into
    `SHIFT_COLOURS`, default all grey; mask: outlined. Returns the axes."""
    ax = ax or plt.gca()
    place, pooled = np.asarray(place), np.asarray(pooled, dtype=float)
    rng, (height, width) = np.random.default_rng(seed), grid
    x = (place % width + 0.5 + rng.uniform(-0.42, 0.42, len(place))) * image.width / width
    y = (place // width + 0.5 + rng.uniform(-0.42, 0.42, len(place))) * image.height / height
    size = 4 + 36 * (pooled - pooled.min()) / max(pooled.max() - pooled.min(), 1e-12)
    kinds = np.full(len(place), 2) if kinds is None else np.asarray(kinds)
    colours = np.array(list(SHIFT_COLOURS.values()))[kinds]
    pale = Image.blend(image.convert("L"), Image.new("L", image.size, 255), 0.6)
    overlay(pale, ax=ax, title=title, mask=mask)
    ax.scatter(x, y, s=size, c=colours, alpha=0.9, linewidths=0.6, edgecolors="white")
    for k in range(1, width):
        ax.axvline(k * image.width / width, color="white", linewidth=0.3, alpha=0.6)
    for k in range(1, height):
        ax.axhline(k * image.height / height, color="white", linewidth=0.3, alpha=0.6)
    ax.set(xlim=(0, image.width), ylim=(image.height, 0))
    return ax


def shift_legend(figure):
    """The legend of `point_map`'s colours, below a figure."""
    points = [plt.Line2D([], [], marker="o", linestyle="", color=colour) for colour in SHIFT_COLOURS.values()]
    figure.legend(points, SHIFT_COLOURS, loc="outside lower center", ncols=3, frameon=False, fontsize=8)


VERDICT_COLOURS = {"above": "#2c7bb6", "undecided": "#cccccc", "below": "#d7191c"}


def verdict_chart(verdicts, ax):
    """One bar a claim of `claims.judge_all`: how many of its cases lie above 0, are undecided, lie below;
    the verdict stands beside it."""
    counts = verdicts[list(VERDICT_COLOURS)]
    shares = counts.div(counts.sum(axis=1).replace(0, 1), axis=0)
    for kind, left in zip(shares, (shares.cumsum(axis=1) - shares).to_numpy().T, strict=True):
        ax.barh(range(len(shares)), shares[kind], left=left, color=VERDICT_COLOURS[kind], label=kind)
    for k, (_, verdict) in enumerate(verdicts.iterrows()):
        cases = " · ".join(map(str, verdict[list(VERDICT_COLOURS)])) if counts.iloc[k].sum() else ""
        ax.text(1.02, k, f"{verdict['verdict']}  {cases}", va="center", fontsize=7)
    labels = [textwrap.fill(f"{k}. {claim}", 90) for k, claim in enumerate(verdicts["claim"], 1)]
    ax.set_yticks(range(len(labels)), labels, fontsize=7)
    ax.set(xlim=(0, 1), ylim=(len(labels) - 0.5, -0.5), xticks=[])
    ax.legend(frameon=False, fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0))
    return ax
