"""README keeps its word: measured blocks match the tables, its code runs, its links and commands exist."""

import re
import subprocess
import sys

import pandas as pd

import eclip_lib as eclip
from eclip_lib import data, explainers, readme
from eclip_lib.profiles import REPOSITORY

TEXT = (REPOSITORY / "README.md").read_text()


def test_the_measured_blocks_are_those_of_the_committed_tables():
    assert readme.with_results(TEXT, REPOSITORY / "results" / "demo" / "tables") == TEXT
    assert all(f"| {v} |" in TEXT for v in pd.read_csv(REPOSITORY / "results" / "demo" / "tables" / "claims.csv")["verdict"])


def test_the_hours_of_the_paper_profile_are_the_dry_runs():
    hours = data.plan(eclip.load_profile("paper", device="cpu"))[0]["GPU hours"].sum()
    assert f"about {hours:.0f} GPU hours" in TEXT


def test_a_row_is_what_its_command_measures(monkeypatch, capsys):
    from test_bad_input import run

    row = next(line for line in TEXT.splitlines() if line.startswith("| scenes |") and "| RCLIP |" in line)
    command = re.search(r"`(rclip [^`]*)`", row)[1]
    assert run(monkeypatch, "evaluate", *command.split()) is None
    printed = re.search(r"mIoU (\S+) .*mSC (-?[\d.]+),", capsys.readouterr().out)
    cells = [cell.strip() for cell in row.split("|")]
    assert [f"{float(value):.1f}" for value in printed.groups()] == [cells[5].split()[0], cells[6].split()[0]]


def test_adding_a_network_a_dataset_and_a_method_as_it_says(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", TEXT[TEXT.index("## Add your own") :], flags=re.S)
    assert len(blocks) == 3 and all(len(block.strip().splitlines()) < 20 for block in blocks)
    code = (
        "\n".join(blocks)
        + "\nassert len(rows) == 4 and rows['iou'].between(0, 1).all() and clip.projection.image.out_features == 64"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]


def test_links_methods_and_modules_exist():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (REPOSITORY / link).exists(), link
    listed = re.findall(r"^\| `(\w+)` \|", TEXT, flags=re.M)
    assert set(listed) == set(explainers.REGISTRY) and eclip.explainer
    for module in re.findall(r"`(\w+\.py)`", TEXT):
        assert (REPOSITORY / "eclip_lib" / module).exists(), module
    for table in re.findall(r"`(\w+\.csv)`", TEXT):
        assert (REPOSITORY / "results" / "demo" / "tables" / table).exists(), table
