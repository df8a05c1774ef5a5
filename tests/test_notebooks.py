"""The runner: order, skipping, failures, and what it leaves behind, on tiny notebooks made for it."""

import json

import nbformat
import pytest
from typer.testing import CliRunner

from eclip_lib import cli, files
from eclip_lib.commands import notebooks


def write(folder, name, *sources):
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    names = "profile = 'demo'\nout = None\nlimit = None\npretrained = 'profile'"
    parameters = nbformat.v4.new_code_cell(names, metadata={"tags": ["parameters"]})
    cells = [parameters, *map(nbformat.v4.new_code_cell, sources)]
    nbformat.write(nbformat.v4.new_notebook(metadata=kernel, cells=cells), folder / name)


@pytest.fixture
def house(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(notebooks, "NOTEBOOKS", folder)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    save = "import pathlib\npath = pathlib.Path(out, 'tables', 'table_1.csv')\n"
    save += "path.parent.mkdir(exist_ok=True)\npath.write_text(str(limit))"
    write(folder, "00_first.ipynb", save + '\nname = "table_1"')
    write(folder, "01_broken.ipynb", "1 / 0")
    write(folder, "02_last.ipynb", 'name = "figure_10_scenes"')
    return tmp_path


def test_a_failure_is_named_and_does_not_stop_the_rest(house):
    out = str(house / "run")
    result = CliRunner().invoke(cli.app, ["reproduce", "--out", out, "--limit", "5"])
    assert result.exit_code == 1 and "01_broken" in str(result.exception)
    assert (house / "run" / "tables" / "table_1.csv").read_text() == "5"
    assert str(house / "run" / "tables" / "table_1.csv") in result.output
    assert "ZeroDivisionError" in (house / "run" / "notebooks" / "01_broken.ipynb").read_text()


def test_what_is_done_is_skipped_until_something_changes(house):
    out = str(house / "run")
    first = notebooks.reproduce(out=out)
    assert first["00_first"] == first["02_last"] == "done"
    assert first["01_broken"].startswith("failed: ZeroDivisionError")
    again = notebooks.reproduce(out=out)
    assert again["00_first"] == again["02_last"] == "skipped" and again["01_broken"].startswith("failed")
    only = [house / "notebooks" / "00_first.ipynb"]
    assert notebooks.reproduce(out=out, only=only, limit=3) == {"00_first": "done"}
    assert notebooks.reproduce(out=out, only=only, limit=3) == {"00_first": "skipped"}
    assert notebooks.reproduce(out=out, only=only, limit=3, force=True) == {"00_first": "done"}
    (house / "run" / "notebooks" / "00_first.json").write_text("")  # half a note is none
    assert notebooks.reproduce(out=out, only=only, limit=3) == {"00_first": "done"}


def test_a_checkpoint_counts_by_its_content_and_a_folder_is_for_one(house):
    only, given = [house / "notebooks" / "00_first.ipynb"], {"pretrained": str(house / "mine.pt")}
    for content, fate in ((b"first", "done"), (b"first", "skipped"), (b"other", "done")):
        (house / "mine.pt").write_bytes(content)
        assert notebooks.reproduce(out=str(house / "run"), only=only, **given) == {"00_first": fate}
    busy = files.alone(house / "run" / ".lock", "busy")
    with busy, pytest.raises(ValueError, match="another .* is at work in .*run"):
        notebooks.reproduce(out=str(house / "run"), only=only)


def test_one_figure_or_table_finds_its_notebook(house):
    assert [p.stem for p in notebooks.notebooks_that_make("table_1")] == ["00_first"]
    assert [p.stem for p in notebooks.notebooks_that_make("figure_10")] == ["02_last"]
    assert notebooks.notebooks_that_make("figure_1") == []
    result = CliRunner().invoke(cli.app, ["reproduce", "--out", str(house / "run"), "--figure", "99"])
    assert "no notebook makes figure_99" in str(result.exception)
    both = ["reproduce", "--out", str(house / "run"), "--figure", "10", "--table", "1"]
    notebooks_run = CliRunner().invoke(cli.app, both).output
    assert "00_first: done" in notebooks_run and "02_last: done" in notebooks_run


def test_every_figure_and_table_of_the_paper_is_made_by_the_notebooks():
    made = {"01": "figure_1 figure_6 figure_10", "02": "figure_2", "03": "figure_3 table_3"}
    made |= {"04": "figure_4 figure_9 table_5", "05": "figure_5"}
    made["06"] = "figure_1 figure_7 figure_8 figure_11 figure_12 figure_13 table_1 table_2 table_4"
    for name in [f"figure_{n}" for n in range(1, 14)] + [f"table_{n}" for n in range(1, 6)]:
        found = [path.stem[:2] for path in notebooks.notebooks_that_make(name)]
        assert found == [number for number, names in made.items() if name in names.split()], name


def test_a_committed_notebook_keeps_no_trace_of_the_machine(house):
    path = house / "notebooks" / "02_last.ipynb"
    notebooks.execute_in_place([path])
    book = json.loads(path.read_text())
    assert set(book["metadata"]) == {"kernelspec", "language_info"} and str(house) not in path.read_text()
    assert [c["execution_count"] for c in book["cells"]] == [1, 2]
    assert book["cells"][0]["metadata"] == {"tags": ["parameters"]}


def test_promotion_copies_tables_figures_pairs_and_the_report(house, monkeypatch):
    for module in (files, notebooks):
        monkeypatch.setattr(module, "REPOSITORY", house)
    with pytest.raises(FileNotFoundError, match="nothing to promote"):
        notebooks.promote("demo")
    copied = ["tables/a.csv", "pairs/n-ECLIP.safetensors", "report.md"]
    for name in copied:
        (house / "runs" / "demo" / name).parent.mkdir(parents=True, exist_ok=True)
        (house / "runs" / "demo" / name).touch()
    assert notebooks.promote("demo") == [house / "results" / "demo" / name for name in copied]


def test_a_users_mistake_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["eclip", "reproduce", "--profile", "nosuch"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert str(end.value).startswith("eclip: no profile 'nosuch'")
