"""What `eclip reproduce --dry-run` counts with: how many forward passes each notebook takes of every image,
and how long the notebooks of `photos` take.

    .venv/bin/python -m eclip_lib.commands.passes             # minutes; writes results/benchmarks/passes.csv
    .venv/bin/python -m eclip_lib.commands.passes FOLDER      # photos.csv, from a few pictures of VOC 2012

A notebook runs on few images and on more: the difference is what grows with a dataset. What it does a fixed
number of times is left out of the passes; of the seconds it stands in a column of its own, and so does what
grows to the first `controls.FEW` images alone."""

import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell
from tqdm.auto import tqdm

from ..datasets import load_dataset
from ..experiment import load_profile
from ..files import REPOSITORY
from .forecast import PASSES, SECONDS
from .notebooks import notebooks, run_notebook

# the demo's coarse and fine ViT, its ResNet (which every further network is taken for) and the masks' ViTs,
# by the first convolution: side of a patch, and whether it has a bias
KINDS = {"coarse": (32, False), "fine": (16, False), "others": (3, False), "masks": (16, True)}
COUNTER = f"""import torch
passes = dict.fromkeys({list(KINDS.values())}, 0)
def count(module, inputs, output):
    if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
        passes[module.kernel_size[0], module.bias is not None] += len(inputs[0])
torch.nn.modules.module.register_module_forward_hook(count);"""
FEW = "from eclip_lib.studies import controls; controls.FEW = {}"  # so many images are enough


def _between(before, path, after, out, parameters):
    """Execute a notebook between two more cells -> the words that the last one prints."""
    book = nbformat.read(path, as_version=4)
    book.cells = [new_code_cell(before), *book.cells, new_code_cell(after)]
    copy = Path(out, path.name)
    nbformat.write(book, copy)
    return run_notebook(copy, None, parameters | {"out": str(out)}).cells[-1].outputs[0].text.split()


def counted(path, out, images):
    """Execute with the counter -> {kind: images through the encoders of this kind}, of `KINDS`."""
    few = {"datasets": "scenes", "limit": images, "batch_size": 4, "pairs": "scenes:300", "trainings": 1}
    few |= {"replicates": {}, "scratch": {}}  # whose passes the plan counts
    found = _between(f"{COUNTER}\n{FEW.format(2)}", path, "print(*passes.values())", out, few)
    return dict(zip(KINDS, map(int, found), strict=True))


def measure(counts=(8, 12)):
    """DataFrame: notebook, and passes of every image through each kind of encoder."""
    found = []
    for images in counts:
        with tempfile.TemporaryDirectory() as out:  # one for all notebooks: 03 and 05 find the cache of 02
            every = tqdm(notebooks(), desc=f"counting, {images} images", unit="notebook")
            found.append(pd.DataFrame({path.stem: counted(path, out, images) for path in every}).T)
    return ((found[1] - found[0]) / (counts[1] - counts[0])).rename_axis("notebook").reset_index()


def photo_seconds(root, counts=(4, 16)):
    """Seconds of one core of the notebooks of `photos` at random weights -> DataFrame: notebook, `seconds`
    whatever the number of pictures, `seconds_image` for each, and `seconds_few` for each of the first
    `controls.FEW`. root: of a few of VOC's pictures, which are repeated."""
    run, lines = load_profile("photos"), []
    dataset, (low, high) = load_dataset("voc2012", root), counts
    for path in tqdm(notebooks(run), desc="timing", unit="notebook"):
        base, more = (_seconds(path, dataset, count, low) for count in counts)
        capped = "controls" in path.read_text()
        both = _seconds(path, dataset, high, high) if capped else more
        each, few = (max(0, grown) / (high - low) for grown in (more - base, both - more))
        fixed = max(0, base - low * (each + few))
        lines.append({"notebook": path.stem, "seconds": fixed, "seconds_image": each, "seconds_few": few})
    return pd.DataFrame(lines)


def _seconds(path, dataset, count, few):
    """Seconds of one core of a notebook on so many pictures."""
    with tempfile.TemporaryDirectory() as out:
        _repeat(dataset, Path(out, "voc"), count)
        shutil.copytree(REPOSITORY / "results" / "demo" / "tables", Path(out, "tables"))  # for 07 to judge
        given = {"profile": "photos", "root": f"{out}/voc", "pretrained": "None", "workers": 0}
        before = f"import torch; torch.set_num_threads(1); {FEW.format(few)}"
        return float(_between(before, path, "import time; print(time.process_time())", out, given)[0])


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
