"""The paper's claims, each with a verdict computed from a profile's tables, never written by hand (notebook 07).

A claim names where the paper makes it, a table, and `cases`: a function of that table that gives one line for every network and dataset
with an interval `low` … `high` of the quantity that the claim says is positive. It *holds* where every interval lies above 0, *does not
hold* where one does not, and is *not measured* where the table is missing or has no case."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

HOLDS, NOT, UNKNOWN = "holds", "does not hold", "not measured"


@dataclass(frozen=True)
class Claim:
    """`where`: place in the paper. `says`: the claim. `quantity`: what is above 0 where it holds. `table`: name of a CSV. `cases`: the
    table -> DataFrame of label, value, low, high. `quoted`: the paper's own number, in words. `figure`: name of a PNG."""

    where: str
    says: str
    quantity: str
    table: str
    cases: Callable
    quoted: str = ""
    figure: str = ""


def _label(row):
    return ", ".join(
        str(row[c]) for c in ("dataset", "network", "backbone", "mask", "pooling") if c in row and pd.notna(row[c])
    )


def _sign(measure, sign=1, **which):
    """Cases of a table's rows that match `which`: `sign` times the measure and its interval."""

    def cases(table):
        for column, wanted in which.items():
            wanted = wanted if isinstance(wanted, (list, tuple)) else [wanted]
            table = table[table[column].isin(wanted)]
        table = table.dropna(subset=[f"{measure}_low"])
        ends = [sign * table[f"{measure}_{end}"] for end in ("low", "high")]
        lines = pd.DataFrame({"value": sign * table[measure], "low": ends[0].where(ends[0] < ends[1], ends[1]),
                              "high": ends[1].where(ends[0] < ends[1], ends[0])})  # fmt: skip
        lines.insert(0, "label", [_label(row) for _, row in table.iterrows()])
        return lines

    return cases


def _within(measure, half, **which):
    """The claim that a measure is 0: half-width of the allowed band less the distance of the interval's far end."""

    def cases(table):
        lines = _sign(measure, **which)(table)
        far = lines[["low", "high"]].abs().max(axis=1)
        return lines.assign(value=half - lines["value"].abs(), low=half - far, high=half - far)

    return cases


def _mirrored(table):
    """mSC(RCLIP) + mSC(CLIP) is 0 within rounding."""
    both = table.dropna(subset="mSC_low").pivot(index=["dataset", "network"], columns="method", values="mSC")
    off = (both["rclip"] + both["clip"]).abs()
    return pd.DataFrame(
        {"label": [", ".join(i) for i in off.index], "value": 0.01 - off, "low": 0.01 - off, "high": 0.01 - off}
    )


def _middle_size(table):
    """Half of the channels shift, within 15 points, at foreground ratios in (0.25, 0.75]."""
    rows = table[(table["size"] == "(0.25, 0.75]")].dropna(subset="shifted")
    gap = 15 - (rows["shifted"] - 50).abs()
    return pd.DataFrame({"label": [_label(r) for _, r in rows.iterrows()], "value": gap, "low": gap, "high": gap})


def _extreme(first, last):
    """The network named `first` has the highest mSC on average over datasets and the one named `last` the lowest (ECLIP)."""

    def cases(table):
        mean = table[(table["method"] == "eclip") & (table["dataset"] != "average")].groupby("network")[["mIoU", "mSC"]].mean()
        best, worst = (next((n for n in mean.index if n.endswith(end)), None) for end in (first, last))
        if best is None or worst is None or len(mean) < 3:
            return pd.DataFrame()
        gap = min(mean.loc[best, "mSC"] - mean["mSC"].drop(best).max(), mean["mSC"].drop(worst).min() - mean.loc[worst, "mSC"])
        return pd.DataFrame({"label": [f"mSC, {best} highest and {worst} lowest"], "value": [gap], "low": [gap], "high": [gap]})

    return cases


def _bits(table):
    kept = table.dropna(subset="identical").groupby(["dataset", "network"], sort=False)["identical"].all()
    sign = kept.map(lambda same: 1.0 if same in (True, "True") else -1.0)
    return pd.DataFrame({"label": [", ".join(i) for i in kept.index], "value": sign, "low": sign, "high": sign}).reset_index(
        drop=True
    )


def _drop(table):
    """mAP of CLIP less that of the same network from random weights on the small set; a drop of 10 points counts as serious."""
    small = table[table["method"].str.startswith("CLIP from random")].set_index(["dataset", "network"])["mAP"]
    drop = table[table["method"] == "CLIP"].set_index(["dataset", "network"])["mAP"].reindex(small.index) - small - 10
    return pd.DataFrame({"label": [", ".join(i) for i in drop.index], "value": drop, "low": drop, "high": drop}).reset_index(
        drop=True
    )


def _finer(method, other, measure):
    """How much more `method` loses than `other` from the coarse to the fine ViT."""

    def cases(table):
        table = table.dropna(subset="mIoU_low")
        lines = []
        for name, part in table.groupby("dataset", sort=False):
            mean = part.pivot(index="network", columns="method", values=measure)
            mean = mean.reindex(list(dict.fromkeys(part["network"])))
            if len(mean) == 2:
                loss = mean.iloc[0] - mean.iloc[1]
                value = loss[method] - loss[other]
                lines.append({"label": name, "value": value, "low": value, "high": value})
        return pd.DataFrame(lines)

    return cases


def _rougher(table):
    """The fine grid's maps are rougher than the coarse grid's (ECLIP)."""
    lines = []
    for name, part in table[table["method"] == "eclip"].sort_values("grid").groupby("dataset", sort=False):
        if len(part) == 2:
            coarse, fine = part.iloc[0], part.iloc[1]
            lines.append({"label": name, "value": fine["roughness"] - coarse["roughness"],
                          "low": fine["roughness_low"] - coarse["roughness_high"],
                          "high": fine["roughness_high"] - coarse["roughness_low"]})  # fmt: skip
    return pd.DataFrame(lines)


def _alike(table):
    """On the fine grid Bi-Model's maps of two classes correlate above 0.9."""
    rows = table[(table["method"] == "bi_model") & (table["grid"] == table["grid"].max())]
    lines = _sign("likeness")(rows)
    return lines.assign(**{c: lines[c] - 0.9 for c in ("value", "low", "high")})


CLAIMS = [
    Claim("§3.1, Figs. 1 and 10", "CLIP's map is opposite on every network", "-mSC of CLIP", "table_1_clip", _sign("mSC", -1),
          "mSC -19.1 to -23.9 on average", "clip_intervals"),
    Claim("§3.1", "and so for every training of a network", "-mSC of CLIP", "clip_seeds", _sign("mSC", -1)),
    Claim("§3.2, Fig. 2", "DINO's attention finds objects better than CLIP's own", "IoU gained, paired over images",
          "figure_2_gains", _sign("IoU", mask="DINO", than="CLIP"), figure="figure_2_attention"),
    Claim("§3.2, Fig. 2", "with DINO as the backbone the map is still opposite", "-mSC", "figure_2",
          _sign("mSC", -1, backbone=["DINO, locked", "DINO, unlocked"])),
    Claim("§3.2, Table 3", "average pooling behaves like attention pooling: opposite", "-mSC of average pooling", "table_3",
          _sign("mSC", -1, pooling="average"), "mSC -4.11"),
    Claim("§3.2, Table 3", "max pooling turns the map", "mSC of max pooling", "table_3", _sign("mSC", pooling="max"), "mSC 16.67"),
    Claim("§3.3, Table 3", "DINO's mask improves on max pooling", "mIoU gained", "table_3_ordering",
          _sign("mIoU", better="max, mask: DINO", than="max"), "+10.07 mIoU"),
    Claim("§3.3, Table 3", "MoCo v3's mask improves on max pooling", "mIoU gained", "table_3_ordering",
          _sign("mIoU", better="max, mask: MoCo v3", than="max"), "+9.25 mIoU"),
    Claim("§4.3, Table 3", "DINO's mask is better than MoCo v3's", "mIoU gained", "table_3_ordering",
          _sign("mIoU", better="max, mask: DINO", than="max, mask: MoCo v3"), "+0.82 mIoU"),
    Claim("Appendix A, Table 5", "about half of the channels shift at middle size", "15 less the distance from 50 %", "table_5",
          _middle_size, "248.3 of 512 channels"),
    Claim("§4.2, Eq. 10", "mSC of RCLIP is minus that of CLIP", "0.01 less the difference", "table_2", _mirrored),
    Claim("§4.2, Table 2", "RCLIP beats Bi-Model", "mIoU gained", "table_2_gains", _sign("mIoU", better="rclip", than="bi_model")),
    Claim("§4.2, Table 2", "RCLIP beats Grad-CAM", "mIoU gained", "table_2_gains", _sign("mIoU", better="rclip", than="grad_cam")),
    Claim("§4.2, Table 2", "Grad-CAM stays negative", "-mSC of Grad-CAM", "table_2", _sign("mSC", -1, method="grad_cam"), "mSC -12.26"),
    Claim("§4.2, Table 1", "ECLIP's mIoU is above CLIP's everywhere", "mIoU gained", "table_1_gains", _sign("mIoU"),
          "+22.8 to +27.3 on average", "table_1"),
    Claim("§4.2, Table 1", "ECLIP's mSC is positive everywhere", "mSC of ECLIP", "table_1", _sign("mSC", method="eclip"),
          "mSC 22.6 to 31.9 on average"),
    Claim("§4.2, Table 2", "ECLIP is the best of the paper's methods everywhere", "mIoU gained", "table_2_gains",
          _sign("mIoU", better="eclip", than=["clip", "grad_cam", "bi_model", "rclip"])),
    Claim("§4.2, Table 2", "the paper's own exception: RCLIP beats ECLIP on COCO with ViT-B/16 (here: cluttered scenes, the fine ViT)",
          "mIoU lost by ECLIP", "table_2_gains",
          lambda t: _sign("mIoU", -1, better="eclip", than="rclip", dataset=["coco2017", "scenes-cluttered"])(
              t[t["network"].str.endswith("-16")]), "24.80 against 23.39"),
    Claim("§4.3, Table 4", "recognition is unchanged", "1 where every score is the same bytes", "table_4", _bits),
    Claim("§4.3, Table 4", "training from random weights on the small set drops recognition", "mAP lost, less 10 points", "table_4", _drop,
          "80.31 to 46.78 on VOC"),
    Claim("§4.3", "a CLIP trained from scratch with max pooling loses recognition", "mAP lost", "max_from_scratch", _drop),
    Claim("Appendix C, Fig. 11", "a larger output costs Bi-Model more than ECLIP", "mIoU lost from the coarse to the fine ViT, difference",
          "table_2", _finer("bi_model", "eclip", "mIoU"), figure="figure_8_and_12"),
    Claim("Appendix C, Fig. 11", "on the fine grid Bi-Model's maps look alike for every class", "correlation between classes, less 0.9",
          "figure_11", _alike),
    Claim("Appendix B", "coarser grids give smoother maps", "roughness added by the fine grid", "figure_11", _rougher),
    Claim("§4.2, Table 1", "ViT-B/32 is the best network and ViT-B/16 the worst (measure: mSC of ECLIP; in mIoU the paper's best is ResNet101)",
          "smaller of the two gaps", "table_1", _extreme("-32", "-16"), "31.89 and 22.56"),
]  # fmt: skip


def judge(claim, folders):
    """One claim against its table in the first of `folders` that has it -> a Series: where, claim, verdict, cases that hold, value (mean), low (the weakest case's
    lower end), high, exceptions."""
    path = next((p for p in (folder / f"{claim.table}.csv" for folder in folders) if p.exists()), None)
    cases = claim.cases(pd.read_csv(path)) if path else pd.DataFrame()
    line = {"where": claim.where, "claim": claim.says, "the paper": claim.quoted, "quantity": claim.quantity}
    if cases.empty:
        return pd.Series(line | {"verdict": UNKNOWN, "cases": "", "value": float("nan"), "exceptions": ""})
    ok = cases["low"] > 0
    wrong = [f"{c['label']}: {c['value']:.1f} [{c['low']:.1f}, {c['high']:.1f}]" for _, c in cases[~ok].iterrows()]
    return pd.Series(line | {"verdict": HOLDS if ok.all() else NOT, "cases": f"{ok.sum()} of {len(cases)}", "value": cases["value"].mean(),
                             "low": cases["low"].min(), "high": cases["high"].max(), "exceptions": "; ".join(wrong)})  # fmt: skip


def judge_all(folders):
    """Every claim against a profile's tables -> DataFrame, one line a claim."""
    return pd.DataFrame([judge(claim, folders) for claim in CLAIMS])


def report(verdicts, world, figures):
    """The reproduction report as Markdown: counts, then every claim with the paper's number, ours, the verdict and a figure.

    world: words that follow a verdict ("in the demo world"). figures: folders of PNGs; the report names them relative to itself."""
    counts = verdicts["verdict"].value_counts()
    lines = ["# Reproduction report", "", f"{len(verdicts)} claims of the paper, judged {world} from the tables beside this file by "
             "`eclip_lib/claims.py`; nothing here is written by hand. " + ", ".join(f"{counts.get(v, 0)} {v}" for v in (HOLDS, NOT, UNKNOWN)) + ".",
             "", "*Value* is the mean over cases (networks, datasets, poolings) of the quantity that is above 0 where the claim holds; the interval "
             "spans all cases' 95 % intervals. *Paper* is quoted.", "",
             "| # | where | claim | paper | quantity | ours | cases | verdict |", "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for number, (_, v) in enumerate(verdicts.iterrows(), 1):
        ours = "" if v["verdict"] == UNKNOWN else f"{v['value']:.1f} [{v['low']:.1f}, {v['high']:.1f}]"
        verdict = v["verdict"] if v["verdict"] == UNKNOWN else f"{v['verdict']} {world}"
        lines.append(
            f"| {number} | {v['where']} | {v['claim']} | {v['the paper']} | {v['quantity']} | {ours} | {v['cases']} | **{verdict}** |"
        )
    lines += ["", "## Exceptions", ""]
    lines += [f"{n}. {v['claim']}: {v['exceptions']}" for n, (_, v) in enumerate(verdicts.iterrows(), 1) if v["exceptions"]]
    shown = [c for c in CLAIMS if c.figure and any((folder / f"{c.figure}.png").exists() for folder in figures)]
    lines += ["", "## Figures", "", *(f"![{c.says}](figures/{c.figure}.png)\n\n*{c.where}: {c.says}.*\n" for c in shown)]
    return "\n".join(lines)


def write_report(run, text):
    """Write the report as `out`/report.md and .html; `eclip promote` copies both to `results/`."""
    from nbconvert.filters import markdown2html

    style = (
        "body{font:16px sans-serif;max-width:72em;margin:2em auto}td,th{border:1px solid #ccc;padding:.3em;vertical-align:top}"
    )
    page = f"<!doctype html><meta charset=utf-8><title>Reproduction report</title><style>{style}table{{border-collapse:collapse}}</style>"
    (run.out / "report.md").write_text(text)
    (run.out / "report.html").write_text(page + markdown2html(text))
