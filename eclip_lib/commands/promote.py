"""What is committed: `eclip promote` copies what a whole run made to `results/`, `make notebooks` executes
the notebooks where they lie."""

import os
from pathlib import Path

import nbformat
import papermill
from tqdm.auto import tqdm

from .. import files
from ..experiment import load_profile
from ..networks import checkpoints
from . import outputs
from .notebooks import KERNEL, notebooks

KINDS = {"tables": "csv", "figures": "png", "pairs": "safetensors"}


def promote(profile="demo", out=None, into=None, partial=False):
    """`make results`: copy a run's tables, figures, trained pairs, report and `run.json` into a folder
    (`results/<profile>/`). Returns what was copied.

    Raises FileNotFoundError where nothing is there, ValueError where the run is not whole; `partial` copies
    it all the same, and marks its `run.json`."""
    run = load_profile(profile, device="cpu", out=out)
    into = files.REPOSITORY / "results" / run.name if into is None else outputs.folder(into)
    found = [path for kind, suffix in KINDS.items() for path in (run.out / kind).glob(f"[!.]*.{suffix}")]
    if not found:
        raise FileNotFoundError(
            f"nothing to promote in {run.out}; run `eclip reproduce --profile {profile}` first"
        )
    facts = run.record.read()
    wrong = shortcomings(run, facts)
    if wrong and not partial:
        raise ValueError(
            f"{run.out} is no whole run of profile {run.name}: {'; '.join(wrong)[:180]}; finish it, or add "
            "--partial, which marks it"
        )
    sources = sorted([*found, *run.out.glob("report.*")])
    targets = [into / source.relative_to(run.out) for source in sources]
    outputs.require_free([*targets, into / "run.json"], [*sources, run.out / "run.json"])
    outputs.require_run(into, targets)
    for source, target in zip(sources, targets, strict=True):
        files.write(target, source.read_bytes())
    note = files.as_json(facts | ({"partial": wrong} if wrong else {}))
    files.write(into / "run.json", note.replace(f"{files.REPOSITORY}/", ""))
    return [*targets, into / "run.json"]


def shortcomings(run, facts) -> list[str]:
    """What keeps a run from being the whole of its profile, in words, by its `run.json`."""
    if not facts:
        return ["it has no run.json"]
    parts, found = facts.get("notebooks", {}), []
    for path in notebooks(run):
        state = parts.get(path.stem, {}).get("state", "not run")
        found += [f"{path.stem} {state}"] if state != "complete" else []
    for words, kind in (("with", "changed"), ("without", "dropped")):
        named = dict.fromkeys(name for part in [facts, *parts.values()] for name in part[kind])
        found += [f"{words} {', '.join(named)}"] if named else []
    for name, about in checkpoints.registry()["datasets"].items():
        count = facts.get("datasets", {}).get(name, about["images"])
        found += [f"{count} of {about['images']} images of {name}"] if count < about["images"] else []
    return found


# ---------------------------------------------------------------------- the committed notebooks


def execute_in_place(paths=None):
    """`make notebooks`: execute the committed notebooks where they lie, quiet and without traces of this
    machine."""
    os.environ["TQDM_DISABLE"] = "1"
    every = [Path(path) for path in paths or notebooks()]
    for path in tqdm(every, desc="executing", unit="notebook", disable=False):
        book = papermill.execute_notebook(str(path), None, cwd=str(path.parent), progress_bar=False, **KERNEL)
        nbformat.write(stripped(book), path)


def stripped(book):
    """A notebook without execution times and papermill's metadata (paths, durations), which would differ on
    every machine, and without progress bars, which would stand still."""
    book.metadata = {k: v for k, v in book.metadata.items() if k in ("kernelspec", "language_info")}
    book.metadata["language_info"] = {"name": "python"}
    for cell in book.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":  # a notebook's progress bar does not ask TQDM_DISABLE
            cell.outputs = [o for o in cell.outputs if "%|" not in o.get("data", {}).get("text/plain", "")]
    return book
