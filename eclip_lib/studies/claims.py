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

import pandas as pd
import yaml

from .cases import KINDS, frame

SUPPORTED, MOSTLY, MIXED, UNDECIDED = "supported", "mostly", "mixed", "undecided"
MOSTLY_NOT, CONTRADICTED = "mostly contradicted", "contradicted"
CONSTRUCTION, UNTESTABLE, UNMEASURED = "by construction", "not testable here", "not measured"
VERDICTS = {
    SUPPORTED: "every case above 0 with its whole interval (where nothing has one, its value)",
    MOSTLY: "two thirds above, none below",
    UNDECIDED: "fewer on one side, none on the other",
    MIXED: "some above, some below",
    MOSTLY_NOT: "two thirds below, none above",
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


def _claims():
    for entry in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()):
        ((kind, arguments),) = entry.pop("cases").items()
        yield Claim(**entry, cases=partial(KINDS[kind], **arguments))


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
    if above and below:
        return MIXED
    count, most = above + undecided + below, max(above, below)
    if most == count:
        return SUPPORTED if above else CONTRADICTED
    if 3 * most < 2 * count:
        return UNDECIDED
    return MOSTLY if above else MOSTLY_NOT


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
        cases = frame([])
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
