"""The paper profile, rehearsed on a pretend installation (`installation`): everything that README tells a
researcher, and each route to the same numbers.

    python tests/rehearsal.py [--tiny] [FOLDER]        make rehearse

`--tiny`: small networks of the same two architectures under the same names, whose open_clip configurations
lie beside their weights; `--quick`: the routes of the test suite."""

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import yaml
from installation import DATASETS, IMAGES, NETWORKS, build
from safetensors.torch import load_file

from eclip_lib.files import REPOSITORY

BIN, NOTEBOOKS = Path(sys.executable).parent, REPOSITORY / "notebooks"
KEYS = ["dataset", "network", "method"]
# words of the demo
FOREIGN = re.compile(r"\b(?:demo|scenes?|rendered|mini)\b|not\s+comparable", re.IGNORECASE)
# tables that only rendered scenes can fill, a coarse and a fine ViT, or trainings with other pools
NOT_HERE = {"views", "clip_seeds", "shift_controlled", "finer_grid", "causes_pooling", "causes_pooling_gains"}


def outputs(path):
    """What the cells of an executed notebook printed and showed, as text."""
    cells = json.loads(path.read_text())["cells"]
    shown = [output for cell in cells for output in cell.get("outputs", ())]
    return "".join("".join(o.get("text", o.get("data", {}).get("text/plain", ""))) for o in shown)


def same(ours, theirs, name):
    """Two tables with the same rows, in whatever order, and the same numbers."""
    words = [column for column in theirs if not pd.api.types.is_numeric_dtype(theirs[column])]
    ours, theirs = (table.sort_values(words, ignore_index=True) for table in (ours, theirs))
    pd.testing.assert_frame_equal(ours, theirs, atol=2e-4, rtol=1e-5, obj=name)


def close(ours, theirs, tolerance):
    """Two pairs of the same weights, on average: where a gradient is but rounding, AdamW steps anyhow."""
    ours, theirs = load_file(ours), load_file(theirs)
    apart = {name: float((ours[name] - tensor).abs().mean()) for name, tensor in theirs.items()}
    assert max(apart.values()) <= tolerance, apart


class Rehearsal:
    """An installation under `place`, emptied first unless `again`, and the routes through it, timed."""

    def __init__(self, place, tiny=False, again=False, device="cpu"):
        logging.disable()  # open_clip says that random weights are random
        self.place, self.tiny, self.seconds = Path(place).resolve(), tiny, {}
        self.profile = self.place / "paper-of-two.yaml"
        if not (again and self.profile.exists()):
            shutil.rmtree(self.place, ignore_errors=True)
            self.timed("build", self.build)
        self.settings = yaml.safe_load(self.profile.read_text())
        data, self.whole = f"{self.place}/data", self.place / "whole"
        self.pair = self.whole / "pairs" / "ViT-B-32-ECLIP.safetensors"
        self.given = {"profile": self.profile, "root": data, "pairs": f"web:{data}/gcc3m/*.tar"}
        self.given |= {"device": device, "workers": 1, "batch_size": 4, "limit": IMAGES - 1}

    def build(self):
        with ProcessPoolExecutor(1) as pool:  # its memory goes with it
            pool.submit(build, self.profile, self.tiny).result()

    def timed(self, name, call):
        begin = os.times()
        call()
        took = [after - before for after, before in zip(os.times(), begin, strict=True)]
        self.seconds[name] = {"seconds": round(took[4], 1), "of a core": round(sum(took[:4]), 1)}

    def started(self, *words, **given):
        """A program of this environment, its options by name -> `Popen`."""
        options = [word for name, v in given.items() for word in (f"--{name.replace('_', '-')}", str(v))]
        environment = os.environ | {"ECLIP_WEIGHTS": str(self.place / "weights"), "TQDM_DISABLE": "1"}
        command = [str(BIN / words[0]), *map(str, words[1:]), *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.place, env=environment, stdout=pipe, stderr=pipe, text=True)

    def call(self, *words, **given):
        """`started` and ended -> what it printed. Raises RuntimeError."""
        process = self.started(*words, **given)
        printed, said = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{' '.join(process.args)}: {(printed + said)[-3000:]}")
        return printed

    # ------------------------------------------------------------------ the whole profile

    def announced(self):
        """`eclip data status` and the dry run name everything that the run needs, and find it."""
        named = {"data status": (*DATASETS, "RN50.pt", "ViT-B-32.pt"), "reproduce --dry-run": NETWORKS}
        for words, names in named.items():
            text = self.call("eclip", *words.split(), **self.given)
            assert " missing " not in text and all(name in text for name in names), text

    def complete(self):
        """Every notebook runs, writes its tables, and says nothing of the demo's world."""
        self.call("eclip", "reproduce", out=self.whole, **self.given)
        tables = list((self.whole / "tables").glob("*.csv"))
        wanted = {path.stem for path in (REPOSITORY / "results" / "demo" / "tables").glob("*.csv")}
        assert wanted - NOT_HERE <= {path.stem for path in tables}, tables
        small = self.table("table_4")["method"].str.startswith("CLIP from random weights")
        assert small.sum() == len(DATASETS)
        said = {path.name: path.read_text() for path in (*tables, self.whole / "report.md")}
        said |= {path.name: outputs(path) for path in (self.whole / "notebooks").glob("*.ipynb")}
        found = {name: sorted(set(FOREIGN.findall(text))) for name, text in said.items()}
        assert not any(found.values()), f"words of the demo: { {n: w for n, w in found.items() if w} }"

    def table(self, name, run="whole"):
        return pd.read_csv(self.place / run / "tables" / f"{name}.csv")

    # ------------------------------------------------------------------ single parts, which give the same

    def photos(self):
        """What `make photos` does after its download, killed in the middle: the numbers of the whole run, and
        the paper's beside them."""
        given = self.given | {"profile": "photos", "out": self.place / "photos"}
        del given["pairs"]
        broken = self.started("eclip", "reproduce", **given)
        while broken.poll() is None and not list(self.place.glob("photos/rows/*/*/*.csv")):
            time.sleep(0.1)
        broken.kill(), broken.communicate()
        self.call("eclip", "reproduce", **given)
        for name in ("table_1", "table_2", "later_methods"):
            ours = self.table(name, "photos").query("dataset != 'average'")
            same(ours, self.table(name).merge(ours[KEYS]), f"photos, {name}")
        printed = self.call("python", "-m", "eclip_lib.studies.quoted", self.place / "photos")
        for word in ("mIoU (difference)", "RCLIP", "Grad-CAM", "Bi-Model"):
            assert word in printed, printed

    def networks_apart(self):
        """A network at a time, side by side into one folder, then joined: the tables of the whole run."""
        apart = self.place / "apart"

        def part(network):
            for path in sorted(NOTEBOOKS.glob("0[56]*.ipynb" if self.tiny else "0[2-6]*.ipynb")):
                self.papermill(path, network, apart, network)

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(part, NETWORKS))
        self.papermill(NOTEBOOKS / "06_benchmarks.ipynb", ",".join(NETWORKS), apart, "all")
        for name in ("table_1", "table_2", "table_2_gains", "later_methods", "figure_11", "table_4"):
            same(self.table(name, "apart"), self.table(name), name)

    def one_alone(self):
        """A ResNet on a dataset with one class an image: any table may be empty, and no step fails."""
        for path in sorted(NOTEBOOKS.glob("06*.ipynb" if self.tiny else "0[0-7]*.ipynb")):
            self.papermill(path, "RN50", self.whole, "alone", datasets="imagenet-s50")

    def papermill(self, path, networks, out, name, **given):
        parameters = self.given | {"networks": networks, "out": out} | given
        words = [word for about in parameters.items() for word in ("-p", *map(str, about))]
        self.call("papermill", path, self.place / f"{path.stem}-{name}.ipynb", *words)

    def train(self, name, *launcher, **given):
        """`eclip train` of ViT-B-32 -> its pair's file."""
        network, _, checkpoint = self.settings["masks"]["DINO"].partition("=")
        masked = {"mask": network} | ({"mask_checkpoint": checkpoint} if checkpoint else {})
        pair = self.place / f"{name}.safetensors"
        words = [*launcher, "train", self.given["pairs"], pair]
        recipe = {name: self.settings["training"][name] for name in ("views", "epochs", "batch_size", "lr")}
        model = {"network": "ViT-B-32", "pretrained": "openai", "device": self.given["device"]}
        self.call(*words, **model, **masked, **recipe, cache=self.place / name, **given)
        return pair

    def trained_alone(self):
        """`eclip train` gives notebook 05's pair."""
        close(self.train("alone", "eclip"), self.pair, 0)

    def trained_by_ranks(self):
        """Under torchrun two ranks give it within rounding."""
        ranks = ("torchrun", "--no-python", "--nproc-per-node", 2, BIN / "eclip")
        close(self.train("ranks", *ranks, workers=0), self.pair, 1e-6)

    def evaluated(self, **given):
        """`eclip evaluate` with one's own pair gives the numbers of Table 1."""
        words = self.given | {"networks": "ViT-B-32", "projection": self.pair}
        lines = self.call("eclip", "evaluate", "eclip", **words, **given).splitlines()
        table = self.table("table_1").set_index(KEYS)
        for name, line in zip(DATASETS, lines, strict=True):
            found = [float(value) for value in re.findall(r"(?:mIoU|mSC) (-?[\d.]+)", line)]
            ours = table.loc[(name, "ViT-B-32", "eclip"), ["mIoU", "mSC"]].tolist()
            assert found == pytest.approx(ours, abs=0.006), line

    def on_ray(self):
        """Two workers give both."""
        self.evaluated(ray=2, out=self.place / "ray")
        close(self.train("by_ray", "eclip", ray=2), self.pair, 1e-6)

    def promoted(self):
        """The run's results in a scratch folder, marked as those of a part."""
        results = self.place / "results"
        self.call("eclip", "promote", "--partial", profile=self.profile, out=self.whole, into=results)
        tables, made = (sorted(os.listdir(place / "tables")) for place in (results, self.whole))
        assert tables == made and (results / "report.md").exists()
        assert json.loads((results / "run.json").read_text())["partial"]

    def costs(self):
        """costs.json: what every route and notebook took."""
        parts = json.loads((self.whole / "run.json").read_text())["notebooks"]
        took = self.seconds | {name: part["seconds"] for name, part in parts.items()}
        (self.place / "costs.json").write_text(json.dumps(took, indent=1))


QUICK = "announced complete promoted evaluated one_alone".split()  # of the test suite
ROUTES = [*QUICK, "photos", "networks_apart", "trained_alone", "trained_by_ranks", "on_ray"]


def rehearse(place, tiny=False, routes=ROUTES, at_once=1, again=False, device="cpu"):
    """Routes, first the whole run, so many at once; what failed is told at the end. Raises AssertionError."""
    rehearsal, failed = Rehearsal(place, tiny, again, device), []

    def walk(name):
        try:
            rehearsal.timed(name, getattr(rehearsal, name))
        except Exception as error:
            failed.append(f"{name}: {error}")
        print(f"{name}: {rehearsal.seconds.get(name, 'failed')}", flush=True)

    for names in (ROUTES[:2], ROUTES[2:]):  # the others read what the whole run made
        with ThreadPoolExecutor(at_once) as threads:
            list(threads.map(walk, filter(routes.__contains__, names)))
    rehearsal.costs()
    if failed:
        raise AssertionError("\n\n".join(failed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=REPOSITORY / "runs" / "rehearsal")
    parser.add_argument("--tiny", action="store_true", help="small networks of the same two architectures")
    parser.add_argument("--quick", action="store_true", help="the routes of the test suite")
    parser.add_argument("--device", default="cpu", help="cuda: for the routes of one process")
    parser.add_argument("--only", nargs="+", choices=ROUTES, help="these routes, on what is there")
    given = parser.parse_args()
    some = {"routes": given.only, "again": True} if given.only else {}
    rehearse(
        given.folder,
        given.tiny,
        device=given.device,
        **({"routes": QUICK, "at_once": 2} if given.quick else some),
    )
