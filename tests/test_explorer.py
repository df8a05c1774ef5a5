"""The notebook's explorer: without a front end, and in JupyterLab in a real browser where there is one."""

import io
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import chromium, free_port
from PIL import Image

import eclip_lib as eclip
from eclip_lib import explainers, plots, viewer
from eclip_lib.files import REPOSITORY
from eclip_lib.studies.quickstart import PHOTOS, explorer, photo_networks, pictures, typical

SCREENSHOT = os.environ.get("ECLIP_SCREENSHOT")  # a path: keep what the browser showed


def test_the_map_follows_every_control(monkeypatch):
    own = lambda clip: lambda images, text: torch.rand(len(images), len(text), 7, 7)  # noqa: E731
    monkeypatch.setitem(explainers.REGISTRY, "own", own)
    widget = explorer(eclip.load_profile("demo"))
    first, second, shown, said = widget.children
    (image, network), (words, method) = first.children, second.children
    objects = [option.partition(": ")[2].split(", ") for option in image.options]
    assert words.value == eclip.PROMPT.format(objects[0][0]) and min(map(len, objects[:3])) > 1
    seen, changes = {shown.value}, [(words, "a photo of the star"), (method, "clip"), (method, "eclip")]
    for control, value in [*changes, (image, image.options[1]), (network, "scenes-RN")]:
        control.value = value
        assert shown.value not in seen and shown.value[:2] == b"\xff\xd8"
        assert said.value == f"{network.value}, {method.value.upper()}: “{words.value}”"  # as in the paper
        seen.add(shown.value)
    method.value = "bi_model"
    assert (
        "reads the attention of OpenAI's ViTs" in said.value and not shown.value
    )  # no map of what was asked before
    words.value = " "
    assert "type a text" in said.value or "reads the attention of OpenAI's ViTs" in said.value
    method.value, words.value = "own", "a zebra"
    assert "never saw 'zebra'" in said.value


def test_maps_are_in_the_colours_of_the_notebook(monkeypatch):
    clip, image = eclip.load_clip("scenes-RN"), eclip.load_dataset("scenes")[0].image
    (view,) = viewer.views(clip, {"clip": eclip.explainer("clip", clip)}, [image], ["a photo of the star"])
    drawn = io.BytesIO(), io.BytesIO()
    view.save(drawn[0], "png")
    monkeypatch.setattr(plots, "CMAP", "cividis")  # as `notebook_style` does
    view.save(drawn[1], "png")
    assert drawn[0].getvalue() != drawn[1].getvalue()


def test_photographs_are_for_networks_that_know_them():
    assert not set(PHOTOS) & set(pictures(eclip.load_profile("demo")))
    assert set(PHOTOS) <= set(pictures(eclip.load_profile("demo", networks="ViT-B-32", pretrained="random")))


def test_typical_pictures_lie_at_percentiles_of_the_contrast(tmp_path):
    run = eclip.load_profile("demo", limit=12, out=tmp_path)
    clip = run.load_clip("scenes-ViT-32")
    shown, said = typical(run, clip, "scenes", (0, 50, 100))
    scores = (
        100
        * eclip.evaluate(eclip.explainer("clip", clip), run.load_dataset("scenes"), clip)["score_contrast"]
    )
    assert said["contrast"].iloc[[0, 2]].tolist() == pytest.approx([scores.min(), scores.max()], abs=1e-3)
    assert (scores < said["contrast"][1] - 1e-3).mean() == pytest.approx(0.5, abs=0.1)
    assert [(e.image_id, name) for e, name in shown] == list(
        zip(said["image_id"], said["class_name"], strict=True)
    )


def test_photographs_need_weights_at_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("ECLIP_WEIGHTS", str(tmp_path))
    run = eclip.load_profile("demo")
    assert photo_networks(run) == []
    (tmp_path / "ViT-B-16.pt").touch()
    assert photo_networks(run) == [("ViT-B-16", "openai")]
    own = eclip.load_profile("demo", networks="ViT-B-32,scenes-RN", pretrained="openai")
    assert photo_networks(own) == [("ViT-B-32", "openai")]


def test_a_sheet_shows_outlines_contrasts_and_one_scale_in_rgb(tmp_path):
    run = eclip.load_profile("demo", limit=2, out=tmp_path)
    example = run.load_dataset("scenes")[0]
    truth = torch.from_numpy(example.masks[example.largest]).float()
    panels = [None, example.masks[example.largest], plots.judged(example, example.largest, 1 - truth)]
    figure = plots.sheet([(example.image, panels)], ["image", "truth", "opposite"])
    image, mask, heat, bar = figure.axes
    assert [len(ax.images) for ax in (image, mask, heat)] == [
        1,
        1,
        2,
    ] and bar.get_ylabel() == "score in the map"
    assert [len(ax.collections) > 0 for ax in (image, mask, heat)] == [False, True, True]
    assert [text.get_text() for text in heat.texts] == ["-100"]
    run.save_figure(figure, "one")
    assert Image.open(tmp_path / "figures" / "one.png").mode == "RGB"


@pytest.mark.parametrize("size, panel", [((640, 480), 4 / 3), ((480, 640), 3 / 4)])
def test_rows_of_a_sheet_are_as_tall_as_their_pictures(size, panel):
    rows = [(Image.new("RGB", size), [None, np.zeros(size[::-1])])] * 2
    figure = plots.sheet(rows, ["picture", "map"], size=3)
    figure.draw_without_rendering()
    first, beside, below = (figure.axes[k].get_window_extent() for k in (0, 1, 2))
    assert first.width / first.height == pytest.approx(panel, abs=0.01)
    assert 0 < first.y0 - below.y1 < first.height / 8 and 0 < beside.x0 - first.x1 < first.width / 8


@pytest.fixture()
def lab(tmp_path):
    """JupyterLab on a copy of notebook 00 -> the notebook's address."""
    shutil.copy(REPOSITORY / "notebooks" / "00_quickstart.ipynb", tmp_path)
    port = free_port()
    options = (
        "--no-browser --allow-root --ip=127.0.0.1 --IdentityProvider.token= --LabApp.news_url=None".split()
    )
    options += [f"--port={port}", f"--ServerApp.root_dir={tmp_path}"]
    command = [sys.executable, "-m", "jupyterlab", *options]
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
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


def test_a_text_typed_in_a_browser_changes_the_map(tmp_path, request):
    with chromium(tmp_path) as browser:
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys
        from selenium.webdriver.support.ui import WebDriverWait

        lab = request.getfixturevalue("lab")  # no server where there is no browser
        browser.get(lab)
        wait = WebDriverWait(browser, 120, ignored_exceptions=(Exception,))
        find = lambda css: browser.find_element(By.CSS_SELECTOR, css)  # noqa: E731
        wait.until(lambda _: find(".jp-Notebook .jp-Cell"))
        time.sleep(3)  # the kernel is being chosen

        def run_all(_):
            for kind, text in (("lm-MenuBar", "Run"), ("lm-Menu", "Run All Cells")):
                labels = browser.find_elements(By.CSS_SELECTOR, f".{kind}-itemLabel")
                next(label for label in labels if label.text == text).click()
                time.sleep(0.5)
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
