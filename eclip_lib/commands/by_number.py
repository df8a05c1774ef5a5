"""`eclip reproduce --figure N` and `--table N`: the notebooks that make them, run no further than that."""

import ast
import re
import time

import nbformat
from tqdm.auto import tqdm

from ..experiment import load_profile
from .notebooks import makes_pairs, notebooks, reads, reproduce, source, timed

# ---------------------------------------------------------------------- what makes what


def names_in(code):
    """What a notebook's code calls its own tables and figures: its strings, and the parts of f-strings, but
    those of tables that it quotes."""
    nodes = set(ast.walk(ast.parse(code)))
    calls = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    quoted = {word for call in calls if call.func.attr in ("reported", "beside") for word in call.args}
    found = {str(node.value) for node in nodes - quoted if isinstance(node, ast.Constant)}
    return {name for name in found if re.match(r"(figure|table)_\d", name)}


def makers(name, sources):
    """The places in `sources`, pieces of code, that save a table or figure of this name ("figure_10",
    "table_1", …), else one of it and more ("figure_10_scenes", "figure_8_and_12")."""
    found = [names_in(code) for code in sources]
    exact = [k for k, names in enumerate(found) if name in names]
    return exact or [k for k, names in enumerate(found) if any(is_of(name, other) for other in names)]


def notebooks_that_make(name):
    """The notebooks that save a table or figure, see `makers`."""
    paths = notebooks()
    return [paths[k] for k in makers(name, map(source, paths))]


def until(path, wanted):
    """A notebook as far as the last cell that makes a figure or table of `wanted`."""
    book = nbformat.read(path, 4)
    code = [cell.source if cell.cell_type == "code" else "" for cell in book.cells]
    book.cells = book.cells[: 1 + max(k for name in wanted for k in makers(name, code))]
    return book


def is_of(name, other):
    """Whether a table or figure is that of a name, alone or with others: "figure_8_and_12_x" is figure_12."""
    kind, _, number = name.partition("_")
    return re.fullmatch(rf"{kind}_(?:\d+_and_)*{re.escape(number)}(_.*)?", other) is not None


# ---------------------------------------------------------------------- running


def make(profile, wanted, force=False, go_on=False, **parameters):
    """The notebooks that make the figures and tables `wanted` (all where there are none) -> (`reproduce`'s
    outcome, lines that say where tables and figures are, and what came of all). Raises ValueError where no
    notebook makes one."""
    begin, run = time.monotonic(), load_profile(profile, **parameters)
    only = needed(run, wanted)
    tqdm.write("\n".join(to_run(run, only)))
    outcome = reproduce(profile, only, force, go_on, **parameters)
    made = {kind: sorted((run.out / kind).glob("[!.]*")) for kind in ("tables", "figures")}
    if not wanted:
        return outcome, [*found(run, made), came(run, outcome, (time.monotonic() - begin) / 60)]
    shown = [path for paths in made.values() for path in paths]
    shown = [path for path in shown if any(is_of(name, path.stem) for name in wanted)]
    return outcome, [f"{path.parent.name[:-1]:7} {path}" for path in shown]


def found(run, made):
    """Where the results of a whole run are, a line each."""
    lines = [f"{kind:8} {run.out / kind} ({len(paths)})" for kind, paths in made.items() if paths]
    return lines + [f"report   {page}" for page in (run.out / "report.html",) if page.exists()]


def came(run, outcome, minutes):
    """What came of a whole run, in a sentence; a notebook whose tables differ has failed."""
    good = sum(not what.startswith("failed") for what in outcome.values())
    said = f"{good} of {len(outcome)} notebooks complete, in {minutes:.1f} minutes"
    if run.compared_by:
        return (
            f"{said}; not compared with results/{run.name}: this run has its own {', '.join(run.compared_by)}"
        )
    known = run.committed("tables", "any").parent.exists()
    return f"{said}; their tables agree with results/{run.name}" if good and known else said


def needed(run, wanted):
    """The notebooks that make figures and tables by name, each with the part that does, and whole those whose
    pairs they read and that are not there. Raises ValueError where no notebook makes one."""
    found, every = {}, notebooks(run)
    for name in wanted:
        by = {*notebooks_that_make(name)} & {*every}
        if not by:
            why = "" if run.pairs else f", as profile {run.name} trains nothing"
            raise ValueError(f"no notebook makes {name}{why}")
        for path in by:
            found.setdefault(path, []).append(name)
    only = {path: until(path, names) for path, names in found.items()}
    asked = run.pairs and not run.projection and any("pairs" in reads(path) for path in only)
    if asked and not all(map(run.pair_of, run.networks)):
        only |= dict.fromkeys(filter(makes_pairs, every))
    return dict(sorted(only.items()))


def to_run(run, only):
    """A line a notebook: how long all of it took when the committed results were made."""
    lines, seconds = [], timed(run)
    for path, cut in only.items():
        minutes = f"{seconds[path.stem] / 60:.1f} minutes" if path.stem in seconds else ""
        took = f"{minutes} when results/{run.name} was made" if minutes else "not timed yet"
        part = f"its first {len(cut.cells)} cells; all of it: " if cut else ""
        lines.append(f"to run: {path.stem}, {part}{took}")
    return lines
