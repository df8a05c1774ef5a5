"""`eclip reproduce`: run the notebooks headlessly, in order; and what each makes and reads."""

import ast
import json
import logging
import os
import re
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

import nbformat
import papermill
from tqdm.auto import tqdm

from .. import files, progress, provenance
from ..experiment import load_profile
from ..files import REPOSITORY
from ..profiles import Profile
from . import preflight

NOTEBOOKS = REPOSITORY / "notebooks"
LIBRARY = Path(__file__).parents[1]
# a local kernel's warning about its socket is no news
KERNEL = {"kernel_name": "python3", "extra_arguments": ["--log-level=ERROR"]}
# what other notebooks made, by the method of a run that reads it
READS = {"load_pair": ["pairs"], "folders": ["tables", "figures"]}
logging.getLogger("papermill").setLevel(logging.ERROR)  # a parameter may be missing among a notebook's own


def notebooks(run=None):
    """The numbered notebooks, in order; of a run without image-caption pairs those that train nothing."""
    every = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    return [path for path in every if run is None or run.pairs or not trains(path)]


def _source(path):
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


# ---------------------------------------------------------------------- what makes what


def names_in(code):
    """What a notebook's code calls its own tables and figures: its strings, and the parts of f-strings, but
    those of tables that it quotes."""
    nodes = set(ast.walk(ast.parse(code)))
    calls = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    quoted = {word for call in calls if call.func.attr in ("reported", "beside") for word in call.args}
    found = {str(node.value) for node in nodes - quoted if isinstance(node, ast.Constant)}
    return {name for name in found if re.match(r"(figure|table)_\d", name)}


def notebooks_that_make(name):
    """The notebooks that save a table or figure of this name ("figure_10", "table_1", …), else one of it and
    more ("figure_10_scenes", "figure_8_and_12")."""
    found = {path: names_in(_source(path)) for path in notebooks()}
    exact = [path for path, names in found.items() if name in names]
    return exact or [path for path, names in found.items() if any(is_of(name, other) for other in names)]


def until(path, wanted):
    """A notebook as far as the last cell that makes a figure or table of `wanted`; None where none does."""
    book = nbformat.read(path, 4)
    code = [cell.source if cell.cell_type == "code" else "" for cell in book.cells]
    makes = [k for k, text in enumerate(code) for own in names_in(text) if any(is_of(n, own) for n in wanted)]
    book.cells = book.cells[: max(makes, default=-1) + 1]
    return book if makes else None


def is_of(name, other):
    """Whether a table or figure is that of a name, alone or with others: "figure_8_and_12_x" is figure_12."""
    kind, _, number = name.partition("_")
    return re.fullmatch(rf"{kind}_(?:\d+_and_)*{re.escape(number)}(_.*)?", other) is not None


def with_studies(path):
    """The code of a notebook and of the studies that it imports."""
    text, found = _source(path), {}
    todo = re.findall(r"\w+", " ".join(re.findall(r"^from eclip_lib\.studies import (.+)$", text, re.M)))
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = (LIBRARY / "studies" / f"{name}.py").read_text()
            todo += re.findall(r"^from \.(\w+) import", found[name], re.M)
    return "\n".join([text, *found.values()])


def reads(path):
    """What a notebook reads of what others made: "pairs", "tables", "figures"."""
    text = with_studies(path)
    return [kind for method, kinds in READS.items() if f"run.{method}(" in text for kind in kinds]


def waits(path, others):
    """Whether a notebook reads what one of the others makes: pairs, or tables and figures of any."""
    kinds = reads(path)
    return bool(others if "tables" in kinds else "pairs" in kinds and list(filter(makes_pairs, others)))


def makes_pairs(path):
    return "run.save_pair(" in with_studies(path)


def trains(path):
    """Whether a notebook needs image-caption pairs."""
    return any(f"run.{method}(" in with_studies(path) for method in ("features", "load_pairs"))


# ---------------------------------------------------------------------- running


def results_read(run, path):
    """[name, digest] of what a notebook reads of what others made."""
    found, own = {}, _source(path)
    for kind in reads(path):
        for folder in reversed(run.folders(kind)):
            found |= {(kind, file.name): file for file in folder.glob("[!.]*") if f'"{file.stem}"' not in own}
    return [[*name, files.digest(file)] for name, file in sorted(found.items())]


def reproduce(profile="demo", only=None, force=False, go_on=False, wanted=(), **parameters):
    """Execute the notebooks (all, or those in `only`) into the run's folder, on a CPU two at once where
    neither waits for the other, with the progress of the work in them, after a look whether all that they
    need is there (`preflight.left_out`).

    A failed notebook does not stop the others; one that is done already, from the same contents, is skipped
    unless `force`. Those that make a figure or table of `wanted` run as far as that, beside the run's own.
    Returns {notebook name: "done", "skipped" or the error}."""
    parameters["part"] = ""
    run = load_profile(profile, **parameters)
    preflight.require_known(run, run.device)
    training = any(map(trains, only or notebooks(run)))
    dropped = preflight.left_out(run, training, go_on, tqdm.write)
    preflight.require_free(run, only or notebooks(run), training)
    if dropped:
        parameters["dropped"] = dropped
        run = load_profile(profile, **parameters)
    given = {"profile": str(profile), **parameters, "out": str(run.out)}
    outcome, running = {}, {}
    waiting = sorted(only or notebooks(run), key=makes_pairs, reverse=True)  # others wait for these
    total, at_once, common = len(waiting), _at_once(run.device), preflight.inputs(run)
    provenance.device_name(run.device)  # asked before processes are forked, in which CUDA cannot be asked
    busy = f"another `eclip reproduce` is at work in {run.out}; wait for it, or name another --out"
    processes = ProcessPoolExecutor(at_once, initializer=progress.begun, initargs=[os.getpid()])
    with files.alone(run.out / ".lock", busy), progress.shown(), processes as pool:
        while waiting or running:
            unfinished = [*waiting, *running.values()]
            ready = [p for p in waiting if not waits(p, [other for other in unfinished if other != p])]
            ready = ready if ready or running else waiting[:1]  # two that wait for each other
            for path in ready[: at_once - len(running)]:
                waiting.remove(path)
                running[pool.submit(_outcome, run, path, common, given, force, wanted)] = path
            for job in wait(running, return_when=FIRST_COMPLETED).done:
                path = running.pop(job)
                outcome[path.stem] = job.result()
                tqdm.write(f"[{len(outcome)}/{total}] {path.stem}: {outcome[path.stem]}")
    return dict(sorted(outcome.items()))


def _at_once(device):
    """How many notebooks run at once: two on a CPU of several cores, which then share them; else one."""
    if device != "cpu" or (cores := files.cores()) == 1:
        return 1
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // 2))  # their kernels inherit it
    return 2


def _outcome(run, path, common, given, force, wanted):
    target = Path(os.path.realpath(run.out / "notebooks" / path.name))  # a link is written through
    mark = run.record.read().get("notebooks", {}).get(path.stem, {})
    key = files.digest([common, _source(path), results_read(run, path)])
    done = (mark.get("state"), mark.get("inputs")) == ("complete", key) and target.exists()
    made = ((run.place / name, sha) for name, sha in mark.get("made", {}).items())
    done = done and all(file.is_file() and files.digest(file) == sha for file, sha in made)
    if done and not force:
        return "skipped"
    if book := until(path, wanted):
        return _execute(path, book, target.with_stem("-".join([path.stem, *wanted])), given)
    begin = time.time()
    outcome = _execute(path, None, target, given)
    if outcome != "done":
        run.note(path.stem, begin, outcome.partition(" (see ")[0])
        return outcome
    made = run.record.read().get("notebooks", {}).get(path.stem, {}).get("made", {})  # told by its `check`
    run.note(path.stem, begin, "complete", inputs=key, made=made)
    return outcome


def make(profile, wanted, force=False, go_on=False, **parameters):
    """The notebooks that make the figures and tables `wanted` (all where there are none) -> (`reproduce`'s
    outcome, lines that say where tables and figures are). Raises ValueError where no notebook makes one."""
    run = load_profile(profile, **parameters)
    only = needed(run, wanted)
    tqdm.write("\n".join(to_run(run, only, wanted)))
    outcome = reproduce(profile, only, force, go_on, wanted, **parameters)
    made = [path for kind in ("tables", "figures") for path in sorted((run.out / kind).glob("[!.]*"))]
    made = [path for path in made if not wanted or any(is_of(name, path.stem) for name in wanted)]
    return outcome, [f"{path.parent.name[:-1]:7} {path}" for path in made]


def needed(run, wanted):
    """The notebooks that make figures and tables by name, with those whose pairs they read and that are not
    there. Raises ValueError where no notebook makes one."""
    only, every = set(), notebooks(run)
    for name in wanted:
        found = {*notebooks_that_make(name)} & {*every}
        if not found:
            why = "" if run.pairs else f", as profile {run.name} trains nothing"
            raise ValueError(f"no notebook makes {name}{why}")
        only |= found
    asked = run.pairs and not run.projection and any("pairs" in reads(path) for path in only)
    if asked and not all(map(run.pair_of, run.networks)):
        only |= {*filter(makes_pairs, every)}
    return sorted(only)


def to_run(run, paths, wanted=()):
    """A line a notebook, and as far as what: how long all of it took when the committed results were made."""
    timed = provenance.Record(REPOSITORY / "results" / run.name / "run.json").read().get("notebooks", {})
    minutes = {name: f"{part['seconds'] / 60:.1f} minutes" for name, part in timed.items()}
    took = {name: f"{said} when results/{run.name} was made" for name, said in minutes.items()}
    part = f" as far as {' and '.join(wanted)}; all of it:"
    parts = {path.stem: part if until(path, wanted) else "," for path in paths}
    return [f"to run: {name}{part} {took.get(name, 'not timed yet')}" for name, part in parts.items()]


def run_notebook(path, target, parameters, bar=False, part=None):
    """Execute a notebook, or only `part` of it, with those of the parameters that it or a profile has, in
    this folder -> the executed notebook, also written to `target` unless that is None."""
    known = {*papermill.inspect_notebook(str(path)), *Profile.model_fields, "part", "dropped"}
    given = {name: value for name, value in parameters.items() if name in known}
    options = {"cwd": os.getcwd(), "progress_bar": bar, **KERNEL}
    return papermill.execute_notebook(part or str(path), target and str(target), parameters=given, **options)


def _execute(path, part, target, parameters):
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.stem}.eclip-partial.ipynb")
    try:
        run_notebook(path, unfinished, parameters, {"desc": path.stem}, part)
    except Exception as error:
        if unfinished.exists():
            os.replace(unfinished, target)  # it shows where it failed
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        return f"failed: {last} (see {target})"
    os.replace(unfinished, target)
    return "done"
