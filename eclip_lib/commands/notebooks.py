"""`eclip reproduce`: run the notebooks headlessly, in order; and what each makes and reads."""

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


def source(path):
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


# ---------------------------------------------------------------------- what makes what


def with_studies(path):
    """The code of a notebook and of the studies that it imports."""
    text, found = source(path), {}
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


def timed(run):
    """{notebook: seconds that it took} of the committed results of a profile."""
    made = provenance.Record(REPOSITORY / "results" / run.name / "run.json").read().get("notebooks", {})
    return {name: part["seconds"] for name, part in made.items() if "seconds" in part}


def in_turn(run, paths):
    """Notebooks as they are begun where none waits: those whose pairs others wait for, then those that need
    no features of pairs, which would be made twice at once or waited for; the longest first."""
    took = timed(run)
    turn = lambda path: (not makes_pairs(path), trains(path), -took.get(path.stem, 0))  # noqa: E731
    return sorted(paths, key=turn)


def results_read(run, path):
    """[name, digest] of what a notebook reads of what others made."""
    found, own = {}, source(path)
    for kind in reads(path):
        for folder in reversed(run.folders(kind)):
            found |= {(kind, file.name): file for file in folder.glob("[!.]*") if f'"{file.stem}"' not in own}
    return [[*name, files.digest(file)] for name, file in sorted(found.items())]


def reproduce(profile="demo", only=None, force=False, go_on=False, **parameters):
    """Execute the notebooks (all, or those in `only`, which may map each to the part of it) into the run's
    folder, on a CPU two at once where neither waits for the other, with the progress of the work in them,
    after a look whether all that they need is there (`preflight.left_out`).

    A failed notebook does not stop the others; one that is done already, from the same contents, is skipped
    unless `force`. A part leaves its notebook as done, or not, as it was. Returns {notebook name: "done",
    "skipped" or the error}."""
    parameters["part"] = ""
    run = load_profile(profile, **parameters)
    preflight.require_known(run, run.device)
    training = any(map(trains, only or notebooks(run)))
    dropped = preflight.left_out(run, training, go_on, tqdm.write)
    preflight.require_free(run, only or notebooks(run), training)
    if dropped:
        parameters["dropped"] = dropped
        run = load_profile(profile, **parameters)
    only = only or notebooks(run)  # those of a run without pairs, if they were dropped
    parts = only if isinstance(only, dict) else dict.fromkeys(only)
    given = {"profile": str(profile), **parameters, "out": str(run.out)}
    outcome, running = {}, {}
    waiting = in_turn(run, parts)
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
                running[pool.submit(_outcome, run, path, common, given, force, parts[path])] = path
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


def _outcome(run, path, common, given, force, cut):
    target = Path(os.path.realpath(run.out / "notebooks" / path.name))  # a link is written through
    mark = run.record.read().get("notebooks", {}).get(path.stem, {})
    key = files.digest([common, source(path), results_read(run, path)])
    done = (mark.get("state"), mark.get("inputs")) == ("complete", key) and target.exists()
    made = ((run.place / name, sha) for name, sha in mark.get("made", {}).items())
    if done and not force and all(file.is_file() and files.digest(file) == sha for file, sha in made):
        return "skipped"
    begin, book = time.time(), path
    if cut:
        book = target = target.with_name(f"{path.stem}-part.ipynb")
        files.write(book, nbformat.writes(cut))
    failed = _execute(book, target, given)
    if cut:
        run.record.add({"notebooks": {path.stem: mark or {"state": "begun"}}})
    elif failed:
        run.note(path.stem, begin, f"failed: {failed}")
    else:
        told = run.record.read().get("notebooks", {}).get(path.stem, {})  # by its `check`
        run.note(path.stem, begin, "complete", inputs=key, made=told.get("made", {}))
    return f"failed: {failed} (see {target})" if failed else "done"


def run_notebook(path, target, parameters, bar=False):
    """Execute a notebook with those of the parameters that it or a profile has, in this folder -> the
    executed notebook, also written to `target` unless that is None."""
    known = {*papermill.inspect_notebook(str(path)), *Profile.model_fields, "part", "dropped"}
    given = {name: value for name, value in parameters.items() if name in known}
    options = {"cwd": os.getcwd(), "progress_bar": bar, **KERNEL}
    return papermill.execute_notebook(str(path), target and str(target), parameters=given, **options)


def _execute(path, target, parameters):
    """Execute a notebook to `target`; returns the last line of the error, if any."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{path.stem}.eclip-partial.ipynb")
    try:
        run_notebook(path, unfinished, parameters, {"desc": path.stem})
    except Exception as error:
        if unfinished.exists():
            os.replace(unfinished, target)  # it shows where it failed
        return (str(error).strip() or type(error).__name__).splitlines()[-1]
    os.replace(unfinished, target)
    return ""
