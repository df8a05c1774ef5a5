"""Figures: a map over its image, sheets of such overlays, and where the scores of foreground and background
lie.

Colours as in the paper: foreground red, background blue (`cmap="cividis"` is safe for every eye)."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib_inline.backend_inline import set_matplotlib_formats

from .explainers import map_of
from .networks.clip import PROMPT

CMAP = "jet"


def notebook_style():
    """Figures in notebooks as small JPEGs: a committed notebook stays under 1 MB."""
    plt.rcParams["figure.dpi"] = 72
    set_matplotlib_formats("jpeg", pil_kwargs={"quality": 75})


def literally(text):
    """A user's text for a figure, where matplotlib would read $ as mathematics."""
    return text.replace("$", r"\$")


def overlay(image, heat=None, ax=None, title=None, cmap=CMAP, alpha=0.5):
    """Draw an image (PIL) and over it a map: [H, W] in [0, 1], float or bool, array or tensor. Returns the
    axes."""
    ax = ax or plt.gca()
    ax.imshow(image)
    if heat is not None:
        ax.imshow(np.asarray(heat, dtype=float), cmap=cmap, vmin=0, vmax=1, alpha=alpha)
    ax.set(xticks=[], yticks=[])
    ax.set_title(title or "", fontsize=8)
    return ax


def sheet(rows, columns, names=None, cmap=CMAP, size=1.5):
    """A sheet of overlays. rows: a list of (image, or one image a column; [map or None for each column]);
    columns: their titles; names: a label for each row. Returns the figure."""
    shape = len(rows), len(columns)
    figure, axes = plt.subplots(*shape, figsize=(size * shape[1], size * shape[0]), squeeze=False)
    for i, (image, maps) in enumerate(rows):
        for j, heat in enumerate(maps):
            below = image[j] if isinstance(image, list) else image
            overlay(below, heat, axes[i, j], columns[j] if i == 0 else None, cmap)
        if names:
            axes[i, 0].set_ylabel(names[i], fontsize=9)
    figure.tight_layout(pad=0.4)
    return figure


def map_sheet(examples, explainers, size=1.5):
    """Images, ground truth and the maps of {title: (clip, explainer)}, one `Example` and its largest class a
    row. Returns the figure."""
    rows = []
    for example in examples:
        text = PROMPT.format(example.largest)
        maps = [map_of(clip, explain, example.image, text) for clip, explain in explainers.values()]
        rows.append((example.image, [None, example.masks[example.largest], *maps]))
    names = [example.largest for example in examples]
    return sheet(rows, ["image", "ground truth", *explainers], names, size=size)


def score_distribution(histograms, title=None):
    """Where along the ITSM foreground and background pixels lie, one panel a network.

    histograms: {name: (foreground [k], background [k])}, shares of pixels in k equal bins of [0, 1]. Returns
    the figure."""
    figure, axes = plt.subplots(
        1, len(histograms), figsize=(3 * len(histograms), 2.6), sharey=True, squeeze=False
    )
    for ax, (name, pair) in zip(axes[0], histograms.items(), strict=True):
        for label, colour, shares in zip(
            ("foreground", "background"), ("tab:red", "tab:blue"), pair, strict=True
        ):
            ax.stairs(
                shares, np.linspace(0, 1, len(shares) + 1), fill=True, alpha=0.45, color=colour, label=label
            )
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
        ax.errorbar(
            x, rows[value], [below, above], fmt="o", capsize=3, color=sns.color_palette()[k], label=part
        )
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
    "not shifted": "dimgray",
}


def point_map(image, place, pooled, grid, kinds=None, ax=None, title=None, seed=0):
    """Fig. 4: one point a channel at its token (jittered inside it, so that no point hides another), larger
    where its pooled value is.

    image: PIL. place: int [D] positions; pooled: [D] values; grid: (h, w); kinds: [D] indices into
    `SHIFT_COLOURS`, default all grey. Returns the axes."""
    ax = ax or plt.gca()
    place, pooled = np.asarray(place), np.asarray(pooled, dtype=float)
    rng, (height, width) = np.random.default_rng(seed), grid
    x = (place % width + 0.5 + rng.uniform(-0.42, 0.42, len(place))) * image.width / width
    y = (place // width + 0.5 + rng.uniform(-0.42, 0.42, len(place))) * image.height / height
    size = 4 + 36 * (pooled - pooled.min()) / max(pooled.max() - pooled.min(), 1e-12)
    colours = np.array(list(SHIFT_COLOURS.values()))[
        np.full(len(place), 2) if kinds is None else np.asarray(kinds)
    ]
    overlay(image, ax=ax, title=title)
    ax.scatter(x, y, s=size, c=colours, alpha=0.75, linewidths=0.4, edgecolors="white")
    for k in range(1, width):
        ax.axvline(k * image.width / width, color="white", linewidth=0.3, alpha=0.6)
    for k in range(1, height):
        ax.axhline(k * image.height / height, color="white", linewidth=0.3, alpha=0.6)
    ax.set(xlim=(0, image.width), ylim=(image.height, 0))
    return ax


def shift_legend(figure):
    """The legend of `point_map`'s colours, below a figure."""
    points = [plt.Line2D([], [], marker="o", linestyle="", color=colour) for colour in SHIFT_COLOURS.values()]
    figure.legend(
        points,
        SHIFT_COLOURS,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.02),
        ncols=3,
        frameon=False,
        fontsize=8,
    )


def verdict_chart(verdicts, ax):
    """One bar a claim of `claims.judge_all`: the share of its cases that hold, green where all do."""
    for k, (_, verdict) in enumerate(verdicts.iterrows()):
        if verdict["cases"]:
            good, count = map(int, verdict["cases"].split(" of "))
            ax.barh(k, good / count, color="tab:green" if good == count else "tab:orange")
        ax.barh(k, 1, color="lightgray" if verdict["cases"] else "white", zorder=0)
        ax.text(0.01, k, verdict["cases"] or "not measured", va="center", fontsize=6)
    ax.set_yticks(
        range(len(verdicts)), [f"{k}. {c[:70]}" for k, c in enumerate(verdicts["claim"], 1)], fontsize=7
    )
    ax.set(xlim=(0, 1), ylim=(len(verdicts) - 0.5, -0.5), xticks=[0, 0.5, 1])
    ax.figure.tight_layout()
    return ax


def architecture():
    """Fig. 5, drawn anew: what is locked (grey), what learns (green), what is used in training alone
    (dashed). Returns the figure."""
    figure, ax = plt.subplots(figsize=(10, 3.1))
    boxes = {
        "image": (0, 2.0, "image", "white"),
        "text": (0, 0, "text", "white"),
        "encoder": (1.6, 2.0, "CLIP image\nencoder", "lightgray"),
        "reader": (1.6, 0, "CLIP text\nencoder", "lightgray"),
        "dino": (1.6, 1.0, "DINO\nattention A", "white"),
        "pool": (3.6, 2.0, "masked max\npooling (Eq. 7)", "white"),
        "phi_i": (5.4, 2.0, r"$\hat\phi_i$", "palegreen"),
        "phi_t": (5.4, 0, r"$\hat\phi_t$", "palegreen"),
        "loss": (7.0, 1.4, "InfoNCE\n(Eq. 9)", "white"),
        "map": (7.0, 0.4, "cosine, resize,\nmin-max: the map", "white"),
    }
    arrows = {
        ("image", "encoder"): "",
        ("text", "reader"): "",
        ("image", "dino"): "",
        ("encoder", "pool"): "tokens $F_i$",
    }
    arrows |= {
        ("dino", "pool"): "A",
        ("pool", "phi_i"): "$F_{mc}$",
        ("reader", "phi_t"): "$F_t$",
        ("phi_i", "loss"): "",
    }
    arrows |= {("phi_t", "loss"): "", ("phi_t", "map"): "", ("phi_i", "map"): ""}
    dashed = {"dino", "pool", "loss"}
    for name, (x, y, label, colour) in boxes.items():
        style = {
            "boxstyle": "round,pad=0.35",
            "fc": colour,
            "ec": "black",
            "ls": "--" if name in dashed else "-",
        }
        ax.text(x, y, label, ha="center", va="center", fontsize=9, bbox=style)
    for (start, end), label in arrows.items():
        (x0, y0, *_), (x1, y1, *_) = boxes[start], boxes[end]
        style = "--" if start in dashed or end in dashed else "-"
        half = lambda name: 0.3 if "phi" in name else 0.65  # noqa: E731
        ax.annotate(
            "", (x1 - half(end), y1), (x0 + half(start), y0), arrowprops={"arrowstyle": "->", "ls": style}
        )
        ax.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.14, label, ha="center", fontsize=8)
    over = {"arrowstyle": "->", "connectionstyle": "arc3,rad=-0.25"}
    ax.annotate("", (5.3, 2.3), (1.8, 2.4), arrowprops=over)
    ax.text(3.55, 2.6, "at test time: every token $F_i$, no mask", ha="center", fontsize=8)
    ax.set(xlim=(-0.7, 8), ylim=(-0.5, 3.1))
    ax.axis("off")
    ax.set_title("ECLIP: grey is locked, green learns, dashed is used in training alone", fontsize=10)
    figure.tight_layout()
    return figure
