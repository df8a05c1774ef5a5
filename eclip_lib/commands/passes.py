"""What `eclip reproduce --dry-run` counts with: how many forward passes each notebook takes of every image
and of every training pair, and how long those of `photos` take.

    .venv/bin/python -m eclip_lib.commands.passes             # minutes; writes results/benchmarks/passes.csv
    .venv/bin/python -m eclip_lib.commands.passes FOLDER      # photos.csv, from a few pictures of VOC 2012

A notebook runs three times on a small network of the demo, with a counter on the first convolution of every
image encoder: once as it is, once with more images, once with more pairs. The differences are what grows with
a dataset; what a notebook does a fixed number of times is left out."""

import sys
import tempfile
from pathlib import Path

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell
from tqdm.auto import tqdm

from ..datasets import load_dataset
from ..experiment import load_profile
from .forecast import PASSES, SECONDS
from .notebooks import notebooks, run_notebook

IMAGES, PAIRS = (60, 80), (300, 400)  # more than one batch: timings take one
# CLIP's convolution has no bias, that of a mask's ViT has one; backward passes are not counted
COUNTER = """import torch
passes = {"clip": 0, "masks": 0}
def count(module, inputs, output):
    if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
        passes["clip" if module.bias is None else "masks"] += len(inputs[0])
torch.nn.modules.module.register_module_forward_hook(count);"""


def _between(before, path, after, out, parameters):
    """Execute a notebook between two more cells -> the words that the last one prints."""
    book = nbformat.read(path, as_version=4)
    book.cells = [new_code_cell(before), *book.cells, new_code_cell(after)]
    copy = Path(out, path.name)
    nbformat.write(book, copy)
    return run_notebook(copy, None, parameters | {"out": str(out)}).cells[-1].outputs[0].text.split()


def counted(path, out, images, pairs):
    """Execute with the counter -> {"clip": images through CLIP's encoder, "masks": through a mask's}."""
    parameters = {
        "networks": "scenes-ViT-32",
        "datasets": "scenes",
        "limit": images,
        "pairs": f"scenes:{pairs}",
    }
    found = _between(COUNTER, path, "print(*passes.values())", out, parameters)
    return dict(zip(("clip", "masks"), map(int, found), strict=True))


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


def photo_seconds(root, counts=(4, 16)):
    """Seconds of one core of the notebooks of `photos` at random weights -> DataFrame: notebook, `seconds`
    whatever the number of pictures, and `seconds_image` for each. root: of a few of VOC's pictures, which are
    repeated."""
    run, lines, clock = load_profile("photos"), [], "import time; print(time.process_time())"
    dataset = load_dataset("voc2012", root)
    for path in tqdm(notebooks(run), desc="timing", unit="notebook"):
        took = []
        for count in counts:
            with tempfile.TemporaryDirectory() as out:
                _repeat(dataset, Path(out, "voc"), count)
                parameters = {"profile": "photos", "root": f"{out}/voc", "pretrained": "None", "workers": 0}
                took.append(
                    float(_between("import torch; torch.set_num_threads(1)", path, clock, out, parameters)[0])
                )
        each = (took[1] - took[0]) / (counts[1] - counts[0])
        line = {"notebook": path.stem, "seconds": max(0, took[0] - counts[0] * each)}
        lines.append(line | {"seconds_image": max(0, each)})
    return pd.DataFrame(lines)


def _repeat(dataset, root, count):
    """A tree of VOC 2012 with `count` pictures, links to those of a smaller one."""
    base, names = root / "VOCdevkit" / "VOC2012", []
    for number in range(count):
        names.append(f"{number:06d}")
        for path in dataset.sources(dataset.items[number % len(dataset)]):
            link = base / path.parent.name / (names[-1] + path.suffix)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(path).absolute())
    listed = base / "ImageSets" / "Segmentation" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("\n".join(names) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        photo_seconds(sys.argv[1]).round(2).to_csv(SECONDS, index=False)
    else:
        measure().to_csv(PASSES, index=False)
