"""The blocks of README.md that are measured: results with the command of every row, and the verdicts. `eclip promote` writes them."""

import re

import pandas as pd

from .profiles import REPOSITORY

METHODS = {"clip": "CLIP", "rclip": "RCLIP", "eclip": "ECLIP"}


def results_table(folder):
    """Table 1 of the demo as Markdown, one row a dataset, network and method, each with the command that measures it."""
    scores, recognition = pd.read_csv(folder / "table_1.csv"), pd.read_csv(folder / "table_4.csv")
    known = recognition.query("method == 'CLIP'").set_index(["dataset", "network"])["mAP"]
    lines = [
        "| data | network | mAP | method | mIoU [95 %] | mSC [95 %] | `.venv/bin/eclip evaluate …` |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for _, r in scores[scores["method"].isin(METHODS) & (scores["dataset"] != "average")].iterrows():
        cells = [f"{r[m]:.1f} [{r[f'{m}_low']:.1f}, {r[f'{m}_high']:.1f}]" for m in ("mIoU", "mSC")]
        found = f"{known[r['dataset'], r['network']]:.1f}"
        command = f"`{r['method']} --networks {r['network']} --datasets {r['dataset']}`"
        lines.append(
            f"| {r['dataset']} | {r['network']} | {found} | {METHODS[r['method']]} | {cells[0]} | {cells[1]} | {command} |"
        )
    return "\n".join(lines)


def verdict_table(folder):
    """The claims and their verdicts as Markdown."""
    verdicts = pd.read_csv(folder / "claims.csv", keep_default_na=False)
    counts = verdicts["verdict"].value_counts()
    summary = f"Of {len(verdicts)} claims {', '.join(f'“{verdict}”: {count}' for verdict, count in counts.items())}."
    lines = [summary, "", "| claim of the paper | cases on its side | in the demo |",
             "| --- | --- | --- |"]  # fmt: skip
    lines += [f"| {v['claim']} ({v['where']}) | {v['cases']} | {v['verdict']} |" for _, v in verdicts.iterrows()]
    return "\n".join(lines)


def with_results(text, folder):
    """README's text with both blocks as the tables in `folder` have them."""
    for name, table in (("results", results_table), ("verdicts", verdict_table)):
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, t=table: m[1] + t(folder) + "\n" + m[2], text, flags=re.S
        )
    return text


def update():
    """Write README.md's measured blocks from results/demo/tables."""
    path = REPOSITORY / "README.md"
    path.write_text(with_results(path.read_text(), REPOSITORY / "results" / "demo" / "tables"))
