"""The site of `make book`: it builds without a warning from what is committed, and its links lead somewhere."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import FLAGS

import eclip_lib as eclip

ROOT = Path(__file__).parents[1]
pytest.importorskip("myst_nb", reason="the site needs the extra [book]")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site):
    from bs4 import BeautifulSoup

    return {path: BeautifulSoup(path.read_text(), "html.parser") for path in site.rglob("*.html")}


def test_every_link_inside_leads_somewhere(pages):
    names = {path: {tag["id"] for tag in page.find_all(id=True)} for path, page in pages.items()}
    checked = 0
    for path, page in pages.items():
        for tag in page.select(".content a[href], .content img[src], .sidebar-tree a[href]"):
            link = urlsplit(tag.get("href") or tag.get("src"))
            if link.scheme:
                continue
            target = (path.parent / unquote(link.path)).resolve() if link.path else path
            assert target.exists(), (path.name, link.path)
            assert not link.fragment or target not in names or link.fragment in names[target], (
                path.name,
                link,
            )
            checked += 1
    assert checked > 500


def test_a_browser_sets_the_equations_of_a_notebook(site, tmp_path):
    if not (chromium := shutil.which("chromium")):
        pytest.skip("no chromium here")
    flags = [
        f"--{flag}" for flag in [*FLAGS.split(), f"user-data-dir={tmp_path}", "virtual-time-budget=20000"]
    ]
    page = site / "notebooks" / "01_itsm_discovery.html"
    command = [chromium, *flags, "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert 'class="MathJax' in shown and 'class="MathJax' not in page.read_text()


def test_the_notebooks_stand_as_committed_and_the_api_is_whole(site, pages):
    for book in (ROOT / "notebooks").glob("*.ipynb"):
        page = pages[site / "notebooks" / f"{book.stem}.html"]
        assert (
            page.select(".cell_output")
            and "agree with results/demo" in page.text
            or "quickstart" in book.name
        )
    shown = {tag["id"].rpartition(".")[2] for tag in pages[site / "docs" / "api.html"].select("dt[id]")}
    assert {name for name in eclip.__all__ if callable(getattr(eclip, name))} <= shown
