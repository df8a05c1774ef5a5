"""Notebook 07: the paper's claims, each with a verdict computed from a profile's tables, never written by
hand.

A claim names where the paper makes it, a table, and `cases`: a function of that table that gives one line for
every network and dataset with an interval `low` … `high` of the quantity that the claim says is positive. It
*holds* where every interval lies above 0, *does not hold* where one does not, and is *not measured* where the
table is missing or has no case."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import yaml

from .. import files

HOLDS, NOT, UNKNOWN = "holds", "does not hold", "not measured"


@dataclass(frozen=True)
class Claim:
    """An entry of claims.yaml. `where`: place in the paper. `says`: the claim. `quantity`: what is above 0
    where it holds. `table`: name of a CSV. `cases`: the table -> DataFrame of label, value, low, high.
    `quoted`: the paper's own number, in words. `figure`: name of a PNG."""

    where: str
    says: str
    quantity: str
    table: str
    cases: Callable
    quoted: str = ""
    figure: str = ""


# ---------------------------------------------------------------------- cases of a table, by the arguments
# that claims.yaml names


def _exact(labels, values):
    """Cases without an interval of their own."""
    values = list(values)
    return pd.DataFrame({"label": list(labels), "value": values, "low": values, "high": values})


def _label(row):
    names = ("dataset", "network", "backbone", "mask", "pooling")
    return ", ".join(str(row[c]) for c in names if c in row and pd.notna(row[c]))


def _sign(table, arguments):
    """A sign times a measure and its interval, in some rows. arguments: measure, sign (1), {column: values}
    of the rows (all)."""
    measure, sign, which = [*arguments, 1, {}][:3] if len(arguments) == 1 else [*arguments, {}][:3]
    for column, wanted in which.items():
        table = table[table[column].isin(wanted if isinstance(wanted, list) else [wanted])]
    table = table.dropna(subset=[f"{measure}_low"])
    ends = sign * table[[f"{measure}_low", f"{measure}_high"]]
    cases = _exact([_label(row) for _, row in table.iterrows()], sign * table[measure])
    return cases.assign(low=list(ends.min(axis=1)), high=list(ends.max(axis=1)))


def _mirrored(table, arguments):
    """mSC(RCLIP) + mSC(CLIP) is 0 within rounding."""
    both = table.dropna(subset="mSC_low").pivot(index=["dataset", "network"], columns="method", values="mSC")
    off = (both["rclip"] + both["clip"]).abs()
    return _exact(map(", ".join, off.index), 0.01 - off)


def _middle_size(table, arguments):
    """Half of the channels shift, within 15 points, at foreground ratios in (0.25, 0.75]."""
    rows = table[(table["size"] == "(0.25, 0.75]")].dropna(subset="shifted")
    return _exact([_label(row) for _, row in rows.iterrows()], 15 - (rows["shifted"] - 50).abs())


def _extreme(table, arguments):
    """The network whose name ends in the first argument has the highest mSC of ECLIP on average over
    datasets, that of the second the lowest."""
    ours = table[(table["method"] == "eclip") & (table["dataset"] != "average")]
    mean = ours.groupby("network")["mSC"].mean()
    best, worst = (next((n for n in mean.index if n.endswith(end)), None) for end in arguments)
    if best is None or worst is None or len(mean) < 3:
        return pd.DataFrame()
    gap = min(mean[best] - mean.drop(best).max(), mean.drop(worst).min() - mean[worst])
    return _exact([f"mSC, {best} highest and {worst} lowest"], [gap])


def _bits(table, arguments):
    kept = table.dropna(subset="identical").groupby(["dataset", "network"], sort=False)["identical"].all()
    return _exact(map(", ".join, kept.index), [1.0 if same in (True, "True") else -1.0 for same in kept])


def _drop(table, arguments):
    """mAP of CLIP less that of the same network from random weights on the small set; a drop of 10 points
    counts as serious."""
    by = ["dataset", "network"]
    small = table[table["method"].str.startswith("CLIP from random")].set_index(by)["mAP"]
    drop = table[table["method"] == "CLIP"].set_index(by)["mAP"].reindex(small.index) - small - 10
    return _exact(map(", ".join, drop.index), drop)


def _finer(table, arguments):
    """How much more a method loses than another from the coarse to the fine ViT. arguments: both methods, and
    the measure."""
    method, other, measure = arguments
    table, found = table.dropna(subset="mIoU_low"), {}
    for name, part in table.groupby("dataset", sort=False):
        mean = part.pivot(index="network", columns="method", values=measure)
        mean = mean.reindex(list(dict.fromkeys(part["network"])))
        if len(mean) == 2:
            loss = mean.iloc[0] - mean.iloc[1]
            found[name] = loss[method] - loss[other]
    return _exact(found.keys(), found.values())


def _rougher(table, arguments):
    """The fine grid's maps are rougher than the coarse grid's (ECLIP)."""
    lines = []
    for name, part in table[table["method"] == "eclip"].sort_values("grid").groupby("dataset", sort=False):
        if len(part) == 2:
            coarse, fine = part.iloc[0], part.iloc[1]
            line = {"label": name, "value": fine["roughness"] - coarse["roughness"]}
            line["low"] = fine["roughness_low"] - coarse["roughness_high"]
            lines.append(line | {"high": fine["roughness_high"] - coarse["roughness_low"]})
    return pd.DataFrame(lines)


def _alike(table, arguments):
    """On the fine grid Bi-Model's maps of two classes correlate above 0.9."""
    fine = table["grid"].max() if table["grid"].nunique() > 1 else None
    rows = table[(table["method"] == "bi_model") & (table["grid"] == fine)]
    lines = _sign(rows, ["likeness"])
    return lines.assign(**{c: lines[c] - 0.9 for c in ("value", "low", "high")})


CASES = {
    "sign": _sign,
    "middle_size": _middle_size,
    "mirrored": _mirrored,
    "extreme": _extreme,
    "bits": _bits,
    "drop": _drop,
    "finer": _finer,
    "rougher": _rougher,
    "alike": _alike,
}


def _claims():
    for entry in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()):
        ((name, arguments),) = entry.pop("cases").items()
        yield Claim(**entry, cases=partial(CASES[name], arguments=arguments))


CLAIMS = list(_claims())


# ---------------------------------------------------------------------- verdicts


def judge(claim, folders):
    """One claim against its table in the first of `folders` that has it -> a Series: where, claim, the
    paper's number, quantity, verdict, cases that hold, value (mean), low (the weakest case's lower end),
    high, exceptions."""
    path = next((p for p in (folder / f"{claim.table}.csv" for folder in folders) if p.exists()), None)
    cases = claim.cases(pd.read_csv(path)) if path else pd.DataFrame()
    line = {"where": claim.where, "claim": claim.says, "the paper": claim.quoted, "quantity": claim.quantity}
    if cases.empty:
        return pd.Series(line | {"verdict": UNKNOWN, "cases": "", "value": float("nan"), "exceptions": ""})
    ok = cases["low"] > 0
    wrong = [
        f"{c['label']}: {c['value']:.1f} [{c['low']:.1f}, {c['high']:.1f}]" for _, c in cases[~ok].iterrows()
    ]
    line |= {
        "verdict": HOLDS if ok.all() else NOT,
        "cases": f"{ok.sum()} of {len(cases)}",
        "value": cases["value"].mean(),
    }
    return pd.Series(
        line | {"low": cases["low"].min(), "high": cases["high"].max(), "exceptions": "; ".join(wrong)}
    )


def judge_all(folders):
    """Every claim against a profile's tables -> DataFrame, one line a claim."""
    return pd.DataFrame([judge(claim, folders) for claim in CLAIMS])


REPORT = """# Reproduction report

{count} claims of the paper, judged {world} from the tables beside this file by `eclip_lib/studies/claims.py`;
nothing here is written by hand. {counts}.

*Value* is the mean over cases (networks, datasets, poolings) of the quantity that is above 0 where the claim
holds; the interval spans all cases' 95 % intervals. *Paper* is quoted.

| # | where | claim | paper | quantity | ours | cases | verdict |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

## Exceptions

{exceptions}

## Figures

{figures}
"""


def _row(number, verdict, world):
    known = verdict["verdict"] != UNKNOWN
    ours = f"{verdict['value']:.1f} [{verdict['low']:.1f}, {verdict['high']:.1f}]" if known else ""
    said = f"**{verdict['verdict']}{f' {world}' if known else ''}**"
    cells = [verdict[name] for name in ("where", "claim", "the paper", "quantity")]
    return "| " + " | ".join(map(str, [number, *cells, ours, verdict["cases"], said])) + " |"


def report(verdicts, world, figures):
    """The reproduction report as Markdown: counts, then every claim with the paper's number, ours, the
    verdict and a figure.

    world: words that follow a verdict ("in the demo world"). figures: folders of PNGs; the report names them
    relative to itself."""
    numbered = list(enumerate((v for _, v in verdicts.iterrows()), 1))
    counts = verdicts["verdict"].value_counts()
    drawn = {path.stem for folder in figures for path in folder.glob("*.png")}
    shown = [claim for claim in CLAIMS if claim.figure in drawn]
    return REPORT.format(
        count=len(verdicts),
        world=world,
        counts=", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in (HOLDS, NOT, UNKNOWN)),
        rows="\n".join(_row(number, v, world) for number, v in numbered),
        exceptions="\n".join(
            f"{number}. {v['claim']}: {v['exceptions']}" for number, v in numbered if v["exceptions"]
        ),
        figures="\n\n".join(f"![{c.says}](figures/{c.figure}.png)\n\n*{c.where}: {c.says}.*" for c in shown),
    )


STYLE = "body{font:16px sans-serif;max-width:72em;margin:2em auto}table{border-collapse:collapse}"
STYLE += "td,th{border:1px solid #ccc;padding:.3em;vertical-align:top}"


def write_report(run, text):
    """Write the report as `out`/report.md and .html; `eclip promote` copies both to `results/`."""
    from nbconvert.filters import markdown2html

    page = f"<!doctype html><meta charset=utf-8><title>Reproduction report</title><style>{STYLE}</style>"
    files.write(run.out / "report.md", text)
    files.write(run.out / "report.html", page + markdown2html(text))
