"""The house itself: pins, quoted tables, notebooks as committed."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

import eclip_lib
from eclip_lib import files

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def plain(name):
    return re.sub("[-_.]+", "-", re.sub(r"[[<>=].*", "", name)).lower()


def pins(name="constraints.txt"):
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / name).read_text(), re.MULTILINE)
    return {plain(package): version for package, version in found}


def test_the_hashed_lock_is_the_same_installation():
    """What tests and notebooks need, in the versions of constraints.txt, and a hash for every file."""
    lock, extras = pins("requirements.lock"), PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + [
        name for extra in ("eval", "train", "notebooks", "test") for name in extras[extra]
    ]
    assert {plain(name) for name in wanted} - {"eclip-lib"} <= set(lock)
    assert {name: lock[name] for name in set(lock) & set(pins())}.items() <= pins().items()
    blocks = re.split(r"\n(?=[\w.-]+==)", (ROOT / "requirements.lock").read_text().partition("==")[2])
    assert len(blocks) == len(lock) and all("--hash=sha256:" in block for block in blocks)


def test_every_package_is_pinned_and_has_a_floor_and_tests_install_them_all():
    extras = PROJECT["optional-dependencies"]
    core = PROJECT["dependencies"]
    users = [name for extra in ("eval", "train", "notebooks", "cluster") for name in extras[extra]]
    for requirement in [*core, *users, *extras["book"]]:
        assert ">=" in requirement or requirement.startswith("eclip-lib["), requirement
    wanted = {plain(name) for extra in set(extras) - {"app"} for name in core + extras[extra]} - {"eclip-lib"}
    assert wanted <= set(pins())
    assert (
        extras["test"][0] == "eclip-lib[notebooks,cluster]"
        and extras["notebooks"][0] == "eclip-lib[eval,train]"
    )


def test_the_core_imports_without_the_extras():
    """What runs notebooks needs what runs notebooks, and nothing else needs an extra to be imported."""
    extras = "pycocotools sklearn scipy pytorch_grad_cam torchmetrics braceexpand webdataset ray gradio skimage seaborn"
    notebooks = "papermill nbformat nbconvert ipywidgets IPython ipykernel matplotlib_inline"
    code = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({(extras + " " + notebooks).split()}))
import eclip_lib
for module in pkgutil.walk_packages(eclip_lib.__path__, "eclip_lib."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError:
        print(module.name.removeprefix("eclip_lib."))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lacking = {
        "commands.bench",
        "commands.by_number",
        "commands.forecast",
        "commands.notebooks",
        "commands.passes",
        "commands.promote",
    }
    assert set(done.stdout.split()) <= lacking | {"studies.quickstart"}


def test_a_digest_of_code_needs_no_extra(monkeypatch):
    """`eclip explain` keys its overlays by one, and the core has no grad-cam."""
    known = files.code_digest.__wrapped__("method.py")
    monkeypatch.setattr(files, "DECIDING", (*files.DECIDING, "of-no-such-name"))
    assert files.code_digest.__wrapped__("method.py") != known


def test_the_repositorys_address_stands_in_one_place():
    """`make address` writes pyproject's wherever a page or notebook needs it in full."""
    (owner,) = re.findall(r"github.com/([\w-]+/[\w-]+)$", PROJECT["urls"]["Repository"])
    for path in [ROOT / "README.md", *NOTEBOOKS]:
        found = re.findall(
            r"(?:github\.com|github|gh)/([\w-]+/[\w-]+?)(?=/(?:blob|main)| |\\?\")", path.read_text()
        )
        assert len(found) >= 3 and set(found) == {owner}, path.name


def test_a_notebook_installs_the_package_where_it_is_not_and_opens_elsewhere_by_its_badges():
    for path in NOTEBOOKS:
        first, install = nbformat.read(path, as_version=4).cells[:2]
        assert (
            f"/blob/main/notebooks/{path.name})" in first.source
            and f"labpath=notebooks%2F{path.name})" in first.source
        )
        assert 'find_spec("eclip_lib") is None' in install.source and "constraints" not in install.source


def test_only_pythons_that_were_tried_are_claimed():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    versions = workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={versions[0]},<3.{int(versions[-1][2:]) + 1}"


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


def test_what_a_notebook_takes_from_the_package_can_be_copied_into_a_script():
    """Names of `eclip.` are the package's own, not modules that another import happened to load."""
    for path in NOTEBOOKS:
        code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        names = {*re.findall(r"\beclip\.(\w+)", "\n".join(code))}
        assert names <= {*eclip_lib.__all__}, path.name


def test_a_notebook_has_its_step_by_hand_and_an_opening_that_is_folded():
    for path in NOTEBOOKS:
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        hand = [c.source.splitlines() for c in cells if "allclose" in c.source.splitlines()[-1]]
        assert path.stem == "00_quickstart" or min(map(len, hand)) <= 12, path.name
        folded = [c.metadata.get("jupyter", {}).get("source_hidden", False) for c in cells]
        assert folded == [True, True] + [False] * (len(cells) - 2), path.name


def test_every_bundled_checkpoint_has_a_card_that_fits():
    import hashlib

    checkpoints = sorted((ROOT / "data" / "demo").glob("*.safetensors"))
    bundled = [path for path in (ROOT / "data" / "demo").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in bundled if "__pycache__" not in path.parts) < 40e6
    for path in (p for p in checkpoints if not p.stem.endswith(".pair")):
        card = json.loads(path.with_suffix(".json").read_text())
        assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
