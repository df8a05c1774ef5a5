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
import torch
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
    """Two pairs of the same weights."""
    ours, theirs = load_file(ours), load_file(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=tolerance, rtol=0)


class Rehearsal:
    """An installation under `place`, emptied first, and the routes through it; `seconds` of each step."""

    def __init__(self, place, tiny=False):
        logging.disable()  # open_clip says that random weights are random
        self.place, self.tiny, self.seconds = Path(place).resolve(), tiny, {}
        shutil.rmtree(self.place, ignore_errors=True)
        self.profile, self.masks = self.timed("build", build, self.place, tiny)
        self.pairs = f"web:{self.place}/data/gcc3m/*.tar"
        self.given = {
            "networks": ",".join(NETWORKS),
            "root": f"{self.place}/data",
            "device": "cpu",
            "workers": 1,
        }
        self.given |= {"batch_size": 4, "limit": IMAGES - 1}
        self.whole = self.place / "whole"

    def timed(self, name, call, *arguments):
        begin = time.perf_counter()
        found = call(*arguments)
        self.seconds[name] = round(time.perf_counter() - begin, 1)
        return found

    def call(self, *words, **given):
        """A program of this environment, its options by name -> what it printed. Raises RuntimeError."""
        options = [
            word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        environment = os.environ | {"ECLIP_WEIGHTS": str(self.place / "weights"), "TQDM_DISABLE": "1"}
        command = [str(BIN / words[0]), *map(str, words[1:]), *options]
        done = subprocess.run(command, cwd=self.place, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    def reproduce(self, out, **given):
        return self.call(
            "eclip", "reproduce", profile=self.profile, **self.given, pairs=self.pairs, out=out, **given
        )

    # ------------------------------------------------------------------ the whole profile

    def announced(self):
        """`eclip data status` and the dry run name everything that the run needs, and find it (in part: few
        pictures, and files of another size)."""
        status = self.call("eclip", "data", "status", profile=self.profile, root=self.given["root"])
        printed = self.call(
            "eclip", "reproduce", "--dry-run", profile=self.profile, **self.given, pairs=self.pairs
        )
        assert all(name in status for name in (*DATASETS, "RN50.pt", "ViT-B-32.pt")), status
        assert " missing " not in printed and all(network in printed for network in NETWORKS), printed

    def complete(self):
        """Every notebook runs, writes its tables, and says nothing of the demo's world."""
        self.reproduce(self.whole)
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

    def papermill(self, path, networks, out, name):
        parameters = {
            **self.given,
            "profile": self.profile,
            "networks": networks,
            "pairs": self.pairs,
            "out": out,
        }
        words = [word for about in parameters.items() for word in ("-p", *map(str, about))]
        self.call("papermill", path, out.parent / f"{path.stem}-{name}.ipynb", *words)

    def train(self, name, *launcher, **given):
        """`eclip train` of ViT-B-32 -> its pair's file."""
        network, _, checkpoint = self.masks["DINO"].partition("=")
        masked = {"mask": network} | ({"mask_checkpoint": checkpoint} if checkpoint else {})
        pair = self.place / f"{name}.safetensors"
        words = [*launcher, "train", self.pairs, pair]
        self.call(*words, network="ViT-B-32", pretrained="openai", cache=self.place / name, **masked, **given)
        return pair

    def trained_alone(self):
        """`eclip train` gives notebook 05's pair; under torchrun two ranks give it within rounding."""
        notebook = self.whole / "pairs" / "ViT-B-32-ECLIP.safetensors"
        close(self.train("alone", "eclip"), notebook, 1e-6)
        ranks = ("torchrun", "--no-python", "--nproc-per-node", 2, BIN / "eclip")
        close(self.train("ranks", *ranks, workers=0), notebook, 1e-4)

    def evaluated(self, **given):
        """`eclip evaluate` with one's own pair gives the numbers of Table 1."""
        table = pd.read_csv(self.whole / "tables" / "table_1.csv")
        words = {
            "profile": self.profile,
            **self.given,
            "networks": "ViT-B-32",
            "projection": self.place / "alone.safetensors",
        }
        words = {name: value for name, value in words.items() if name not in ("workers", "batch_size")}
        lines = self.call("eclip", "evaluate", "eclip", **words, **given).splitlines()
        ours = table[(table["method"] == "eclip") & (table["network"] == "ViT-B-32")].set_index("dataset")
        for name, line in zip(DATASETS, lines, strict=True):
            assert (
                f"mIoU {ours.loc[name, 'mIoU']:.2f} " in line and f"mSC {ours.loc[name, 'mSC']:.2f}," in line
            ), line

    def on_ray(self):
        self.evaluated(ray=2, out=self.place / "ray")

    def promoted(self):
        """The run's results in a scratch folder, marked as a part."""
        results = self.place / "results"
        with pytest.raises(RuntimeError, match="no whole run of profile"):
            self.call("eclip", "promote", profile=self.profile, out=self.whole, into=results)
        self.call("eclip", "promote", "--partial", profile=self.profile, out=self.whole, into=results)
        assert {path.name for path in (results / "tables").iterdir()} == {
            path.name for path in (self.whole / "tables").glob("*.csv")
        }
        assert json.loads((results / "run.json").read_text())["partial"] and (results / "report.md").exists()

    def costs(self):
        """Seconds of every step and notebook, bytes of a cached pair by network -> costs.json."""
        notebooks = {
            p.stem: json.loads(p.read_text()).get("seconds")
            for p in (self.whole / "notebooks").glob("*.json")
        }
        caches = {}
        for manifest in (self.whole / "cache").glob("*/manifest.json"):
            about, shards = json.loads(manifest.read_text()), [*manifest.parent.glob("*.safetensors")]
            notes = [json.loads(shard.with_suffix(".json").read_text()) for shard in shards]
            stored = sum(shard.stat().st_size for shard in shards)
            pairs = sum(note["pairs"] for note in notes)
            caches[f"{about['network']} {manifest.parent.name}"] = {
                "columns": about["columns"],
                "bytes a pair": stored / pairs,
            }
        about = {
            "tiny": self.tiny,
            "networks": NETWORKS,
            "images": IMAGES - 1,
            "datasets": DATASETS,
            "pairs": PAIRS,
        }
        about |= {"seconds": self.seconds, "notebooks": notebooks, "caches": caches}
        (self.place / "costs.json").write_text(json.dumps(about, indent=1))


def rehearse(place, tiny=False, only=()):
    """Every route (or those named) in order; all failures are told at the end."""
    rehearsal, failed = Rehearsal(place, tiny), []
    for name in only or ROUTES:
        try:
            rehearsal.timed(name, getattr(rehearsal, name))
        except Exception as error:
            failed.append(f"{name}: {error}")
        print(f"{name}: {rehearsal.seconds.get(name, 'failed')}", flush=True)
    rehearsal.costs()
    if failed:
        raise AssertionError("\n\n".join(failed))


ROUTES = ["announced", "complete", "promoted", "networks_apart", "trained_alone", "evaluated", "on_ray"]
QUICK = ["announced", "complete", "promoted", "trained_alone", "evaluated"]  # of `make test`


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=REPOSITORY / "runs" / "rehearsal")
    parser.add_argument("--tiny", action="store_true", help="small networks of the same two architectures")
    parser.add_argument("--quick", action="store_true", help="the routes of the test suite")
    parser.add_argument("--only", nargs="*", default=(), choices=ROUTES, help="these routes alone")
    given = parser.parse_args()
    rehearse(given.folder, given.tiny, QUICK if given.quick else given.only)
