"""README and docs keep their word: their command measures what a table says, their code runs, their links
exist."""

import json
import re
import shlex
import subprocess
import sys

import pandas as pd
import pytest
import typer
from PIL import Image
from test_bad_input import run

import eclip_lib as eclip
from eclip_lib import cli, explainers
from eclip_lib.commands import forecast
from eclip_lib.files import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    REPOSITORY / "data" / "README.md",
]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
TEXT = {path.stem: path.read_text() for path in PAGES[:-1]}
TABLES = REPOSITORY / "results" / "demo" / "tables"


def code_of(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


def python(code, folder):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]


def test_the_front_page_is_short():
    assert len(TEXT["README"].split()) < 1200


def test_the_minutes_of_the_demo_are_those_of_its_run_and_its_models_as_large_as_they_are():
    timed = json.loads((TABLES.parent / "run.json").read_text())["notebooks"].values()
    stated = int(re.search(r"every notebook of the demo: (\d+) minutes of work", TEXT["README"])[1])
    assert stated == pytest.approx(sum(part["seconds"] for part in timed) / 60, rel=0.25)
    cards = (json.loads(path.read_text()) for path in (REPOSITORY / "data" / "demo").glob("*.json"))
    sizes = [card["parameters"] / 1e6 for card in cards]
    assert f"of {min(sizes):.1f} to {max(sizes):.1f} million parameters" in TEXT["using"]


def test_the_book_has_every_page():
    shown = set(re.findall(r"^docs/\w+$", (REPOSITORY / "docs" / "conf.py").read_text(), flags=re.M))
    assert shown == {f"docs/{name}" for name in TEXT if name != "README"}


def test_the_hours_of_the_paper_profile_are_the_dry_runs():
    for profile in ("paper", "paper-quick"):
        run = eclip.load_profile(profile, device="cpu", root="/nowhere")
        hours = forecast.gpu_hours(forecast.plan(run))["GPU hours"].iloc[-1]
        assert f"about {hours:.0f} GPU hours" in TEXT["paper"], profile
    minutes = forecast.core_minutes(eclip.load_profile("photos", root="/nowhere"))["minutes"].sum()
    assert f"about {minutes:.0f} minutes of one core" in TEXT["paper"]


def commands(text):
    """The words of every `eclip` command that a page shows in full."""
    lines = re.findall(r"\.venv/bin/eclip ([^`\n]+)", text)
    every = [shlex.split(line, comments=True) for line in lines]
    return [words for words in every if len(words) > 1 and "…" not in words]


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.stem)
def test_the_command_line_understands_every_command(path):
    for words in commands(path.read_text()):
        command = typer.main.get_command(cli.app)
        while hasattr(command, "commands"):
            name, *words = words
            command = command.commands[name]
        command.make_context(command.name, words)


def test_its_command_measures_a_row_of_the_tables(monkeypatch, capsys):
    command = re.search(r"eclip (evaluate (\S+) --networks (\S+) --datasets (\S+))\n", TEXT["README"])
    assert run(monkeypatch, *command[1].split()) is None
    table = pd.read_csv(TABLES / "table_1.csv").set_index(["method", "network", "dataset"]).round(2)
    row = table.loc[command.groups()[1:]].map("{:.2f}".format)
    said = f"mIoU {row['mIoU']} % [{row['mIoU_low']}, {row['mIoU_high']}] (floor {row['floor']} %), "
    said += f"mSC {row['mSC']} % [{row['mSC_low']}, {row['mSC_high']}]; "
    assert said in capsys.readouterr().out


def test_its_ten_lines_run_offline_and_save_a_picture(tmp_path):
    (code,) = code_of(TEXT["README"])
    assert len(code.strip().splitlines()) <= 12
    python(code, tmp_path)
    assert min(Image.open(tmp_path / "map.png").size) > 200


def test_adding_a_network_a_dataset_and_a_method_as_it_says(tmp_path):
    blocks = code_of(TEXT["extending"])
    assert len(blocks) == 3 and all(len(block.strip().splitlines()) < 20 for block in blocks)
    code = "\n".join([*blocks, "assert len(rows) == 4 and rows['iou'].between(0, 1).all()"])
    python(code + "\nassert clip.projection.image.out_features == 64", tmp_path)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_and_modules_exist(path):
    text = path.read_text()
    for link in re.findall(r"\]\((?!http|#)([^)#]+)[^)]*\)", text):
        assert (path.parent / link).exists(), link
    for module in re.findall(r"`([\w/]+\.(?:py|yaml))`", text) if path.stem != "architecture" else ():
        rooms = (REPOSITORY / "eclip_lib", REPOSITORY, REPOSITORY / "eclip_lib" / "studies")
        assert any((folder / module).exists() for folder in rooms), module
    assert not re.search(r"^    (eclip|papermill|torchrun) ", text, flags=re.M)  # .venv/bin/ in front


def test_every_method_and_table_is_named():
    assert "results/demo/report.md" in TEXT["README"]
    listed = re.findall(r"^\| `(\w+)` \|", TEXT["using"], flags=re.M)
    assert set(listed) == set(explainers.REGISTRY) and eclip.explainer
    saved = "".join(path.read_text() for path in (REPOSITORY / "notebooks").glob("*.ipynb"))
    for table in re.findall(r"`(\w+)\.csv`", TEXT["using"]):
        assert f'\\"{table}\\")' in saved, table
