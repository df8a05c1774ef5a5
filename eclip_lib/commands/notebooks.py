"""`eclip reproduce`: run the notebooks headlessly, in order; and what each makes and reads."""

import ast
import json
import logging
import os
import re
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

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


def names_in(path):
    """What a notebook calls its own tables and figures: its strings, and the parts of f-strings, but those of
    tables that it quotes."""
    nodes = set(ast.walk(ast.parse(_source(path))))
    calls = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    quoted = {word for call in calls if call.func.attr in ("reported", "beside") for word in call.args}
    found = {str(node.value) for node in nodes - quoted if isinstance(node, ast.Constant)}
    return {name for name in found if re.match(r"(figure|table)_\d", name)}


def notebooks_that_make(name):
    """The notebooks that save a table or figure of this name ("figure_10", "table_1", …), else one of it and
    more ("figure_10_scenes", "figure_8_and_12")."""
    exact = [path for path in notebooks() if name in names_in(path)]
    return exact or [path for path in notebooks() if any(is_of(name, other) for other in names_in(path))]


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


def reproduce(profile="demo", only=None, force=False, go_on=False, **parameters):
    """Execute the notebooks (all, or those in `only`) into the run's folder, on a CPU two at once where
    neither waits for the other, with the progress of the work in them, after a look whether all that they
    need is there (`preflight.left_out`).

    A failed notebook does not stop the others; one that is done already, from the same contents, is skipped
    unless `force`. Returns {notebook name: "done", "skipped" or the error}."""
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
                running[pool.submit(_outcome, run, path, common, given, force)] = path
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


def _outcome(run, path, common, given, force):
    target = Path(os.path.realpath(run.out / "notebooks" / path.name))  # a link is written through
    mark = run.record.read().get("notebooks", {}).get(path.stem, {})
    key = files.digest([common, _source(path), results_read(run, path)])
    done = (mark.get("state"), mark.get("inputs")) == ("complete", key) and target.exists()
    made = ((run.place / name, sha) for name, sha in mark.get("made", {}).items())
    done = done and all(file.is_file() and files.digest(file) == sha for file, sha in made)
    return "skipped" if done and not force else _execute(run, path, target, key, given)


def make(profile, wanted, force=False, go_on=False, **parameters):
    """The notebooks that make the figures and tables `wanted` (all where there are none) -> (`reproduce`'s
    outcome, lines that say where tables and figures are). Raises ValueError where no notebook makes one."""
    run = load_profile(profile, **parameters)
    only = needed(run, wanted)
    tqdm.write("\n".join(to_run(run, only)))
    outcome = reproduce(profile, only, force, go_on, **parameters)
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


def to_run(run, paths):
    """A line a notebook: how long it took when the committed results were made."""
    timed = provenance.Record(REPOSITORY / "results" / run.name / "run.json").read().get("notebooks", {})
    minutes = {name: f"{part['seconds'] / 60:.1f} minutes" for name, part in timed.items()}
    took = {name: f"{said} when results/{run.name} was made" for name, said in minutes.items()}
    return [f"to run: {path.stem}, {took.get(path.stem, 'not timed yet')}" for path in paths]


def run_notebook(path, target, parameters, bar=False):
    """Execute a notebook with those of the parameters that it or a profile has, in this folder -> the
    executed notebook, also written to `target` unless that is None."""
    known = {*papermill.inspect_notebook(str(path)), *Profile.model_fields, "part", "dropped"}
    given = {name: value for name, value in parameters.items() if name in known}
    options = {"cwd": os.getcwd(), "progress_bar": bar, **KERNEL}
    return papermill.execute_notebook(str(path), target and str(target), parameters=given, **options)


def _execute(run, path, target, key, parameters):
    target.parent.mkdir(parents=True, exist_ok=True)
    begin, unfinished = time.time(), target.with_name(f".{path.stem}.eclip-partial.ipynb")
    try:
        run_notebook(path, unfinished, parameters, {"desc": path.stem})
    except Exception as error:
        if unfinished.exists():
            os.replace(unfinished, target)  # it shows where it failed
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        run.note(path.stem, begin, f"failed: {last}")
        return f"failed: {last} (see {target})"
    os.replace(unfinished, target)
    made = run.record.read().get("notebooks", {}).get(path.stem, {}).get("made", {})  # told by its `check`
    run.note(path.stem, begin, "complete", inputs=key, made=made)
    return "done"
