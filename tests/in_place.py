"""`make notebooks`: the committed notebooks executed where they lie, quiet and without traces of this machine."""

import os
from pathlib import Path

import nbformat
import papermill
from tqdm.auto import tqdm

from eclip_lib.commands.notebooks import KERNEL, notebooks


def execute_in_place(paths):
    os.environ["TQDM_DISABLE"] = "1"
    for path in tqdm([*map(Path, paths)], desc="executing", unit="notebook", disable=False):
        book = papermill.execute_notebook(str(path), None, cwd=str(path.parent), progress_bar=False, **KERNEL)
        nbformat.write(stripped(book), path)


def stripped(book):
    """A notebook without execution times and papermill's metadata (paths, durations), which would differ on
    every machine, and without progress bars, which would stand still. What comes before the work, all code
    up to the parameters, is folded."""
    book.metadata = {k: v for k, v in book.metadata.items() if k in ("kernelspec", "language_info")}
    book.metadata["language_info"] = {"name": "python"}
    folded = True
    for cell in book.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if folded and cell.cell_type == "code":
            cell.metadata["jupyter"] = {"source_hidden": True}
            folded = tags != ["parameters"]
        if cell.cell_type == "code":  # a notebook's progress bar does not ask TQDM_DISABLE
            cell.outputs = [o for o in cell.outputs if "%|" not in o.get("data", {}).get("text/plain", "")]
    return book


if __name__ == "__main__":
    execute_in_place(notebooks())
