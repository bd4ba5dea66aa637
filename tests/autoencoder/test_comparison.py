"""The comparison: the same images by every model, and the table's numbers, in a browser."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Page, sync_playwright

from pipeline.autoencoder.comparison import N_PER_DIGIT, comparison
from pipeline.autoencoder.model import AutoEncoder
from tests.autoencoder.test_explorer import pixels_of, trained
from tests.helpers import CHROMIUM, random_split

TITLE = "a <img src=x onerror=alert(1)> title"
SIZES = (2, 16, 8)
CONTENT = {
    "data": "MNIST",
    "axis": "bottleneck size",
    "metric": "MSE",
    "select": "valid MSE",
    "report": "test MSE",
    "headings": ["test MSE", "parameters"],
    "rows": [
        {
            "label": f"k = {k}",
            "value": k,
            "cells": [f"{0.1 / k:.5f}", f"{1000 * k:,}"],
            "lines": {"PCA": 0.2 / k, "mean image": None},
            "runs": {f"<b>k={k}</b>": "http://127.0.0.1:9/run" if k == 2 else None},
            "select": [0.11 / k, 0.001],
            "report": None if k == 8 else [0.1 / k, None],
        }
        for k in SIZES
    ],
}
TEST = random_split(300)


@pytest.fixture(scope="module")
def models() -> dict[str, AutoEncoder]:
    return {f"k = {k}": trained(k) for k in SIZES}


@pytest.fixture(scope="module")
def path(models: dict[str, AutoEncoder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("comparison") / "index.html"
    path.write_text(comparison(TITLE, models, CONTENT, TEST))
    return path


def test_the_same_models_give_the_same_bytes(models: dict[str, AutoEncoder], path: Path) -> None:
    """Two pages of the same models are identical, and markup in the title is escaped."""
    assert comparison(TITLE, models, CONTENT, TEST) == path.read_text()
    assert "<img" not in path.read_text()


@pytest.fixture(scope="module")
def page(path: Path) -> Iterator[Page]:
    """The page, opened from the disk. Its attribute `happened` lists what it requested and printed."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        happened: list[str] = []
        page.on("console", lambda message: happened.append(message.text))
        page.on("pageerror", lambda error: happened.append(str(error)))
        page.on("request", lambda request: happened.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=yes]")
        yield page
        assert happened == [path.as_uri()]
        browser.close()


@pytest.mark.slow
def test_every_size_decodes_its_own_codes(page: Page, models: dict[str, AutoEncoder]) -> None:
    """The page's decoders give each model's reconstructions of the first images of each digit, to 1 %."""
    shown = np.concatenate([np.flatnonzero(TEST.labels == digit)[:N_PER_DIGIT] for digit in range(10)])
    pixels = torch.from_numpy(TEST.pixels()[shown])
    for size, model in enumerate(models.values()):
        found = np.array(page.evaluate(f"[...Array(data.n).keys()].map(n => [...decode({size}, codeOf({size}, n))])"))
        assert np.abs(found - model(pixels).numpy()).max() < 0.01


@pytest.mark.slow
def test_the_slider_chooses_a_size(page: Page) -> None:
    """The chosen size's row, numbers and runs are shown. A run with an address is a link, and names are text."""
    page.locator("#size").fill("1")
    assert page.locator("#large span").all_inner_texts() == ["original", "k = 16"]
    assert page.locator("#all span").all_inner_texts() == ["original", "k = 2", "k = 16", "k = 8"]
    assert (
        "valid MSE 0.006875 ± 0.0010, test MSE 0.006250, PCA 0.01250; runs: <b>k=16</b>"
        in page.locator("#tip").inner_text()
    )
    assert page.locator("#tip a").count() == 0
    page.locator("#size").fill("0")
    assert page.locator("#tip a").get_attribute("href") == "http://127.0.0.1:9/run"
    assert page.locator("#tip a").inner_text() == "<b>k=2</b>"


@pytest.mark.slow
def test_the_chart_has_all_lines(page: Page) -> None:
    """The chart has both metrics with their labels, PCA's line, and error bars; a missing value leaves a gap."""
    texts = page.locator("#chart svg text").all_text_contents()
    assert {"valid MSE", "test MSE", "PCA", "bottleneck size", "MSE", "2", "8", "16"} <= set(texts)
    assert "mean image" not in texts
    assert page.locator("#chart path").count() == 3
    assert page.locator("#chart circle").count() == 2


@pytest.mark.slow
def test_mixed_codes_end_at_both_images(page: Page) -> None:
    """At the ends of the slider each size decodes the image's own code."""
    for share, end in (("0", "from"), ("1", "to")):
        page.locator("#mix").fill(share)
        expected = page.evaluate(f"[...decode(1, codeOf(1, Number(document.getElementById('{end}').value)))]")
        page.evaluate("document.querySelectorAll('#mixed canvas')[1].id = 'second'")
        assert np.abs(pixels_of(page, "second") - np.array(expected)).max() < 0.01


@pytest.mark.slow
def test_the_table_is_sorted_by_a_heading(page: Page) -> None:
    """Numbers are sorted as numbers, and a second click reverses them."""
    first = page.locator("#rows td:first-child")
    assert first.all_inner_texts() == ["2", "16", "8"]
    page.locator("th", has_text="parameters").click()
    assert first.all_inner_texts() == ["2", "8", "16"]
    page.locator("th", has_text="parameters").click()
    assert first.all_inner_texts() == ["16", "8", "2"]
    assert page.locator("b").count() == 0
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
