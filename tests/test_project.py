"""The house itself: pins, quoted tables, notebooks as committed."""

import json
import re
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def plain(name):
    return re.sub("[-_.]+", "-", re.sub(r"\[.*", "", name)).lower()


def pins():
    lines = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    return {plain(name): version.strip() for name, version in lines}


def test_conda_and_pip_name_the_same_packages_and_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {plain(name) for name in project["dependencies"] + project["optional-dependencies"]["test"]}
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    listed = dict(line.split("==") for line in next(d["pip"] for d in environment if isinstance(d, dict)))
    assert {plain(name) for name in listed} == wanted
    assert {plain(name): version for name, version in listed.items()} == {
        name: pins()[name] for name in wanted
    }


def test_the_quoted_tables_are_consistent_but_for_the_known_errata():
    off = set()
    for name in ("table_1", "table_2"):
        table = pd.read_csv(ROOT / "results" / "reported" / f"{name}.csv")
        for measure in ("mIoU", "mSC"):
            mean = table[[f"{d}_{measure}" for d in ("voc2012", "coco2017", "imagenet-s50")]].mean(axis=1)
            for k in table.index[(mean - table[f"average_{measure}"]).abs() > 0.011]:
                off.add((name, table.network[k], table.method[k], measure))
    assert off == {("table_2", "ViT-B/16", "RCLIP", "mIoU")}
    sums = pd.read_csv(ROOT / "results" / "reported" / "table_5.csv").drop(columns="size").sum(axis=1)
    assert ((sums - 512).abs() < 0.2).all()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_committed_notebook_is_executed_small_and_clean(path):
    text, book = path.read_text(), nbformat.read(path, as_version=4)
    assert path.stat().st_size < 1_000_000
    code = [c for c in book.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert "%|" not in text  # no progress bar
    assert not re.search(r"Warning|(?<![\w.])/(?:home|root|work|tmp|Users)/", text)
    assert sum(c.metadata.get("tags") == ["parameters"] for c in code) == 1
    assert set(book.metadata) == {"kernelspec", "language_info"}


def test_every_bundled_checkpoint_has_a_card_that_fits():
    import hashlib

    checkpoints = sorted((ROOT / "data" / "demo").glob("*.safetensors"))
    assert sum(p.stat().st_size for p in checkpoints) < 40e6
    for path in (p for p in checkpoints if not p.stem.endswith(".pair")):
        card = json.loads(path.with_suffix(".json").read_text())
        assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
