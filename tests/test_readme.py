"""README keeps its word: its command measures what a table says, its code runs, its links exist."""

import re
import subprocess
import sys

import pandas as pd
from test_bad_input import run

import eclip_lib as eclip
from eclip_lib import explainers
from eclip_lib.commands import forecast
from eclip_lib.files import REPOSITORY

TEXT = (REPOSITORY / "README.md").read_text()
TABLES = REPOSITORY / "results" / "demo" / "tables"


def test_the_hours_of_the_paper_profile_are_the_dry_runs():
    for profile in ("paper", "paper-quick"):
        run = eclip.load_profile(profile, device="cpu", root="/nowhere")
        hours = forecast.gpu_hours(forecast.plan(run))["GPU hours"].iloc[-1]
        assert f"about {hours:.0f} GPU hours" in TEXT, profile


def test_its_command_measures_a_row_of_the_tables(monkeypatch, capsys):
    command = re.search(r"eclip (evaluate (\S+) --networks (\S+) --datasets (\S+))\n", TEXT)
    assert run(monkeypatch, *command[1].split()) is None
    row = (
        pd.read_csv(TABLES / "table_1.csv")
        .set_index(["method", "network", "dataset"])
        .loc[command.groups()[1:]]
    )
    assert (
        f"mIoU {row['mIoU']:.2f} (floor {row['floor']:.2f}) mSC {row['mSC']:.2f}," in capsys.readouterr().out
    )


def test_adding_a_network_a_dataset_and_a_method_as_it_says(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", TEXT[TEXT.index("## Add your own") :], flags=re.S)
    assert len(blocks) == 3 and all(len(block.strip().splitlines()) < 20 for block in blocks)
    code = "\n".join([*blocks, "assert len(rows) == 4 and rows['iou'].between(0, 1).all()"])
    code += "\nassert clip.projection.image.out_features == 64"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]


def test_links_methods_and_modules_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert "results/demo/report.md" in links
    for link in links:
        assert (REPOSITORY / link).exists(), link
    listed = re.findall(r"^\| `(\w+)` \|", TEXT, flags=re.M)
    assert set(listed) == set(explainers.REGISTRY) and eclip.explainer
    for module in re.findall(r"`([\w/]+\.(?:py|yaml))`", TEXT):
        assert any((folder / module).exists() for folder in (REPOSITORY / "eclip_lib", REPOSITORY)), module
    for table in re.findall(r"`(\w+\.csv)`", TEXT):
        assert any((folder / table).exists() for folder in (TABLES, TABLES.parents[1] / "benchmarks")), table
