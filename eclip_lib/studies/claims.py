"""Notebook 07: the paper's claims, each with a verdict computed from a profile's tables, never written by
hand.

A claim names a quantity that is positive where it is true, and `cases`: a function of the tables that gives
one line a network and dataset with the quantity's 95 % interval. The interval's unit fits the claim: images
where it speaks of the networks at hand, trainings (Student's t) where it speaks of what training does. One
training has no interval, so it decides nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from ..evaluation import t_interval
from ..explainers import named

SUPPORTED, MOSTLY, MIXED, UNDECIDED, CONTRADICTED = "supported mostly mixed undecided contradicted".split()
CONSTRUCTION, UNTESTABLE, UNMEASURED = "by construction", "not testable here", "not measured"
VERDICTS = {
    SUPPORTED: "every case above 0 with its whole interval",
    MOSTLY: "two thirds above, none below",
    UNDECIDED: "fewer above, none below",
    MIXED: "some below, not all",
    CONTRADICTED: "every case below",
    CONSTRUCTION: "it could not come out otherwise; checked all the same",
    UNTESTABLE: "this run has no such network or dataset",
    UNMEASURED: "no table of it",
}


@dataclass(frozen=True)
class Claim:
    """An entry of claims.yaml. `where`: place in the paper. `says`: the claim. `quantity`: what is above 0
    where it is true. `unit`: what an interval is over. `cases`: (read: table name -> DataFrame) -> DataFrame
    of label, value, low, high. `quoted`: the paper's own number. `because`: why it is so by construction.
    `needs`: what it takes to test it. `note`: how we read it. `figure`: name of a PNG."""

    where: str
    says: str
    quantity: str
    unit: str
    cases: Callable
    quoted: str = ""
    because: str = ""
    needs: str = ""
    note: str = ""
    figure: str = ""


# ---------------------------------------------------------------------- cases, by kind

CASE = ["dataset", "network"]


def _rows(table, wanted):
    """The rows whose columns have the wanted values: one, a list, or "largest" (of several)."""
    for column, value in wanted.items():
        if value == "largest":
            value = table[column].max() if table[column].nunique() > 1 else []
        table = table[table[column].isin(value if isinstance(value, list) else [value])]
    return table


def _frame(lines):
    """(label, value, low, high) of each case, of trainings also how many."""
    return pd.DataFrame(
        [(*line, None)[:5] for line in lines], columns=[*"label value low high".split(), "count"]
    )


def _without_interval(labels, values, count=None):
    nan = float("nan")
    return _frame([(label, value, nan, nan, count) for label, value in zip(labels, values, strict=True)])


def _images(read, table, measure, sign=1, above=0, rows=()):
    """A sign times a measure, less `above`, in some rows of a table with intervals over images. `measure`:
    its column, or [column, that of the low end, that of the high end]."""
    columns = measure if isinstance(measure, list) else [measure, f"{measure}_low", f"{measure}_high"]
    lines = []
    for _, row in _rows(read(table), dict(rows)).dropna(subset=columns).iterrows():
        value, *ends = (sign * row[column] - above for column in columns)
        words = (row.get(column) for column in (*CASE, "backbone", "mask", "method", "than"))
        lines.append((", ".join(named(w) for w in words if pd.notna(w)), value, min(ends), max(ends)))
    return _frame(lines)


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
    return _frame(lines)


def _eclip(read, table, than, measure, sign=1, rows=()):
    """ECLIP's trainings (Table 3's last row) less other methods, which do not vary with them."""
    pairs, lines = _chosen(read), []
    others = _rows(read(table), dict(rows) | {"method": than}).dropna(subset="mIoU_low")
    for _, other in others.iterrows():
        values = _rows(pairs, {c: other[c] for c in CASE})[measure]
        if len(values):
            label = ", ".join([*other[CASE], named(other["method"])])
            lines.append((label, *t_interval(sign * (values - other[measure])), len(values)))
    return _frame(lines)


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
        return _frame([])
    above = mean[best] - mean.drop(columns=best).max(axis=1)
    below = mean.drop(columns=worst).min(axis=1) - mean[worst]
    gaps = np.minimum(above, below)
    return _frame([(f"{best} highest, {worst} lowest", *t_interval(gaps), len(gaps))])


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


def _output(read, method):
    """mIoU that a method loses from the coarse to the fine ViT of Table 2, less what ECLIP's trainings lose."""
    other = _rows(read("table_2"), {"method": method}).dropna(subset="mIoU_low")
    lines, networks, pairs = [], other["network"].unique(), _chosen(read)
    for name, part in other.groupby("dataset", sort=False):
        mine = _rows(pairs, {"dataset": name}).pivot(index="seed", columns="network", values="mIoU")
        if len(networks) == 2 and set(networks) <= set(mine):
            coarse, fine = networks
            lost = part.set_index("network")["mIoU"]
            values = (lost[coarse] - lost[fine]) - (mine[coarse] - mine[fine])
            lines.append((name, *t_interval(values), len(values)))
    return _frame(lines)


def _rougher(read):
    """The fine grid's maps of ECLIP are rougher than the coarse grid's."""
    table = _rows(read("figure_11"), {"method": "eclip"}).sort_values("grid")
    ends = table.groupby("dataset", sort=False)["roughness"].agg(["first", "last", "size"])
    ends = ends[ends["size"] == 2]
    return _without_interval(ends.index, ends["last"] - ends["first"])


# by name in claims.yaml
KINDS = (_images, _trainings, _eclip, _extreme, _drop, _mirrored, _middle_size, _bits, _output, _rougher)


def _claims():
    kinds = {kind.__name__[1:]: kind for kind in KINDS}
    for entry in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()):
        ((kind, arguments),) = entry.pop("cases").items()
        yield Claim(**entry, cases=partial(kinds[kind], **arguments))


CLAIMS = list(_claims())

# ---------------------------------------------------------------------- verdicts


def _read(folders, name):
    """A table in the first of the folders that has it. Raises FileNotFoundError."""
    for folder in folders:
        if (folder / f"{name}.csv").exists():
            return pd.read_csv(folder / f"{name}.csv")
    raise FileNotFoundError(name)


def _verdict(above, undecided, below):
    """What the counts of cases say, see `VERDICTS`."""
    count = above + undecided + below
    if below:
        return CONTRADICTED if below == count else MIXED
    return SUPPORTED if above == count else MOSTLY if 3 * above >= 2 * count else UNDECIDED


def number(value):
    """A value in words: one decimal, of a small one two digits."""
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def in_numbers(case):
    """A case in words: its label, value, and interval where it has one."""
    ends = f" [{number(case['low'])}, {number(case['high'])}]" if pd.notna(case["low"]) else ""
    return f"{case['label']}: {number(case['value'])}{ends}"


def judge(claim, folders):
    """One claim against the tables in `folders`, the first that has each -> a Series: where, claim, the
    paper's number, quantity, unit, verdict, cases above 0, undecided, below and with an interval; mean,
    smallest and largest value; the cases that are not above."""
    line = {"where": claim.where, "claim": claim.says, "the paper": claim.quoted}
    line |= {"quantity": claim.quantity, "unit": claim.unit, "verdict": UNMEASURED}
    counts = dict.fromkeys(("above", "undecided", "below", "intervals"), 0)
    try:
        cases = claim.cases(partial(_read, folders))
        line["verdict"] = UNTESTABLE if claim.needs else UNMEASURED
    except FileNotFoundError:
        cases = _frame([])
    if cases.empty:
        values = dict.fromkeys(("value", "smallest", "largest"), float("nan"))
        return pd.Series(line | counts | values | {"not above": claim.needs})
    decides = ["value"] * 2 if claim.unit == "none" else ["low", "high"]
    line["unit"] = _how_many(cases["count"].dropna().astype(int), claim.unit)
    above, below = cases[decides[0]] > 0, cases[decides[1]] < 0
    counts = {"above": above.sum(), "undecided": (~above & ~below).sum(), "below": below.sum()}
    line["verdict"] = CONSTRUCTION if claim.because and above.all() else _verdict(*counts.values())
    values = cases["value"]
    numbers = {"value": values.mean(), "smallest": values.min(), "largest": values.max()}
    counts["intervals"] = cases["low"].notna().sum()
    rest = "; ".join(in_numbers(case) for _, case in cases[~above].iterrows())
    return pd.Series(line | counts | numbers | {"not above": rest})


def _how_many(trainings, unit):
    """A unit with the number of trainings, as they are in every case."""
    said = (
        "1 " + unit.replace("trainings", "training")
        if (trainings == 1).all()
        else f"{trainings.max()} {unit}"
    )
    return f"{trainings.min()} to {said}" if trainings.nunique() > 1 else said if len(trainings) else unit


def judge_all(folders):
    """Every claim against a profile's tables -> DataFrame, one line a claim."""
    return pd.DataFrame([judge(claim, folders) for claim in CLAIMS])


def answer(verdicts, world):
    """Which claims stand, by number: a line a verdict."""
    lines = [f"Of {len(verdicts)} claims {world}:"]
    for word in VERDICTS:
        says = verdicts.loc[verdicts["verdict"] == word, "claim"]
        if len(says):
            lines.append(f"{word}, {len(says)}: {'; '.join(says)}")
    return "\n".join(lines)
