"""Notebook 07, second half: the verdicts of `claims` as a page."""

from pathlib import Path

from .claims import CLAIMS, UNMEASURED, UNTESTABLE, VERDICTS, number

REPORT = Path(__file__).with_suffix(".md").read_text()


def _ours(v):
    mean, *ends = (number(v[name]) for name in ("value", "smallest", "largest"))
    return f"{mean} ({' to '.join(ends)})" if v["value"] == v["value"] else ""


def _row(place, v):
    cases = f"{v['above']}, {v['undecided']}, {v['below']}" if v["value"] == v["value"] else ""
    cells = [
        v["claim"],
        f"**{v['verdict']}**",
        v["where"],
        v["the paper"],
        v["quantity"],
        _ours(v),
        v["unit"],
    ]
    return "| " + " | ".join(map(str, [place, *cells, cases])) + " |"


def origin(facts):
    """Where a run's numbers come from, a sentence or two of its `run.json`."""
    if not facts:
        return ""
    versions = facts.get("versions", {})
    made = [
        f"profile {facts.get('profile')}",
        f"commit {str(facts.get('commit'))[:12]} ({facts.get('tree')})",
    ]
    made += [
        str(facts.get("device")),
        *(f"{name} {versions[name]}" for name in ("torch", "open_clip") if name in versions),
    ]
    seen = [f"{count:,} images of {name}" for name, count in facts.get("datasets", {}).items()]
    said = f"The run (run.json has it all): {', '.join(made)}; {', '.join(seen) or 'no images'}."
    for words, kind in (("Changed of the profile", "changed"), ("Left out of it", "dropped")):
        said += f" {words}: {', '.join(facts[kind])}." if facts.get(kind) else ""
    return said


def report(verdicts, world, figures, facts):
    """The reproduction report as Markdown: counts, then every claim with the paper's number, ours, the
    verdict and a figure.

    world: where they were judged ("in the demo world"). figures: folders of PNGs; the report names them
    relative to itself. facts: the run's `run.json`."""
    numbered = list(enumerate((v for _, v in verdicts.iterrows()), 1))
    counts = verdicts["verdict"].value_counts()
    drawn = {path.stem for folder in figures for path in folder.glob("*.png")}
    said = dict(zip(verdicts["claim"], verdicts["verdict"], strict=True))
    shown = [claim for claim in CLAIMS if claim.figure in drawn]
    return REPORT.format(
        count=len(verdicts),
        origin=origin(facts),
        world=world,
        counts="\n".join(f"- {word}: {counts.get(word, 0)} ({what})" for word, what in VERDICTS.items()),
        intervals=verdicts["intervals"].sum(),
        false=0.05 * verdicts["intervals"].sum(),
        rows="\n".join(_row(place, v) for place, v in numbered),
        exceptions="\n".join(
            f"{place}. {v['claim']}: "
            f"{'needs ' if v['verdict'] in (UNMEASURED, UNTESTABLE) else ''}{v['not above']}"
            for place, v in numbered
            if v["not above"]
        ),
        notes="\n".join(f"- {c.says}: {c.because or c.note}." for c in CLAIMS if c.because or c.note),
        figures="\n\n".join(
            f"![{c.says}](figures/{c.figure}.png)\n\n*{c.where}, “{c.says}”: {said[c.says]} {world}.*"
            for c in shown
        ),
    )


STYLE = "body{font:16px sans-serif;max-width:72em;margin:2em auto}table{border-collapse:collapse}"
STYLE += "td,th{border:1px solid #ccc;padding:.3em;vertical-align:top}"
STYLE += "img{max-width:100%}.anchor-link{display:none}"


def write_report(run, text):
    """Write the report as `out`/report.md and .html; `eclip promote` copies both to `results/`."""
    from nbconvert.filters import markdown2html

    page = f"<!doctype html><meta charset=utf-8><title>Reproduction report</title><style>{STYLE}</style>"
    run.write(run.place / "report.md", text)
    run.write(run.place / "report.html", page + markdown2html(text))
