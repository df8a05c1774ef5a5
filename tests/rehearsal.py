"""The paper profile, rehearsed on a pretend installation (`installation`): everything that README tells a
researcher, and each route to the same numbers.

    python tests/rehearsal.py [--tiny] [FOLDER]        make rehearse

`--tiny`: small networks of the same two architectures under the same names, whose open_clip configurations lie
beside their weights; `--quick`: the routes of `make test`."""

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from installation import DATASETS, IMAGES, NETWORKS, PAIRS, build
from safetensors.torch import load_file

from eclip_lib.files import REPOSITORY

BIN, NOTEBOOKS = Path(sys.executable).parent, REPOSITORY / "notebooks"
FOREIGN = re.compile(r"\b(demo|scenes?|rendered|mini)\b|not\s+comparable", re.IGNORECASE)  # words of the demo
OF_THE_DEMO = {"views", "clip_seeds", "shift_controlled"}  # tables that only rendered scenes can fill


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
    """Two pairs of the same weights, on average: where a gradient is 0 but for rounding, AdamW steps anyhow."""
    ours, theirs = load_file(ours), load_file(theirs)
    apart = {name: float((ours[name] - tensor).abs().mean()) for name, tensor in theirs.items()}
    assert max(apart.values()) <= tolerance, apart


class Rehearsal:
    """An installation under `place`, emptied first, and the routes through it; `seconds` of each step."""

    def __init__(self, place, tiny=False):
        logging.disable()  # open_clip says that random weights are random
        self.place, self.tiny, self.seconds = Path(place).resolve(), tiny, {}
        shutil.rmtree(self.place, ignore_errors=True)
        self.profile, settings = self.timed("build", build, self.place, tiny)
        self.masks, self.training = settings["masks"], settings["training"]
        self.data, self.whole = f"{self.place}/data", self.place / "whole"
        self.given = {"profile": self.profile, "root": self.data, "pairs": f"web:{self.data}/gcc3m/*.tar"}
        self.given |= {"device": "cpu", "workers": 1, "batch_size": 4, "limit": IMAGES - 1}

    def timed(self, name, call, *arguments):
        begin = time.perf_counter()
        found = call(*arguments)
        self.seconds[name] = round(time.perf_counter() - begin, 1)
        return found

    def call(self, *words, **given):
        """A program of this environment, its options by name -> what it printed. Raises RuntimeError."""
        options = [word for name, v in given.items() for word in (f"--{name.replace('_', '-')}", str(v))]
        environment = os.environ | {"ECLIP_WEIGHTS": str(self.place / "weights"), "TQDM_DISABLE": "1"}
        command = [str(BIN / words[0]), *map(str, words[1:]), *options]
        done = subprocess.run(command, cwd=self.place, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    # ------------------------------------------------------------------ the whole profile

    def announced(self):
        """`eclip data status` and the dry run name everything that the run needs, and find it."""
        status = self.call("eclip", "data", "status", **self.given)
        printed = self.call("eclip", "reproduce", "--dry-run", **self.given)
        for text in (status, printed):
            assert " missing " not in text and all(network in text for network in NETWORKS), text
        assert all(name in status for name in (*DATASETS, "RN50.pt", "ViT-B-32.pt")), status

    def complete(self):
        """Every notebook runs, writes its tables, and says nothing of the demo's world."""
        self.call("eclip", "reproduce", out=self.whole, **self.given)
        made = {path.stem for path in (self.whole / "tables").glob("*.csv")}
        named = (NOTEBOOKS.parent / "results" / "demo" / "tables").glob("*.csv")
        wanted = {path.stem for path in named} - OF_THE_DEMO
        assert not wanted - made, f"tables that are missing: {sorted(wanted - made)}"
        said = {path.name: outputs(path) for path in (self.whole / "notebooks").glob("*.ipynb")}
        said |= {path.name: path.read_text() for path in (self.whole / "tables").glob("*.csv")}
        said["report.md"] = (self.whole / "report.md").read_text()
        found = {name: sorted({match[0] for match in FOREIGN.finditer(text)}) for name, text in said.items()}
        assert not any(found.values()), f"words of the demo: { {n: w for n, w in found.items() if w} }"

    # ------------------------------------------------------------------ single parts, which give the same

    def networks_apart(self):
        """A network at a time, side by side into one folder, then joined: the tables of the whole run."""
        apart = self.place / "apart"

        def part(network):
            for path in sorted(NOTEBOOKS.glob("0[56]*.ipynb" if self.tiny else "0[2-6]*.ipynb")):
                self.papermill(path, network, apart, network)

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(part, NETWORKS))
        self.papermill(NOTEBOOKS / "06_benchmarks.ipynb", ",".join(NETWORKS), apart, "all")
        for path in sorted((self.whole / "tables").glob("*.csv")):
            if path.stem in ("table_1", "table_2", "table_2_gains", "later_methods", "figure_11", "table_4"):
                same(pd.read_csv(path), pd.read_csv(apart / "tables" / path.name), path.stem)

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
        network, _, checkpoint = self.masks["DINO"].partition("=")
        masked = {"mask": network} | ({"mask_checkpoint": checkpoint} if checkpoint else {})
        pair = self.place / f"{name}.safetensors"
        words = [*launcher, "train", self.given["pairs"], pair]
        recipe = {name: self.training[name] for name in ("views", "epochs", "batch_size", "lr")}
        model = {"network": "ViT-B-32", "pretrained": "openai", "cache": self.place / name}
        self.call(*words, **model, **masked, **recipe, **given)
        return pair

    @property
    def pair(self):
        return self.whole / "pairs" / "ViT-B-32-ECLIP.safetensors"

    def trained_alone(self):
        """`eclip train` gives notebook 05's pair."""
        close(self.train("alone", "eclip"), self.pair, 0)

    def trained_by_ranks(self):
        """Under torchrun two ranks give it within rounding."""
        ranks = ("torchrun", "--no-python", "--nproc-per-node", 2, BIN / "eclip")
        close(self.train("ranks", *ranks, workers=0), self.pair, 1e-6)

    def evaluated(self, **given):
        """`eclip evaluate` with one's own pair gives the numbers of Table 1."""
        table = pd.read_csv(self.whole / "tables" / "table_1.csv")
        words = self.given | {"networks": "ViT-B-32", "projection": self.pair}
        lines = self.call("eclip", "evaluate", "eclip", **words, **given).splitlines()
        ours = table[(table["method"] == "eclip") & (table["network"] == "ViT-B-32")].set_index("dataset")
        for name, line in zip(DATASETS, lines, strict=True):
            numbers = {measure: float(value) for measure, value in re.findall(r"(mIoU|mSC) (-?[\d.]+)", line)}
            assert numbers == pytest.approx(dict(ours.loc[name, ["mIoU", "mSC"]]), abs=0.006), line

    def on_ray(self):
        self.evaluated(ray=2, out=self.place / "ray")

    def promoted(self):
        """The run's results in a scratch folder, marked as those of a part."""
        results = self.place / "results"
        self.call("eclip", "promote", "--partial", profile=self.profile, out=self.whole, into=results)
        tables = [{path.name for path in (place / "tables").glob("*.csv")} for place in (results, self.whole)]
        assert tables[0] == tables[1] and (results / "report.md").exists()
        assert json.loads((results / "run.json").read_text())["partial"]

    def costs(self):
        """costs.json: seconds of every route and notebook, and for each cache bytes of a pair."""
        parts = json.loads((self.whole / "run.json").read_text())["notebooks"]
        about = {"tiny": self.tiny, "networks": NETWORKS, "pairs": PAIRS, "caches": []}
        about |= {"images": dict.fromkeys(DATASETS, IMAGES - 1), "seconds": self.seconds}
        about |= {"notebooks": {name: part["seconds"] for name, part in parts.items()}}
        for path in (self.whole / "cache").glob("*/manifest.json"):
            cache, shards = json.loads(path.read_text()), [*path.parent.glob("*.safetensors")]
            if not shards:  # a view that has gone
                continue
            pairs = sum(json.loads(s.with_suffix(".json").read_text())["pairs"] for s in shards)
            line = {name: cache[name] for name in ("network", "columns", "views")}
            about["caches"].append(line | {"bytes a pair": sum(s.stat().st_size for s in shards) / pairs})
        (self.place / "costs.json").write_text(json.dumps(about, indent=1))


def rehearse(place, tiny=False, routes=(), at_once=1):
    """Routes (all), first the whole run, so many at once; what failed is told at the end. Raises
    AssertionError."""
    rehearsal, failed = Rehearsal(place, tiny), []

    def walk(name):
        try:
            rehearsal.timed(name, getattr(rehearsal, name))
        except Exception as error:
            failed.append(f"{name}: {error}")
        print(f"{name}: {rehearsal.seconds.get(name, 'failed')}", flush=True)

    for names in (ROUTES[:2], ROUTES[2:]):  # the others read what the whole run made
        with ThreadPoolExecutor(at_once) as threads:
            list(threads.map(walk, [name for name in names if name in (routes or ROUTES)]))
    rehearsal.costs()
    if failed:
        raise AssertionError("\n\n".join(failed))


ROUTES = [
    "announced",
    "complete",
    "promoted",
    "networks_apart",
    "trained_alone",
    "trained_by_ranks",
    "evaluated",
]
ROUTES += ["on_ray", "one_alone"]
QUICK = [
    "announced",
    "complete",
    "promoted",
    "trained_by_ranks",
    "evaluated",
    "one_alone",
]  # of `make test`, two at once


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=REPOSITORY / "runs" / "rehearsal")
    parser.add_argument("--tiny", action="store_true", help="small networks of the same two architectures")
    parser.add_argument("--quick", action="store_true", help="the routes of the test suite")
    parser.add_argument("--only", nargs="*", default=(), choices=ROUTES, help="these routes alone")
    given = parser.parse_args()
    quick = {"routes": QUICK, "at_once": 2} if given.quick else {"routes": given.only}
    rehearse(given.folder, given.tiny, **quick)
