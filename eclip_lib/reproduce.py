"""Run the notebooks headlessly, in order, and promote what a run made to the committed `results/`."""

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import nbformat
import papermill
from tqdm.auto import tqdm

from . import readme
from .profiles import REPOSITORY, load_profile

NOTEBOOKS = REPOSITORY / "notebooks"
KERNEL = {
    "kernel_name": "python3",
    "extra_arguments": ["--log-level=ERROR"],
}  # a local kernel's warning about its socket is no news


def notebooks():
    """The numbered notebooks, in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def _source(path):
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def making(name):
    """The notebooks that save a table or figure called `name` ("figure_10", "table_1", …) or `name`_something."""
    return [path for path in notebooks() if re.search(rf'"{re.escape(name)}(_\w+)?"', _source(path))]


def fingerprint(path, settings):
    """Hash of all that decides a notebook's outcome: its code, parameters and profile, the library and the bundled checkpoints."""
    digest = hashlib.sha256(json.dumps([_source(path), settings], sort_keys=True, default=str).encode())
    library = Path(__file__).parent
    for file in sorted([*library.rglob("*.py"), *library.rglob("*.yaml"), *REPOSITORY.glob("data/demo/*.safetensors")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def reproduce(profile="demo", only=None, force=False, **parameters):
    """Execute the notebooks (all, or those in `only`) into `out`/notebooks, one line of progress each.

    A failed notebook does not stop the others; one that is done already with the same parameters, code and checkpoints is
    skipped unless `force`. Returns {notebook name: "done", "skipped" or the error}."""
    settings = load_profile(profile, **parameters)
    folder = settings.out / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    given = {"profile": str(profile), **parameters}
    outcome, paths = {}, only or notebooks()
    for number, path in enumerate(paths, 1):
        mark, target = folder / f"{path.stem}.json", folder / path.name
        key = fingerprint(path, given | asdict(settings))
        if not force and mark.exists() and target.exists() and json.loads(mark.read_text())["fingerprint"] == key:
            outcome[path.stem] = "skipped"
        else:
            outcome[path.stem] = _execute(path, target, mark, key, given)
        tqdm.write(f"[{number}/{len(paths)}] {path.stem}: {outcome[path.stem]}")
    return outcome


def run_notebook(path, target, parameters, bar=False):
    """Execute a notebook with those of the parameters that it has, in this folder -> the executed notebook, also written to `target` unless
    that is None."""
    known = papermill.inspect_notebook(str(path))
    return papermill.execute_notebook(
        str(path), target and str(target), parameters={name: value for name, value in parameters.items() if name in known},
        cwd=os.getcwd(), progress_bar=bar, **KERNEL,
    )  # fmt: skip


def _execute(path, target, mark, key, parameters):
    mark.unlink(missing_ok=True)
    begin, partial = time.time(), target.with_suffix(".partial.ipynb")
    try:
        run_notebook(path, partial, parameters, {"desc": path.stem})
    except Exception as error:
        os.replace(partial, target) if partial.exists() else None  # the half-executed notebook shows where it failed
        return f"failed: {str(error).strip().splitlines()[-1]} (see {target})"
    os.replace(partial, target)
    mark.write_text(json.dumps({"fingerprint": key, "seconds": round(time.time() - begin, 1), "parameters": parameters}))
    return "done"


def execute_in_place(paths=None):
    """`make notebooks`: execute the committed notebooks where they lie, quiet and without traces of this machine."""
    os.environ["TQDM_DISABLE"] = "1"
    for path in tqdm([Path(p) for p in paths or notebooks()], desc="executing", unit="notebook", disable=False):
        book = papermill.execute_notebook(str(path), None, cwd=str(path.parent), progress_bar=False, **KERNEL)
        nbformat.write(stripped(book), path)


def stripped(book):
    """A notebook without execution times and papermill's metadata (paths, durations), which would differ on every machine."""
    book.metadata = {k: v for k, v in book.metadata.items() if k in ("kernelspec", "language_info")}
    book.metadata["language_info"] = {"name": "python"}
    for cell in book.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
    return book


def promote(profile="demo"):
    """`make results`: copy a run's tables, figures, trained pairs and report to the committed `results/<profile>/`, and the demo's numbers into
    README.md. Returns what was copied."""
    settings, copied = load_profile(profile, device="cpu"), []
    for kind, suffix in (("tables", "csv"), ("figures", "png"), ("pairs", "safetensors")):
        for source in sorted((settings.out / kind).glob(f"*.{suffix}")):
            target = REPOSITORY / "results" / settings.name / kind / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            copied.append(target)
    for source in sorted(settings.out.glob("report.*")):
        copied.append(shutil.copyfile(source, REPOSITORY / "results" / settings.name / source.name))
    if not copied:
        raise FileNotFoundError(f"nothing to promote in {settings.out}; run `eclip reproduce --profile {profile}` first")
    if settings.name == "demo":
        readme.update()
    return copied
