"""The runner: order, skipping, failures, and what it leaves behind, on tiny notebooks made for it."""

import asyncio
import io
import json
import os
import re
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nbformat
import pytest
from in_place import execute_in_place
from tqdm import auto, std
from typer.testing import CliRunner

from eclip_lib import cli, files, progress
from eclip_lib.commands import by_number, notebooks
from eclip_lib.commands.promote import promote
from eclip_lib.experiment import load_profile


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
    draw = "for name in ('figure_10_scenes', 'figure_8_and_12') if out else ():\n"
    draw += "    files.write(f'{out}/figures/{name}.png', '')"
    write(folder, "02_last.ipynb", "from eclip_lib import files", draw)
    return tmp_path


def test_a_failure_is_named_and_does_not_stop_the_rest(house):
    out = str(house / "run")
    result = CliRunner().invoke(cli.app, ["reproduce", "--out", out, "--limit", "5"])
    assert result.exit_code == 1 and "01_broken" in str(result.exception)
    assert (house / "run" / "tables" / "table_1.csv").read_text() == "5"
    assert f"{house / 'run' / 'tables'} (1)" in result.output
    assert "2 of 3 notebooks complete, in 0." in result.output and "has its own limit" in result.output
    assert "ZeroDivisionError" in (house / "run" / "notebooks" / "01_broken.ipynb").read_text()


def test_what_is_done_is_skipped_until_something_changes(house):
    out = str(house / "run")
    first = notebooks.reproduce(out=out)
    assert first["00_first"] == first["02_last"] == "done"
    assert first["01_broken"].startswith("failed: ZeroDivisionError")
    again = notebooks.reproduce(out=out)
    assert again["00_first"] == again["02_last"] == "skipped" and again["01_broken"].startswith("failed")
    only = [house / "notebooks" / "00_first.ipynb"]
    assert notebooks.reproduce(out=out, only=only, force=True) == {"00_first": "done"}
    for name, value in (("limit", 3), ("seed", 3), ("pretrained", "random"), ("training", {"epochs": 3})):
        with pytest.raises(ValueError, match=f"holds a run with other .*{name}.*; name another --out"):
            notebooks.reproduce(out=out, only=only, **{name: value})
    (house / "run" / "run.json").write_text("")  # half a note is none
    assert notebooks.reproduce(out=out, only=only, seed=3) == {"00_first": "done"}


def test_a_table_that_is_gone_or_changed_is_made_again(house):
    only, out = [house / "notebooks" / "03_saves.ipynb"], house / "run"
    save = "import eclip_lib\nimport pandas\nrun = eclip_lib.open_run(globals(), '03_saves')\n"
    save += "run.save_table(pandas.DataFrame({'x': [1]}), 'own')\nprint(run.check())"
    write(house / "notebooks", only[0].name, save)
    table = out / "tables" / "own.csv"
    for spoil, fate in ((id, "done"), (id, "skipped"), (Path.unlink, "done"), (Path.touch, "skipped")):
        spoil(table)
        assert notebooks.reproduce(out=str(out), only=only, limit=5) == {"03_saves": fate}
    table.write_text("x\n2\n")
    assert notebooks.reproduce(out=str(out), only=only, limit=5) == {"03_saves": "done"}
    assert table.read_text() == "x\n1\n"


def test_a_checkpoint_counts_by_its_content_and_a_folder_is_for_one(house):
    only, given = [house / "notebooks" / "00_first.ipynb"], {"pretrained": str(house / "mine.pt")}
    for content, fate in ((b"first", "done"), (b"first", "skipped"), (b"other", "done")):
        (house / "mine.pt").write_bytes(content)
        assert notebooks.reproduce(out=str(house / "run"), only=only, **given) == {"00_first": fate}
    busy = files.alone(house / "run" / ".lock", "busy")
    with busy, pytest.raises(ValueError, match="another .* is at work in .*run"):
        notebooks.reproduce(out=str(house / "run"), only=only, **given)


def test_one_figure_or_table_finds_its_notebook(house):
    assert [p.stem for p in by_number.notebooks_that_make("table_1")] == ["00_first"]
    assert [p.stem for p in by_number.notebooks_that_make("figure_10")] == ["02_last"]
    assert by_number.notebooks_that_make("figure_1") == []
    result = CliRunner().invoke(cli.app, ["reproduce", "--out", str(house / "run"), "--figure", "99"])
    assert "no notebook makes figure_99" in str(result.exception)
    both = ["reproduce", "--out", str(house / "run"), "--figure", "12", "--table", "1"]
    said = CliRunner().invoke(cli.app, both).output
    assert "00_first: done" in said and "02_last: done" in said and "table_1.csv" in said
    assert "figure_8_and_12.png" in said and "figure_10" not in said


def test_a_figure_runs_its_notebook_as_far_as_that_and_leaves_the_run_as_it_was(house):
    """What follows is not run; a notebook of a whole run stays done, another does not become so."""
    save = "import eclip_lib, pandas\nrun = eclip_lib.open_run(globals(), '03_more')\nfigure = 'figure_13'"
    more = ["run.save_table(pandas.DataFrame({'x': [1]}), 'table_5')", "print(run.check())"]
    write(house / "notebooks", "03_more.ipynb", save, *more)
    out, states = house / "run", []
    figure = f"reproduce --out {out} --limit 5 --figure 13 --force".split()
    for words in (figure, None, figure):
        if words:
            CliRunner().invoke(cli.app, words, catch_exceptions=False)
        else:
            only = [house / "notebooks" / "03_more.ipynb"]
            assert notebooks.reproduce(out=str(out), only=only, limit=5) == {"03_more": "done"}
        notes = json.loads((out / "run.json").read_text())["notebooks"]
        states.append((list(notes), notes["03_more"]["state"], len(notes["03_more"].get("made", ()))))
    assert states == [(["03_more"], "begun", 0), (["03_more"], "complete", 1), (["03_more"], "complete", 1)]
    part, whole = (nbformat.read(out / "notebooks" / f"03_more{end}.ipynb", 4) for end in ("-part", ""))
    assert (len(part.cells), len(whole.cells)) == (3, 5)


def test_a_notebook_that_another_needs_the_pairs_of_runs_whole(tmp_path, monkeypatch):
    run = load_profile("demo", out=str(tmp_path))
    monkeypatch.setattr(type(run), "pair_of", lambda self, network: None)
    only = {path.stem[:2]: cut for path, cut in by_number.needed(run, ["figure_5", "table_2"]).items()}
    assert set(only) >= {"05", "06"} and only["05"] is None and only["06"]


def test_every_figure_and_table_of_the_paper_is_made_by_the_notebooks():
    made = {"01": "figure_1 figure_6 figure_10", "02": "figure_2", "03": "figure_3 table_3"}
    made |= {"04": "figure_4 figure_9 table_5", "05": "figure_5"}
    made["06"] = "figure_1 figure_7 figure_8 figure_11 figure_12 figure_13 table_1 table_2 table_4"
    for name in [f"figure_{n}" for n in range(1, 14)] + [f"table_{n}" for n in range(1, 6)]:
        found = [path.stem[:2] for path in by_number.notebooks_that_make(name)]
        assert found == [number for number, names in made.items() if name in names.split()], name


def test_a_committed_notebook_keeps_no_trace_of_the_machine(house):
    path = house / "notebooks" / "02_last.ipynb"
    execute_in_place([path])
    book = json.loads(path.read_text())
    assert set(book["metadata"]) == {"kernelspec", "language_info"} and str(house) not in path.read_text()
    assert [c["execution_count"] for c in book["cells"]] == [1, 2, 3]
    folded = {"tags": ["parameters"], "jupyter": {"source_hidden": True}}
    assert [c["metadata"] for c in book["cells"]] == [folded, {}, {}]


def test_what_others_made_is_read_by_content(house):
    out, last = house / "run", house / "notebooks" / "02_last.ipynb"
    write(house / "notebooks", last.name, "# run.folders('tables'), run.load_pair(clip)", 'own = "claims"')
    for name, content, fate in [
        ("tables/table_9.csv", "a", "done"),
        ("tables/table_9.csv", "a", "skipped"),
        ("tables/table_9.csv", "b", "done"),
        ("pairs/x-ECLIP.safetensors", "a", "done"),
        ("tables/claims.csv", "its own", "skipped"),
    ]:
        files.write(out / name, content)
        assert notebooks.reproduce(out=str(out), only=[last]) == {"02_last": fate}, (name, content)


def test_what_the_notebooks_read_and_train_is_found_in_their_code():
    books = notebooks.notebooks()
    assert {p.stem: notebooks.reads(p) for p in books if notebooks.reads(p)} == {
        "00_quickstart": ["pairs"],
        "06_benchmarks": ["pairs"],
        "07_claims": ["tables", "figures"],
    }
    assert [p.stem[:2] for p in books if notebooks.trains(p)] == ["02", "03", "05"]


def test_a_notebook_opens_by_its_own_name():
    for path in notebooks.notebooks():
        assert f'open_run(globals(), "{path.stem}")' in notebooks.source(path)


def test_every_setting_arrives_in_a_notebook_also_those_that_it_does_not_name(house):
    shown = "import eclip_lib\nrun = eclip_lib.open_run(globals())\n"
    shown += "print(run.limit_pairs, run.training.epochs, run.training.lr, run.dropped)"
    write(house / "notebooks", "02_last.ipynb", shown)
    options = ["--limit-pairs", "7", "--set", "training.epochs=3", "--set", "trainings=1"]
    CliRunner().invoke(cli.app, ["reproduce", "--out", str(house / "run"), *options])
    assert "7 3 0.003 []" in (house / "run" / "notebooks" / "02_last.ipynb").read_text()
    facts = json.loads((house / "run" / "run.json").read_text())
    assert facts["notebooks"]["02_last"]["state"] == "complete" and facts["settings"]["limit_pairs"] == 7
    assert facts["changed"][0] == "limit_pairs 7" and facts["notebooks"]["01_broken"]["state"][:6] == "failed"


def test_bars_inside_a_notebook_are_told_to_the_terminal_and_not_saved(house, monkeypatch, capfd):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr("eclip_lib.progress.PAUSE", (0.1, 0.1))
    work = "import time\nfrom eclip_lib.progress import tqdm\n"
    work += "for _ in tqdm(range(8), desc='RN50 on voc2012', unit='image', disable=None): time.sleep(0.2)"
    write(house / "notebooks", "02_last.ipynb", work)
    only = [house / "notebooks" / "02_last.ipynb"]
    assert notebooks.reproduce(out=str(house / "run"), only=only) == {"02_last": "done"}
    assert re.search(r"RN50 on voc2012: +\d+%.*[1-7]/8 \[.*image/s\]", capfd.readouterr().err)
    assert "voc2012:" not in (house / "run" / "notebooks" / "02_last.ipynb").read_text()


# ------------------------------------------------------------------------------------------- promotion


@pytest.fixture
def finished(house, monkeypatch):
    """A run whose `run.json` is that of a whole one, and what `promote` says of it."""
    for module in (files, notebooks):
        monkeypatch.setattr(module, "REPOSITORY", house)
    with pytest.raises(FileNotFoundError, match="nothing to promote"):
        promote("demo")
    for name in ("tables/a.csv", "pairs/n-ECLIP.safetensors", "report.md"):
        files.write(house / "runs" / "demo" / name, "")
    run = load_profile("demo", device="cpu")
    for path in notebooks.notebooks():
        run.note(path.stem, 0, "complete", made=made(run))
    return run


def made(run):
    """What a notebook would say that it made: all that is there."""
    there = [path for path in run.out.glob("**/*.*") if path.name not in ("run.json", ".run.json.lock")]
    return {str(path.relative_to(run.out)): files.digest(path) for path in there}


def a_bar():
    return len(list(auto.tqdm(range(3), file=io.StringIO())))


def test_a_process_does_not_wait_for_a_bar_that_was_held_when_it_was_forked():
    with auto.tqdm.get_lock(), std.tqdm.get_lock():  # by another thread than those of the new process
        processes = ProcessPoolExecutor(1, get_context("fork"), progress.begun, [os.getpid()])
        try:
            assert processes.submit(a_bar).result(timeout=60) == 3
        finally:
            for process in processes._processes.values():
                process.kill()


def handle_a_signal():
    """As the execution of a notebook does."""
    loop = asyncio.new_event_loop()
    loop.add_signal_handler(signal.SIGINT, print), loop.remove_signal_handler(signal.SIGINT)
    loop.close()


def test_a_process_ends_at_ctrl_c_without_a_word(capfd):
    processes = ProcessPoolExecutor(1, get_context("fork"), progress.begun, [os.getpid()])
    processes.submit(handle_a_signal).result(timeout=60)
    (process,) = processes._processes.values()
    os.kill(process.pid, signal.SIGINT), process.join(60)
    assert process.exitcode and not capfd.readouterr().err


def test_promotion_copies_tables_pairs_the_report_and_where_they_come_from(finished, house):
    copied = ["pairs/n-ECLIP.safetensors", "report.md", "tables/a.csv", "run.json"]
    assert promote("demo") == [house / "results" / "demo" / name for name in copied]
    facts = json.loads((house / "results" / "demo" / "run.json").read_text())
    assert facts["profile"] == "demo" and "partial" not in facts and str(house) not in str(facts)
    assert set(facts["versions"]) == {"python", "torch", "open_clip", "timm", "eclip_lib"}


@pytest.mark.parametrize(
    "given, state, said",
    [
        ({}, "failed: no memory", "02_last failed: no memory"),
        ({}, "begun", "02_last begun"),
        ({"limit": 8}, "complete", "with limit 8"),
        ({"networks": "scenes-RN"}, "complete", "with networks"),
        ({"dropped": ["scenes-cluttered"]}, "complete", "without scenes-cluttered"),
        ({"name": "mine"}, "complete", "it is of profile mine"),
        ({"seed": 7, "changed": []}, "complete", "with other seed than"),  # of a file that was edited since
    ],
)
def test_a_run_that_is_not_whole_is_promoted_in_part_only(finished, house, given, state, said):
    own = {name: given.pop(name) for name in ("name", "changed") if name in given}
    run = load_profile("demo", out=finished.out, **given).model_copy(update={"part": ""} | own)
    run.note("02_last", 0, state)
    with pytest.raises(ValueError, match=said):
        promote("demo")
    promote("demo", into=house / "scratch", partial=True)
    assert said in json.loads((house / "scratch" / "run.json").read_text())["partial"][0]


def test_fewer_images_than_a_dataset_has_and_no_note_at_all_are_no_whole_run(finished):
    finished.saw("datasets", "voc2012", lambda: 8)
    finished.note("02_last", 0, "complete")
    with pytest.raises(ValueError, match="8 of 1449 images of voc2012"):
        promote("demo")
    part = '{"notebooks": {"02_last": {"state": "complete", "seconds": 1, "made": {}}}}'
    spoilt = [part.replace(one, "[7]") for one in ('"complete"', "1", "{}")]
    spoilt += [f'{{"datasets": {{"voc2012": {count}}}}}' for count in ('"8"', "null", "[8]", "true")]
    spoilt += ["null", '{"notebooks": []}', '{"notebooks": {"02_last": null}}', '{"settings": null}']
    spoilt += ['{"changed": "limit"}', '{"dropped": [7]}', '{"changed": null}']
    for text in spoilt:
        (finished.out / "run.json").write_text(text)
        with pytest.raises(ValueError, match="no run.json"):
            promote("demo")
    (finished.out / "run.json").unlink()
    with pytest.raises(ValueError, match="no run.json"):
        promote("demo")


@pytest.mark.parametrize("spoil", [Path.unlink, lambda p: p.write_text(""), lambda p: p.write_text("x")])
def test_a_table_that_is_not_as_made_is_not_promoted(finished, house, spoil):
    files.write(finished.path("tables", "b"), "1")
    finished.note("02_last", 0, "complete", made=made(finished))
    spoil(finished.path("tables", "b"))
    with pytest.raises(ValueError, match="demo: b.csv not as made; finish"):
        promote("demo")
    promote("demo", into=house / "scratch", partial=True)
    assert json.loads((house / "scratch" / "run.json").read_text())["partial"] == ["b.csv not as made"]


def test_what_no_notebook_made_stays_and_a_killed_promotion_is_marked(finished, house, monkeypatch):
    files.write(finished.path("tables", "mine"), "")
    with pytest.warns(UserWarning, match="1 files in .*demo are of no notebook .* not copied .mine.csv"):
        assert "mine.csv" not in [path.name for path in promote("demo", into=house / "ours")]
    write_file = files.write
    monkeypatch.setattr(
        files, "write", lambda path, data: path.name == "a.csv" and 1 / 0 or write_file(path, data)
    )
    with pytest.raises(ZeroDivisionError):
        promote("demo", into=house / "ours")
    assert json.loads((house / "ours" / "run.json").read_text())["partial"] == ["its promotion did not end"]


def test_promotion_keeps_a_strangers_note_and_names_what_is_of_an_earlier_run(finished, house):
    files.write(house / "theirs" / "run.json", '{"mine": 1}')
    with pytest.raises(ValueError, match="run.json is there, is not of this command"):
        promote("demo", into=house / "theirs")
    files.write(house / "ours" / "run.json", '{"notebooks": {}}')
    files.write(house / "ours" / "tables" / "old.csv", "")
    with pytest.warns(UserWarning, match="1 files in .*ours are of an earlier run; .* .old.csv"):
        promote("demo", into=house / "ours")


def test_a_users_mistake_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["eclip", "reproduce", "--profile", "nosuch"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert str(end.value).startswith("eclip: no profile 'nosuch'")


def test_the_longest_begin_first_after_those_that_others_wait_for():
    """By the committed run: two cores end together, which they did not where the longest came last."""
    run = load_profile("demo")
    first, *others = notebooks.in_turn(run, notebooks.notebooks())
    seconds = [notebooks.timed(run)[path.stem] for path in others]
    assert first.stem == "05_mmp_training" and min(seconds) > 0
    last = [path.stem for path in others[-2:]]  # which read the features that 05 makes
    assert last == sorted(last, key=["03_pooling_ablation", "02_dino_backbone"].index)
    assert seconds[:-2] == sorted(seconds[:-2], reverse=True)


def test_a_whole_run_ends_in_whether_it_agrees():
    """What its regression cells said, which stop a notebook that differs."""
    outcome = {"a": "done", "b": "skipped", "c": "failed: 2 differences"}
    said = by_number.came(load_profile("demo"), outcome, 17.1)
    assert said == "2 of 3 notebooks complete, in 17.1 minutes; their tables agree with results/demo"
    said = by_number.came(load_profile("demo", limit=5), outcome, 1)
    assert said.endswith("in 1.0 minutes; not compared with results/demo: this run has its own limit")


def test_notebooks_run_two_at_once_and_after_what_they_read(house, monkeypatch):
    """Each leaves the times at which it began and ended."""
    monkeypatch.setattr(notebooks, "_at_once", lambda device: 2)
    for path in (house / "notebooks").iterdir():
        path.unlink()
    stamp = "import pathlib, time\nbegin = time.time()\ntime.sleep(1)\n"
    stamp += "pathlib.Path(out, NAME).write_text(f'{begin} {time.time()}')\n"
    role = {
        "00": "# run.load_pair(",
        "05": "# run.save_pair(",
        "07": "# run.folders(",
        "08": "# run.folders(",
    }
    for name in ("00", "01", "05", "07", "08"):
        write(house / "notebooks", f"{name}_x.ipynb", stamp.replace("NAME", repr(name)) + role.get(name, ""))
    assert set(notebooks.reproduce(out=str(house / "run")).values()) == {"done"}
    times = {n: map(float, (house / "run" / n).read_text().split()) for n in ("00", "01", "05", "07", "08")}
    begin, end = zip(*times.values(), strict=True)
    assert begin[1] < end[2] and begin[2] < end[1]  # at once
    assert begin[0] > end[2] and begin[3] > max(end[:3]) and begin[4] > end[3]
