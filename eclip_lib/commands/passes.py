"""What `eclip reproduce --dry-run` counts with: how many forward passes each notebook takes of every image
and of every training pair.

    .venv/bin/python -m eclip_lib.commands.passes        # minutes; writes results/benchmarks/passes.csv

A notebook runs three times on a small network of the demo, with a counter on the first convolution of every
image encoder: once as it is, once with more images, once with more pairs. The differences are what grows with
a dataset; what a notebook does a fixed number of times is left out."""

import tempfile
from pathlib import Path

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell
from tqdm.auto import tqdm

from .notebooks import notebooks, run_notebook
from .resources import PASSES

IMAGES, PAIRS = (60, 80), (300, 400)  # more than one batch: timings take one
# CLIP's convolution has no bias, that of a mask's ViT has one; backward passes are not counted
COUNTER = """import torch
passes = {"clip": 0, "masks": 0}
def count(module, inputs, output):
    if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
        passes["clip" if module.bias is None else "masks"] += len(inputs[0])
torch.nn.modules.module.register_module_forward_hook(count);"""


def counted(path, out, images, pairs):
    """Execute with the counter -> {"clip": images through CLIP's encoder, "masks": through a mask's}."""
    book = nbformat.read(path, as_version=4)
    book.cells = [new_code_cell(COUNTER), *book.cells, new_code_cell("print(*passes.values())")]
    copy = Path(out, path.name)
    nbformat.write(book, copy)
    parameters = {
        "networks": "scenes-ViT-32",
        "datasets": "scenes",
        "limit": images,
        "pairs": f"scenes:{pairs}",
        "out": str(out),
    }
    done = run_notebook(copy, None, parameters)
    return dict(zip(("clip", "masks"), map(int, done.cells[-1].outputs[0].text.split()), strict=True))


def measure():
    """DataFrame: notebook, and passes of CLIP's image encoder and of the masks' for every image (clip_image,
    masks_image) and every pair (clip_pair, masks_pair)."""
    runs = {"base": (IMAGES[0], PAIRS[0]), "image": (IMAGES[1], PAIRS[0]), "pair": (IMAGES[0], PAIRS[1])}
    found = {}
    for run, (images, pairs) in runs.items():
        with tempfile.TemporaryDirectory() as out:  # one for all notebooks: 03 and 05 find the cache of 02
            for path in tqdm(notebooks(), desc=f"counting, {run}", unit="notebook"):
                found[path.stem, run] = counted(path, out, images, pairs)
    return grown(found, [path.stem for path in notebooks()])


def grown(found, names):
    """{(notebook, run): passes} -> what grows with every image and pair, one line a notebook."""
    steps = {"image": IMAGES[1] - IMAGES[0], "pair": PAIRS[1] - PAIRS[0]}
    lines = []
    for name in names:
        line = {"notebook": name}
        for kind in ("clip", "masks"):
            for unit, step in steps.items():
                line[f"{kind}_{unit}"] = (found[name, unit][kind] - found[name, "base"][kind]) / step
        lines.append(line)
    return pd.DataFrame(lines)


if __name__ == "__main__":
    measure().to_csv(PASSES, index=False)
