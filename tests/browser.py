"""A headless Chromium for the tests of the explorer and of the page; they are skipped where there is none."""

import shutil
import socket
from contextlib import contextmanager

import pytest

FLAGS = """headless=new no-sandbox disable-gpu disable-dev-shm-usage disable-quic no-first-run disable-sync
disable-background-networking disable-component-update window-size=1400,1600"""


@contextmanager
def chromium(folder):
    """A browser whose own data lies in `folder`/browser, and what it downloads in `folder`/downloads."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver = shutil.which("chromedriver")
    if not (driver and shutil.which("chromium")):
        pytest.skip("no chromium here")
    options = webdriver.ChromeOptions()
    for flag in [*FLAGS.split(), f"user-data-dir={folder / 'browser'}"]:
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
