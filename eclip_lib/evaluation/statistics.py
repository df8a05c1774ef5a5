"""What tidy rows of `evaluate` say: measures with intervals, paired gains, spread over trainings, and their
words (paper §4.1).

An interval names its unit. Over images it is a bootstrap that resamples whole images; over trainings it is
Student's t."""

from functools import lru_cache

import numpy as np
import pandas as pd

from ..explainers import named

VALUES = {"mIoU": "iou", "mSC": "score_contrast"}
FURTHER = {  # measures that `evaluate` was asked for: (summed, over what; None for pairs)
    "mIoU_image": ("iou_image", None),
    "mIoU_argmax": ("argmax_intersection", "argmax_union"),
    "mIoU_argmax_background": ("argmax_background_intersection", "argmax_background_union"),
    "deletion": ("deletion", None),
    "insertion": ("insertion", None),
    "road": ("road", None),
}
MEASURES = ["mIoU", "mIoU_low", "mIoU_high", "mSC", "mSC_low", "mSC_high", "mIoU_pairs", "mSC_pairs", "floor"]


def class_mean(rows, value, over=None):
    """Mean of a column per class, then over classes, in %; pairs without a value are left out. over: a
    column, whose sum takes the place of the number of pairs."""
    classes = rows.groupby("class_name")
    if over is None:
        return 100 * classes[value].mean().mean()
    return 100 * (classes[value].sum() / classes[over].sum()).mean()


def interval(draws):
    """95 % percentile interval of bootstrap draws -> (low, high)."""
    return tuple(np.nanpercentile(draws, [2.5, 97.5]))


def summarize(rows: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> pd.Series:
    """Rows of `evaluate` -> a Series of §4.1's measures, in %.

    mIoU, mSC: mean per class, then over classes. `_pairs`: mean over all (image, class) pairs. `floor`: mIoU
    of the all-foreground map. `_low`, `_high`: 95 % bootstrap interval over images. images, pairs: how many;
    no_contrast: pairs left out of mSC because they have no background. What else was measured (`FURTHER`)
    follows, with intervals. Raises ValueError where there is no pair."""
    every, rows = rows, rows.dropna(subset="iou")
    if rows.empty:
        raise ValueError("no rows to summarize: evaluate() found no (image, class) pair")
    summary = {}
    for name, value in VALUES.items():
        summary[name], summary[f"{name}_pairs"] = class_mean(rows, value), 100 * rows[value].mean()
        summary[f"{name}_low"], summary[f"{name}_high"] = interval(bootstrap(rows, value, resamples, seed))
    summary["floor"] = class_mean(rows, "foreground")
    summary["images"], summary["pairs"] = rows["image_id"].nunique(), len(rows)
    summary["no_contrast"] = int(rows["score_contrast"].isna().sum())
    for name, (value, over) in FURTHER.items():
        if value in every:
            summary[name] = class_mean(every, value, over)
            draws = bootstrap(every, value, resamples, seed, over)
            summary[f"{name}_low"], summary[f"{name}_high"] = interval(draws)
    return pd.Series(summary)


def bootstrap(
    rows: pd.DataFrame, value: str, resamples: int = 1000, seed: int = 0, over: str | None = None
) -> np.ndarray:
    """Class means of `value` (see `class_mean`) in % over bootstrap resamples of the images -> [resamples].
    The same seed draws the same images for two methods on one dataset, so that their difference is paired."""
    images, image = np.unique(rows["image_id"], return_inverse=True)
    classes, label = np.unique(rows["class_name"], return_inverse=True)
    known = rows[value].notna().to_numpy()
    sums, counts = (np.zeros((len(images), len(classes))) for _ in range(2))
    np.add.at(sums, (image[known], label[known]), rows[value].to_numpy()[known])
    np.add.at(counts, (image[known], label[known]), 1 if over is None else rows[over].to_numpy()[known])
    weights = _draws(len(images), resamples, seed)
    with np.errstate(invalid="ignore"):
        return 100 * np.nanmean((weights @ sums) / (weights @ counts), axis=1)


@lru_cache(4)
def _draws(images, resamples, seed):
    """How often each image is drawn -> [resamples, images]."""
    even = np.full(images, 1 / images)
    return np.random.default_rng(seed).multinomial(images, even, size=resamples).astype(float)


def mean_interval(values, seed=0):
    """Mean of one number an image with its 95 % bootstrap interval -> (mean, low, high); nan is left out."""
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    draws = np.random.default_rng(seed).integers(0, len(values), (1000, len(values)))
    return values.mean(), *np.percentile(values[draws].mean(1), [2.5, 97.5])


def t_interval(values):
    """Mean over trainings with its 95 % interval by Student's t -> (mean, low, high)."""
    from scipy import stats

    values = np.asarray(values, dtype=float)
    if not len(values):
        return (np.nan,) * 3
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else np.nan
    return values.mean(), values.mean() - half, values.mean() + half


def t_difference(ours, theirs):
    """Difference of two means over trainings with its 95 % interval by Welch's t, which asks neither for
    equal spreads nor for equal numbers -> (difference, low, high); no interval where one has one training."""
    from scipy import stats

    ours, theirs = (np.asarray(values, dtype=float) for values in (ours, theirs))
    ends = (np.nan, np.nan)
    if min(len(ours), len(theirs)) > 1:
        ends = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    return ours.mean() - theirs.mean(), *ends


def spread(name, three):
    """(mean, low, high) as columns of a line: `name`, `name`_low, `name`_high."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, three), strict=True))


def grouped(rows: pd.DataFrame, by, line, columns=None) -> pd.DataFrame:
    """A line a group of tidy rows, in order of appearance: the columns `by`, then what line(part) gives, one
    dictionary or several."""
    lines = []
    for key, part in rows.groupby(list(by), sort=False, dropna=False) if len(rows) else ():
        found = line(part)
        for one in [found] if isinstance(found, dict) else found:
            lines.append(dict(zip(by, key, strict=True)) | one)
    return pd.DataFrame(lines, columns=columns)


def table(rows: pd.DataFrame, by=("dataset", "network", "method"), measures=MEASURES, seed=0) -> pd.DataFrame:
    """One line a group of tidy rows, in order of appearance: `by`, then `summarize`'s measures in %."""
    summary = lambda part: summarize(part, seed=seed)[list(measures)].to_dict()  # noqa: E731
    return grouped(rows, by, summary, [*by, *measures])


def gains(rows: pd.DataFrame, comparisons, seed=0, resamples=1000) -> pd.DataFrame:
    """Differences of methods on every dataset and network, in points, with 95 % bootstrap intervals, paired
    over the images; one training of each method.

    comparisons: (better, than) pairs of methods, in the order of the lines; those without rows are left out.
    One line each: dataset, network, better, than, mIoU, mSC with `_low` and `_high`."""

    def change(ours, theirs, name):
        value = VALUES[name]
        draws = [bootstrap(part, value, resamples, seed) for part in (ours, theirs)]
        return class_mean(ours, value) - class_mean(theirs, value), *interval(draws[0] - draws[1])

    return _compared(rows, "method", comparisons, change)


def training_gains(seeds: pd.DataFrame, comparisons) -> pd.DataFrame:
    """`gains` of poolings in a table with one line a training: differences of the same seed, mean over
    trainings with its 95 % interval by Student's t; of one training none."""

    def change(ours, theirs, name):
        both = (part.set_index("seed")[name] for part in (ours, theirs))
        return t_interval(np.subtract(*both).dropna())

    return _compared(seeds, "pooling", comparisons, change)


def _compared(rows, by, comparisons, change):
    """A line a dataset, network and comparison of two values of the column `by`."""

    def lines(part):
        known = dict(iter(part.groupby(by, sort=False)))
        for better, than in comparisons:
            if better in known and than in known:
                line = {"better": better, "than": than}
                for name in VALUES:
                    line |= spread(name, change(known[better], known[than], name))
                yield line

    measures = [f"{name}{end}" for name in VALUES for end in ("", "_low", "_high")]
    keys = ["dataset", "network"]
    return grouped(rows, keys, lines, [*keys, "better", "than", *measures])


def over_trainings(seeds: pd.DataFrame) -> pd.DataFrame:
    """A table with one line a training -> mean over trainings with the smallest (`_min`) and the largest
    (`_max`), for mIoU and mSC; `seeds` says how many."""
    columns = {"seeds": ("mIoU", "size")}
    for value in VALUES:
        columns |= {value: (value, "mean"), f"{value}_min": (value, "min"), f"{value}_max": (value, "max")}
    return seeds.groupby(["dataset", "network", "pooling"], sort=False).agg(**columns).reset_index()


def trainings_apart(one, other) -> str:
    """Two lines of `over_trainings` in words: the gap in mIoU, and whether trainings tell them apart."""
    gap = f"{one['mIoU'] - other['mIoU']:+.1f} mIoU"
    if min(one["seeds"], other["seeds"]) < 2:
        return f"{gap}; one training each, which decides nothing"
    apart = one["mIoU_min"] > other["mIoU_max"] or other["mIoU_min"] > one["mIoU_max"]
    return f"{gap}; {'no training of one reaches the other' if apart else 'their trainings overlap'}"


def in_words(low, high, above="above", below="below", undecided="undecided"):
    """What an interval says about 0."""
    return above if low > 0 else below if high < 0 else undecided


def counts(table, measure):
    """How many intervals of a measure lie above 0, hold it, lie below it -> (above, undecided, below)."""
    above, below = table[f"{measure}_low"] > 0, table[f"{measure}_high"] < 0
    return int(above.sum()), int((~above & ~below).sum()), int(below.sum())


def gains_in_words(table: pd.DataFrame) -> str:
    """One sentence a comparison of `gains`: on how many datasets and networks the difference and its interval
    lie above 0, below it, or neither."""
    lines = []
    for (better, other), part in table.groupby(["better", "than"], sort=False):
        said = []
        for measure in VALUES:
            up, open_, down = counts(part, measure)
            said.append(f"{measure} higher on {up}, lower on {down}, undecided on {open_}")
        lines.append(f"{named(better)} against {named(other)} ({len(part)}): {'; '.join(said)}")
    return "\n".join(lines)
