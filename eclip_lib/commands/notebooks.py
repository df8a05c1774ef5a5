"""`eclip reproduce` and `promote`: run the notebooks headlessly, in order, and copy what a run made to the
committed `results/`."""

import ast
import os
import re
import shutil
import time
from pathlib import Path

import nbformat
import papermill
from tqdm.auto import tqdm

from .. import files
from ..datasets.image_text import load_pairs
from ..experiment import load_profile
from ..files import REPOSITORY
from ..networks import checkpoints

NOTEBOOKS = REPOSITORY / "notebooks"
LIBRARY = Path(__file__).parents[1]
# a local kernel's warning about its socket is no news
KERNEL = {"kernel_name": "python3", "extra_arguments": ["--log-level=ERROR"]}
READS = {
    "00_quickstart": ["pairs"],
    "06_benchmarks": ["pairs"],
    "07_claims": ["tables", "figures"],
}  # of what other notebooks made


def notebooks():
    """The numbered notebooks, in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def _source(path):
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


# ---------------------------------------------------------------------- what makes what


def names_in(path):
    """What a notebook calls its own tables and figures: its strings, of f-strings the part before the first
    value, but those of tables that it quotes."""
    found, tree = set(), ast.parse(_source(path))
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    quoted = {word for call in calls if call.func.attr == "reported" for word in call.args}
    for node in set(ast.walk(tree)) - quoted:
        if isinstance(node, ast.JoinedStr) and node.values and isinstance(node.values[0], ast.Constant):
            found.add(node.values[0].value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return {name for name in found if re.match(r"(figure|table)_\d", name)}


def notebooks_that_make(name):
    """The notebooks that save a table or figure of this name ("figure_10", "table_1", …), else one of it and
    more ("figure_10_scenes", "figure_8_and_12")."""
    kind, _, number = name.partition("_")
    parts = re.compile(rf"{kind}_(?:\d+_and_)*{re.escape(number)}(_.*)?")
    exact = [path for path in notebooks() if name in names_in(path)]
    return exact or [path for path in notebooks() if any(parts.fullmatch(other) for other in names_in(path))]


# ---------------------------------------------------------------------- running


def inputs(run, path):
    """All that decides a notebook's outcome, by content: its code, the settings, the library that it can
    reach with its data files, the demo's models, and the weights, datasets, pairs and earlier results it
    reads."""
    library = [p for p in sorted(LIBRARY.rglob("*")) if p.suffix in (".yaml", ".tsv")]
    demo = sorted(
        p for p in (REPOSITORY / "data" / "demo").glob("*") if p.suffix in (".safetensors", ".gz", ".json")
    )
    results = [p for kind in READS.get(path.stem, ()) for f in run.folders(kind) for p in sorted(f.glob("*"))]
    contents = [*library, *demo, *_weights(run), *(p for p in results if p.stem != "claims")]
    digests = [[p.name, files.digest(p)] for p in contents if p.is_file()]
    code = files.code_digest(*(p.name for p in sorted(LIBRARY.iterdir()) if _reachable(p)))
    settings = run.model_dump(mode="json", exclude={"out", "device", "workers", "saved"})
    data = [_state(run, name) for name in run.datasets]
    return files.digest([_source(path), settings, code, digests, data, _pairs_state(run)])


def _reachable(path):
    inside = path.is_dir() and any(path.glob("*.py"))
    return (inside or path.suffix == ".py") and path.name not in ("commands", "cli.py")


def _weights(run):
    """The files of weights that a run names, or that are registered for its networks and masks."""
    words = [run.pretrained, *(where.partition("=")[2] for where in run.masks.values())]
    named = [Path(word).expanduser() for word in words if word and checkpoints.is_path(word)]
    tag = "openai" if run.pretrained == "default" else run.pretrained
    known = [checkpoints.registered(network, tag) for network in run.networks]
    known += [checkpoints.registered(where.partition("=")[0], "dino") for where in run.masks.values()]
    known += [word for word in words if word in checkpoints.registry()["weights"]]
    return named + [checkpoints.folder() / name for name in known if name]


def _state(run, name):
    try:
        return run.load_dataset(name).identity
    except (OSError, ValueError) as error:  # the notebook will say so
        return str(error)


def _pairs_state(run):
    try:
        source = load_pairs(run.pairs)
        return [source.about, [source.stamp(part) for part in source.parts]]
    except (OSError, ValueError) as error:
        return str(error)


def reproduce(profile="demo", only=None, force=False, **parameters):
    """Execute the notebooks (all, or those in `only`) into `out`/notebooks, one line of progress each.

    A failed notebook does not stop the others; one that is done already, with the same `inputs`, is skipped
    unless `force`. Returns {notebook name: "done", "skipped" or the error}."""
    run = load_profile(profile, **parameters)
    given = {"profile": str(profile), **parameters, "out": str(run.out)}
    outcome, paths = {}, only or notebooks()
    busy = f"another `eclip reproduce` is at work in {run.out}; wait for it, or name another --out"
    with files.alone(run.out / ".lock", busy):
        for number, path in enumerate(paths, 1):
            target = run.out / "notebooks" / path.name
            key, mark = inputs(run, path), files.read_json(target.with_suffix(".json"))
            done = isinstance(mark, dict) and mark.get("inputs") == key and target.exists()
            outcome[path.stem] = "skipped" if done and not force else _execute(path, target, key, given)
            tqdm.write(f"[{number}/{len(paths)}] {path.stem}: {outcome[path.stem]}")
    return outcome


def make(profile, wanted, force=False, **parameters):
    """The notebooks that make the figures and tables `wanted` (all where there are none) -> (`reproduce`'s
    outcome, lines that say where tables and figures are). Raises ValueError where no notebook makes one."""
    run, only = load_profile(profile, **parameters), []
    for name in wanted:
        found = notebooks_that_make(name)
        if not found:
            raise ValueError(f"no notebook makes {name}")
        only += [path for path in found if path not in only]
    outcome = reproduce(profile, sorted(only), force or bool(wanted), **parameters)
    lines = []
    for kind in ("tables", "figures"):
        for path in sorted((run.out / kind).glob("[!.]*")):
            if not wanted or any(path.stem == name or path.stem.startswith(f"{name}_") for name in wanted):
                lines.append(f"{kind[:-1]:7} {path}")
    return outcome, lines


def run_notebook(path, target, parameters, bar=False):
    """Execute a notebook with those of the parameters that it has, in this folder -> the executed notebook,
    also written to `target` unless that is None."""
    known = papermill.inspect_notebook(str(path))
    given = {name: value for name, value in parameters.items() if name in known}
    options = {"cwd": os.getcwd(), "progress_bar": bar, **KERNEL}
    return papermill.execute_notebook(str(path), target and str(target), parameters=given, **options)


def _execute(path, target, key, parameters):
    target.with_suffix(".json").unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    begin, partial = time.time(), target.with_suffix(".partial.ipynb")
    try:
        run_notebook(path, partial, parameters, {"desc": path.stem})
    except Exception as error:
        os.replace(
            partial, target
        ) if partial.exists() else None  # the half-executed notebook shows where it failed
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        return f"failed: {last} (see {target})"
    os.replace(partial, target)
    mark = {"inputs": key, "seconds": round(time.time() - begin, 1), "parameters": parameters}
    files.write(target.with_suffix(".json"), files.as_json(mark))
    return "done"


# ---------------------------------------------------------------------- what is committed


def execute_in_place(paths=None):
    """`make notebooks`: execute the committed notebooks where they lie, quiet and without traces of this
    machine."""
    os.environ["TQDM_DISABLE"] = "1"
    for path in tqdm(
        [Path(p) for p in paths or notebooks()], desc="executing", unit="notebook", disable=False
    ):
        book = papermill.execute_notebook(str(path), None, cwd=str(path.parent), progress_bar=False, **KERNEL)
        nbformat.write(stripped(book), path)


def stripped(book):
    """A notebook without execution times and papermill's metadata (paths, durations), which would differ on
    every machine."""
    book.metadata = {k: v for k, v in book.metadata.items() if k in ("kernelspec", "language_info")}
    book.metadata["language_info"] = {"name": "python"}
    for cell in book.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
    return book


def promote(profile="demo"):
    """`make results`: copy a run's tables, figures, trained pairs and report to the committed
    `results/<profile>/`. Returns what was copied."""
    run, copied = load_profile(profile, device="cpu"), []
    for kind, suffix in (("tables", "csv"), ("figures", "png"), ("pairs", "safetensors")):
        for source in sorted((run.out / kind).glob(f"[!.]*.{suffix}")):
            target = run.committed(kind, source.stem)
            target.parent.mkdir(parents=True, exist_ok=True)
            copied.append(shutil.copyfile(source, target))
    for source in sorted(run.out.glob("report.*")):
        copied.append(shutil.copyfile(source, REPOSITORY / "results" / run.name / source.name))
    if not copied:
        raise FileNotFoundError(
            f"nothing to promote in {run.out}; run `eclip reproduce --profile {profile}` first"
        )
    return copied
