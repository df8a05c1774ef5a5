"""The kinds of cases of the paper's claims (claims.yaml): functions of a run's tables, a line a network and
dataset with the quantity that is above 0 where the claim is true, and its 95 % interval.

`read`: table name -> DataFrame; raises FileNotFoundError where a run has none."""

import numpy as np
import pandas as pd

from ..evaluation import t_interval
from ..explainers import named

CASE = ["dataset", "network"]


def _rows(table, wanted):
    """The rows whose columns have the wanted values: one, a list, or "largest" (of several)."""
    for column, value in wanted.items():
        if value == "largest":
            value = table[column].max() if table[column].nunique() > 1 else []
        table = table[table[column].isin(value if isinstance(value, list) else [value])]
    return table


def frame(lines):
    """(label, value, low, high) of each case, of trainings also how many."""
    return pd.DataFrame(
        [(*line, None)[:5] for line in lines], columns=[*"label value low high".split(), "count"]
    )


def _without_interval(labels, values, count=None):
    nan = float("nan")
    return frame([(label, value, nan, nan, count) for label, value in zip(labels, values, strict=True)])


def _images(read, table, measure, sign=1, above=0, rows=()):
    """A sign times a measure, less `above`, in some rows of a table with intervals over images. `measure`:
    its column, or [column, that of the low end, that of the high end]."""
    columns = measure if isinstance(measure, list) else [measure, f"{measure}_low", f"{measure}_high"]
    lines = []
    for _, row in _rows(read(table), dict(rows)).dropna(subset=columns).iterrows():
        value, *ends = (sign * row[column] - above for column in columns)
        words = (row.get(column) for column in (*CASE, "backbone", "mask", "method", "than"))
        lines.append((", ".join(named(w) for w in words if pd.notna(w)), value, min(ends), max(ends)))
    return frame(lines)


def _trainings(read, table, measure, of=(), than=None, sign=1):
    """The same over trainings: a sign times the measure of the rows `of`, or its difference from the rows
    `than` of the same training. `table`: one or several, of which only the first must be there."""
    lines = []
    for number, name in enumerate([table] if isinstance(table, str) else table):
        try:
            found = read(name)
        except FileNotFoundError:
            if number == 0:
                raise
            continue
        for case, part in found.groupby(CASE, sort=False):
            by = "training" if "training" in part else "seed"
            ours, theirs = (_rows(part, dict(r or ())).set_index(by)[measure] for r in (of, than))
            values = sign * (ours - theirs if than else ours).dropna()
            if len(values):
                lines.append((", ".join(case), *t_interval(values), len(values)))
    return frame(lines)


def _eclip(read, table, than, measure, sign=1, rows=()):
    """ECLIP's trainings (Table 3's last row) less other methods, which do not vary with them."""
    pairs, lines = _chosen(read), []
    others = _rows(read(table), dict(rows) | {"method": than}).dropna(subset="mIoU_low")
    for _, other in others.iterrows():
        values = _rows(pairs, {c: other[c] for c in CASE})[measure]
        if len(values):
            label = ", ".join([*other[CASE], named(other["method"])])
            lines.append((label, *t_interval(sign * (values - other[measure])), len(values)))
    return frame(lines)


def _chosen(read):
    """ECLIP's own rows of Table 3, a line a training: those of its last pooling."""
    seeds = read("table_3_seeds")
    return seeds[seeds["pooling"] == seeds["pooling"].iloc[-1]]


def _mirrored(read):
    """mSC(RCLIP) + mSC(CLIP) is 0 within rounding."""
    both = read("table_2").dropna(subset="mSC_low").pivot(index=CASE, columns="method", values="mSC")
    return _without_interval(map(", ".join, both.index), 0.01 - (both["rclip"] + both["clip"]).abs())


def _middle_size(read):
    """Half of the channels shift, within 15 points, at foreground ratios in (0.25, 0.75], where the dataset
    has 20 such images."""
    rows = _rows(read("table_5_chance"), {"size": "(0.25, 0.75]"})
    rows = rows[rows["images"] >= 20]
    return _without_interval(map(", ".join, rows[CASE].values), 15 - (rows["shifted"] - 50).abs())


def _extreme(read, best, worst, count):
    """Over trainings: the smaller of two gaps, mSC of the best of the paper's networks less the next, and
    that of the worst below the next. No case where the run has not all of them."""
    mean = _chosen(read).pivot_table(index="seed", columns="network", values="mSC")
    if len(mean.columns) < count or not {best, worst} <= set(mean):
        return frame([])
    above = mean[best] - mean.drop(columns=best).max(axis=1)
    below = mean.drop(columns=worst).min(axis=1) - mean[worst]
    gaps = np.minimum(above, below)
    return frame([(f"{best} highest, {worst} lowest", *t_interval(gaps), len(gaps))])


def _bits(read):
    kept = read("table_4").dropna(subset="identical").groupby(CASE, sort=False)["identical"].all()
    return _without_interval(map(", ".join, kept.index), [1.0 if s in (True, "True") else -1.0 for s in kept])


def _drop(read, table):
    """mAP of CLIP less that of one training of the same network from random weights on the small set; a drop
    of 10 points counts as serious."""
    table = read(table)
    small = table[table["method"].str.startswith("CLIP from random")].set_index(CASE)["mAP"]
    drop = table[table["method"] == "CLIP"].set_index(CASE)["mAP"].reindex(small.index) - small - 10
    return _without_interval(map(", ".join, drop.index), drop, 1)


def _max_from_scratch(read):
    """mAP that CLIPs of a network of this run lose where they are trained with max pooling (notebook 08),
    against those trained with the class token, less 10 points."""
    table = _rows(read("causes_pooling_gains"), {"pool": "max", "measure": "mAP"})
    table = table[table["network"].isin(read("table_4")["network"])]
    ends = -10 - table[["value", "value_high", "value_low"]]
    labels = map(", ".join, table[CASE].values)
    return frame([*zip(labels, *ends.T.values, table["trainings"], strict=True)])


def _output(read, method):
    """mIoU that a method loses from the coarse to the fine ViT of Table 2, less what ECLIP's trainings
    lose."""
    other = _rows(read("table_2"), {"method": method}).dropna(subset="mIoU_low")
    grids = read("figure_11").sort_values("grid")["network"].unique()
    lines, networks, pairs = [], [n for n in grids if n in set(other["network"])], _chosen(read)
    for name, part in other.groupby("dataset", sort=False):
        mine = _rows(pairs, {"dataset": name}).pivot(index="seed", columns="network", values="mIoU")
        if len(networks) == 2 and set(networks) <= set(mine):
            coarse, fine = networks
            lost = part.set_index("network")["mIoU"]
            values = (lost[coarse] - lost[fine]) - (mine[coarse] - mine[fine])
            lines.append((name, *t_interval(values), len(values)))
    return frame(lines)


def _rougher(read):
    """The fine grid's maps of ECLIP are rougher than the coarse grid's."""
    table = _rows(read("figure_11"), {"method": "eclip"}).sort_values("grid")
    ends = table.groupby("dataset", sort=False)["roughness"].agg(["first", "last", "size"])
    ends = ends[ends["size"] == 2]
    return _without_interval(ends.index, ends["last"] - ends["first"])


# by name in claims.yaml
KINDS = {
    kind.__name__[1:]: kind
    for kind in (
        _images,
        _trainings,
        _eclip,
        _extreme,
        _drop,
        _mirrored,
        _middle_size,
        _bits,
        _max_from_scratch,
        _output,
        _rougher,
    )
}
