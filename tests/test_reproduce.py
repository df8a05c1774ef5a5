"""The runner: order, skipping, failures, and what it leaves behind. Notebooks here are tiny ones written for the purpose."""

import json

import nbformat
import pytest
from typer.testing import CliRunner

from eclip_lib import cli, reproduce


def write(folder, name, *sources):
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    parameters = nbformat.v4.new_code_cell(
        "profile = 'demo'\nout = None\nlimit = None\nnetworks = None", metadata={"tags": ["parameters"]}
    )
    book.cells = [parameters, *map(nbformat.v4.new_code_cell, sources)]
    nbformat.write(book, folder / name)


@pytest.fixture
def house(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(reproduce, "NOTEBOOKS", folder)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    save = "import pathlib\npath = pathlib.Path(out, 'tables', 'table_1.csv')\npath.parent.mkdir(exist_ok=True)\npath.write_text(str(limit))"
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
    first = reproduce.reproduce(out=out)
    assert first["00_first"] == first["02_last"] == "done" and first["01_broken"].startswith("failed: ZeroDivisionError")
    again = reproduce.reproduce(out=out)
    assert again["00_first"] == again["02_last"] == "skipped" and again["01_broken"].startswith("failed")
    only = [house / "notebooks" / "00_first.ipynb"]
    assert reproduce.reproduce(out=out, only=only, limit=3) == {"00_first": "done"}
    assert reproduce.reproduce(out=out, only=only, limit=3) == {"00_first": "skipped"}
    assert reproduce.reproduce(out=out, only=only, limit=3, force=True) == {"00_first": "done"}


def test_one_figure_or_table_finds_its_notebook(house):
    assert [p.stem for p in reproduce.making("table_1")] == ["00_first"]
    assert [p.stem for p in reproduce.making("figure_10")] == ["02_last"]
    assert reproduce.making("figure_1") == []
    result = CliRunner().invoke(cli.app, ["reproduce", "--out", str(house / "run"), "--figure", "99"])
    assert "no notebook makes figure_99" in str(result.exception)


def test_a_committed_notebook_keeps_no_trace_of_the_machine(house):
    path = house / "notebooks" / "02_last.ipynb"
    reproduce.execute_in_place([path])
    book = json.loads(path.read_text())
    assert set(book["metadata"]) == {"kernelspec", "language_info"} and str(house) not in path.read_text()
    assert [c["execution_count"] for c in book["cells"]] == [1, 2] and book["cells"][0]["metadata"] == {"tags": ["parameters"]}


def test_promotion_copies_tables_figures_pairs_and_the_report(house, monkeypatch):
    from eclip_lib import profiles

    monkeypatch.setattr(reproduce, "REPOSITORY", house)
    monkeypatch.setattr(profiles, "REPOSITORY", house)
    with pytest.raises(FileNotFoundError, match="nothing to promote"):
        reproduce.promote("demo")
    (house / "runs" / "demo" / "tables").mkdir(parents=True)
    (house / "runs" / "demo" / "tables" / "a.csv").write_text("x\n1\n")
    (house / "runs" / "demo" / "pairs").mkdir()
    (house / "runs" / "demo" / "pairs" / "n-ECLIP.safetensors").touch()
    (house / "runs" / "demo" / "report.md").touch()
    copied = ["tables/a.csv", "pairs/n-ECLIP.safetensors", "report.md"]
    assert reproduce.promote("demo") == [house / "results" / "demo" / name for name in copied]


def test_a_users_mistake_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["eclip", "reproduce", "--profile", "nosuch"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert str(end.value).startswith("eclip: no profile 'nosuch'")
