"""The notebook's explorer: without a front end, and (where chromium and selenium are) in JupyterLab in a real browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import eclip_lib as eclip
from eclip_lib import explorer
from eclip_lib.profiles import REPOSITORY

SCREENSHOT = os.environ.get("ECLIP_SCREENSHOT")  # a path: keep what the browser showed


def test_the_map_follows_every_control():
    widget = explorer.explorer(eclip.load_profile("demo"))
    (image, network), (words, method), shown, said = (
        widget.children[0].children,
        widget.children[1].children,
        *widget.children[2:],
    )
    seen = {shown.value}
    for control, value in (
        (words, "a photo of the star"),
        (method, "clip"),
        (method, "eclip"),
        (image, image.options[1]),
        (network, "scenes-RN"),
    ):
        control.value = value
        assert shown.value not in seen and shown.value[:2] == b"\xff\xd8" and said.value.startswith(network.value)
        seen.add(shown.value)
    for control, value, message in ((method, "bi_model", "needs a ViT"), (words, " ", "type a text|needs a ViT")):
        control.value = value
        assert any(part in said.value for part in message.split("|"))
    method.value, words.value = "clip", "a zebra"
    assert "never saw the words ['zebra']" in said.value


def test_photographs_are_for_networks_that_know_them():
    assert not set(explorer.PHOTOS) & set(explorer.pictures(eclip.load_profile("demo")))
    assert set(explorer.PHOTOS) <= set(explorer.pictures(eclip.load_profile("demo", networks="ViT-B-32", pretrained="random")))


@pytest.fixture()
def lab(tmp_path):
    """JupyterLab on a copy of notebook 00 -> the notebook's address."""
    shutil.copy(REPOSITORY / "notebooks" / "00_quickstart.ipynb", tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1", "--IdentityProvider.token=",
               f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url=None"]  # fmt: skip
    environment = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(60):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=1)
            break
        except OSError:
            time.sleep(1)
    yield f"http://127.0.0.1:{port}/lab/tree/00_quickstart.ipynb?reset"
    server.terminate()
    server.wait(20)


@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="chromium and chromedriver are not here"
)
def test_a_text_typed_in_a_browser_changes_the_map(lab):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--window-size=1400,1600", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(lab)
        wait = WebDriverWait(browser, 120, ignored_exceptions=(Exception,))
        find = lambda css: browser.find_element(By.CSS_SELECTOR, css)  # noqa: E731
        wait.until(lambda _: find(".jp-Notebook .jp-Cell"))
        time.sleep(3)  # the kernel is being chosen

        def run_all(_):
            next(e for e in browser.find_elements(By.CSS_SELECTOR, ".lm-MenuBar-itemLabel") if e.text == "Run").click()
            time.sleep(0.5)
            next(e for e in browser.find_elements(By.CSS_SELECTOR, ".lm-Menu-itemLabel") if e.text == "Run All Cells").click()
            return True

        wait.until(run_all)

        def widget(_):  # the notebook draws cells as they come into view
            browser.execute_script("document.querySelector('.jp-WindowedPanel-outer')?.scrollBy(0, 500)")
            time.sleep(0.5)
            return find(".widget-text input")

        box = wait.until(widget)
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
        picture = wait.until(lambda _: find("img.widget-image").get_attribute("src"))
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys("a photo of the star", Keys.ENTER)
        wait.until(lambda _: find("img.widget-image").get_attribute("src") != picture)
        wait.until(lambda _: "“a photo of the star”" in browser.page_source)
        time.sleep(1)
        if SCREENSHOT:
            browser.save_screenshot(SCREENSHOT)
    finally:
        browser.quit()
