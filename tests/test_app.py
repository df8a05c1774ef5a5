"""The page of `eclip app`: what it is asked, and the page itself in a real browser where there is one."""

import os
import re
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, free_port
from PIL import Image

import eclip_lib as eclip
from eclip_lib import viewer
from eclip_lib.commands import app, explain
from eclip_lib.explainers import REGISTRY
from eclip_lib.files import REPOSITORY

PAIR = "results/demo/pairs/scenes-RN-ECLIP.safetensors"
TEXTS = ["a photo of the star", "a zebra"]
SCREENSHOT = os.environ.get("ECLIP_SCREENSHOT")  # a path: keep what the browser showed


@pytest.fixture(scope="module")
def desk():
    return app.Desk(device="cpu")


@pytest.fixture
def photo(tmp_path):
    eclip.load_dataset("scenes")[0].image.resize((90, 60)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_maps_and_warnings_are_those_of_the_command(desk, photo, tmp_path):
    lines, methods = "\n".join(["", *TEXTS, " "]), ["clip", "eclip"]
    sheet, maps, notes = desk.show(str(photo), lines, "scenes-ViT-32", methods)
    assert re.match(".* is a mini model .*\n.* never saw .zebra.", notes)
    assert Image.open(sheet).width > 600
    other = tmp_path / "o.npz"
    with warnings.catch_warnings(action="ignore"):
        explain.run(photo, TEXTS, tmp_path / "o.png", npz=other, method="clip,eclip", network="scenes-ViT-32")
    ours, theirs = np.load(maps), np.load(other)
    assert len(ours) == len(theirs) == 5
    for name in theirs:
        np.testing.assert_array_equal(ours[name.replace(str(photo), "photo.png")], theirs[name])


def test_what_is_warned_of_while_a_network_loads_is_told_every_time(photo, monkeypatch):
    def load(*options):
        warnings.warn("its activation is a guess", stacklevel=2)
        return eclip.load_clip(*options)

    monkeypatch.setattr(app, "load_clip", load)
    desk = app.Desk(device="cpu")
    desk.methods("scenes-ViT-32")  # the page asks for these first
    for _ in range(2):
        assert "its activation is a guess" in desk.show(str(photo), TEXTS[0], "scenes-ViT-32", ["clip"])[2]


def test_a_method_that_does_not_fit_is_named_with_the_reason(desk, photo):
    fitting, others = desk.methods("scenes-RN")
    fitting = {method for _, method in fitting}
    assert {"clip", "rclip", "eclip", "grad_cam"} <= fitting and "bi_model" not in fitting
    assert all(
        f"{method} reads the attention of OpenAI's ViTs" in others for method in ("bi_model", "legrad", "gem")
    )
    assert len(others.splitlines()) == len(REGISTRY) - len(fitting)
    *_, notes = desk.show(str(photo), TEXTS[0], "scenes-RN", ["bi_model", "clip"])
    assert (
        "bi_model reads the attention of OpenAI's ViTs, pooled by their class token; scenes-RN is none"
        in notes
    )
    foreign = app.Desk(projection=REPOSITORY / PAIR, device="cpu")
    assert "was made for scenes-RN" in foreign.methods("scenes-ViT-32")[1]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"texts": " \n"}, "at least one text"),
        ({"texts": None}, "at least one text"),
        ({"picture": None}, "choose a picture"),
        ({"methods": []}, "choose a method"),
        ({"methods": ["gem"], "network": "scenes-RN"}, "gem reads the attention of OpenAI's ViTs"),
        ({"network": "nobody's"}, "no network"),
        ({"picture": __file__}, "test_app.py cannot be read as an image"),
    ],
)
def test_a_mistake_is_one_sentence(desk, photo, change, message):
    asked = {"picture": str(photo), "texts": TEXTS[0], "network": "scenes-ViT-32", "methods": ["clip"]}
    with pytest.raises((ValueError, OSError), match=message):
        desk.show(**asked | change)


def test_it_begins_with_pictures_of_several_objects_and_texts_that_are_in_them(desk):
    rows, scenes = desk.examples(["scenes-RN"]), viewer.several(eclip.load_dataset("scenes"))
    assert len(rows) == len(scenes) == 3
    dataset = {tuple(e.masks): e for e in (eclip.load_dataset("scenes")[k] for k in range(30))}
    for (path, texts), (image, _) in zip(rows, scenes.values(), strict=True):
        (example,) = [e for e in dataset.values() if np.array_equal(e.image, image)]
        assert len(texts.splitlines()) == len(example.masks) > 1
        assert texts.splitlines()[0] == eclip.PROMPT.format(example.largest)
        assert np.array_equal(Image.open(path), image)
    assert len(desk.examples(["scenes-RN", "ViT-B-32"])) == 3 + len(viewer.PHOTOS)


def test_without_gradio_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"needs gradio .*pip install -e '.\[app\]'"):
        app.serve()


@pytest.fixture
def page(tmp_path):
    """The page of two networks, served -> its address."""
    code, port = "from eclip_lib.cli import main; main()", free_port()
    words = ["app", "--networks", "scenes-ViT-32,scenes-RN", "--port", str(port), "--device", "cpu"]
    (tmp_path / "own").mkdir()
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path / "gradio"), "TMPDIR": str(tmp_path / "own")}
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", code, *words], env=environment, stdout=log, stderr=log
        )
    for _ in range(180):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
            break
        except OSError:
            assert server.poll() is None, (tmp_path / "log").read_text()[-2000:]
            time.sleep(1)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(30)


def test_a_picture_dropped_in_a_browser_is_explained(photo, tmp_path, request):
    pytest.importorskip("gradio", reason="gradio is not installed (the extra [app])")
    with chromium(tmp_path) as browser:
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys
        from selenium.webdriver.support.ui import WebDriverWait

        browser.get(request.getfixturevalue("page"))
        until = WebDriverWait(browser, 120, ignored_exceptions=(Exception,)).until
        find = lambda css: browser.find_elements(By.CSS_SELECTOR, css)  # noqa: E731
        box = lambda label: browser.find_element(  # noqa: E731
            By.XPATH, f"//label[.//*[normalize-space(text())='{label}']]//textarea"
        )
        button = lambda word: next(b for b in find("button") if word in b.text)  # noqa: E731
        shown = lambda: find("img[src*='-maps.png']")  # noqa: E731
        until(lambda _: len(find("input[type=checkbox]")) > 5)  # the network is there
        until(lambda _: find("input[type=file]"))[0].send_keys(str(photo))
        until(lambda _: find("img[src*='photo']"))
        box("texts, one a line").send_keys(Keys.CONTROL, "a")
        box("texts, one a line").send_keys("\n".join(TEXTS))
        button("Show the maps").click()
        until(lambda _: shown())
        assert "never saw 'zebra'" in box("notes").get_property("value")
        for word, name in (("PNG", "photo-maps.png"), ("NPZ", "photo-maps.npz")):
            button(word).click()
            until(lambda _, name=name: (tmp_path / "downloads" / name).exists())
        assert Image.open(tmp_path / "downloads" / "photo-maps.png").width > 900
        maps = np.load(tmp_path / "downloads" / "photo-maps.npz")
        assert maps["photo.png/eclip"].shape == (2, 60, 90) and list(maps["texts"]) == TEXTS
        if SCREENSHOT:
            browser.save_screenshot(SCREENSHOT)
        assert not [
            *(tmp_path / "own").glob("eclip-*/**/*-maps.*")
        ]  # a page that runs for long fills no disk
        box("texts, one a line").send_keys("s")  # no map of another text stays
        until(lambda _: not shown() and not box("notes").get_property("value"))
        find("input[aria-label=network]")[0].click()
        until(lambda _: [o for o in find("[role=option]") if o.text.strip().endswith("scenes-RN")])[0].click()
        refused = "methods that do not fit this network"
        until(lambda _: "bi_model reads the attention of OpenAI's ViTs" in box(refused).get_property("value"))
        assert len(find("input[type=checkbox]")) < len(REGISTRY)
        assert Path(tmp_path / "log").read_text().count("Traceback") == 0
