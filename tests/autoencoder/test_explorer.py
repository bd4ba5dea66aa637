"""The explorer: its weights give the model's images, and in a browser it shows what it promises."""

import base64
import gzip
import json
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from playwright.sync_api import Page, sync_playwright
from torch import nn

from pipeline.autoencoder.explorer import N_DIRECTIONS, N_WORST, explorer
from pipeline.autoencoder.model import Architecture, AutoEncoder
from pipeline.autoencoder.page import layers_of, run_half
from pipeline.autoencoder.splits import Split
from tests.helpers import CHROMIUM, random_split

TITLE = "a <img src=x onerror=alert(1)> & title"


def trained(k: int, regularizer: str = "batch_norm", hidden_sizes: tuple[int, ...] = (60, 20)) -> AutoEncoder:
    """Return a network as training leaves it: no statistic of its batch normalisation is 0 or 1."""
    torch.manual_seed(k)
    model = AutoEncoder(Architecture(k, hidden_sizes, regularizer, 0.3))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    return model.eval().requires_grad_(False)


def varied_pixels(n: int) -> np.ndarray:
    """Return n noise images, [n, 784] in 0…1, from nearly white to black, so that their codes differ."""
    return random_split(n, seed=3).pixels() * np.linspace(0.1, 1, n, dtype=np.float32)[:, None]


def content(page: str) -> tuple[dict, bytes]:
    """Return the head of the page's data, and what follows it."""
    found = re.search(r'<script id="data" type="text/plain">(.*?)</script>', page)
    assert found is not None
    data = gzip.decompress(base64.b64decode(found[1]))
    end = 4 + int.from_bytes(data[:4], "little")
    return json.loads(data[4:end]), data[end:]


@pytest.mark.parametrize("regularizer", ["batch_norm", "dropout"])
@pytest.mark.parametrize("hidden_sizes", [(), (60, 20)])
def test_the_pages_weights_give_the_models_images(regularizer: str, hidden_sizes: tuple[int, ...]) -> None:
    """Images agree with the model's to 1 % of their range, codes to 2 %."""
    model = trained(3, regularizer, hidden_sizes)
    pixels = varied_pixels(50)
    exact = model.encode(torch.from_numpy(pixels))
    codes = run_half(layers_of(model.encoder), pixels)
    assert np.abs(codes - exact.numpy()).max() < 0.02 * np.ptp(exact.numpy())
    images = run_half(layers_of(model.decoder), exact.numpy())
    by_model = model.decoder(exact).numpy()
    assert np.abs(images - by_model).max() < 0.01 * np.ptp(by_model)


def test_the_page_holds_the_first_and_the_worst_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has the first test images, those with the largest errors, and the errors of all of them by digit."""
    monkeypatch.setattr("pipeline.autoencoder.explorer.N_IMAGES", 200)
    model, test = trained(4), random_split(1000)
    page = explorer("title", model, test, 0.5)
    head, rest = content(page)
    image_mse = ((run_half(layers_of(model.decoder), codes_of(model, test)).clip(0, 1) - test.pixels()) ** 2).mean(
        axis=1
    )
    expected = np.union1d(np.arange(200), np.argsort(image_mse)[-N_WORST:])
    assert 200 < len(expected) < 200 + N_WORST
    assert (head["k"], head["n"], head["nTest"], head["nDirections"]) == (4, len(expected), 1000, N_DIRECTIONS)
    assert (head["mse"], head["exactMse"]) == (pytest.approx(image_mse.mean(), rel=1e-4), 0.5)
    assert head["digitMse"] == pytest.approx([image_mse[test.labels == digit].mean() for digit in range(10)], rel=1e-4)
    assert rest.endswith(test.images[expected].tobytes())


def codes_of(model: AutoEncoder, test: Split) -> np.ndarray:
    return run_half(layers_of(model.encoder), test.pixels())


def test_the_same_model_gives_the_same_bytes_and_the_title_is_text() -> None:
    """Two pages of one model are identical, and markup in the title is escaped."""
    page = explorer(TITLE, trained(1), random_split(30), 0.5)
    assert page == explorer(TITLE, trained(1), random_split(30), 0.5)
    assert "<img" not in page
    assert page.count("a &lt;img src=x onerror=alert(1)&gt; &amp; title") == 2


def test_the_default_networks_page_is_small() -> None:
    """With the default network and 10,000 images with as much ink as MNIST's, the page is at most 6 MB."""
    test = random_split(10_000)
    test.images[:, :, 6:] = 0  # four fifths of MNIST's pixels are empty
    model = trained(2, hidden_sizes=(628, 471, 315, 158))
    assert len(explorer("title", model, test, 0.5)) < 6_000_000


@pytest.fixture(scope="module")
def model() -> AutoEncoder:
    return trained(3)


@pytest.fixture(scope="module")
def page(model: AutoEncoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page of a model with three latent dimensions, opened from the disk."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    path.write_text(explorer(TITLE, model, random_split(300), 0.5))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=yes]")
        yield page
        browser.close()


def pixels_of(page: Page, canvas: str) -> np.ndarray:
    """Return what a canvas of the page shows, [784] in 0…1, 1 is ink."""
    code = f"[...document.getElementById('{canvas}').getContext('2d').getImageData(0, 0, 28, 28).data]"
    return 1 - np.array(page.evaluate(code))[::4] / 255


@pytest.mark.slow
def test_javascript_decodes_and_encodes_as_torch_does(page: Page, model: AutoEncoder) -> None:
    """On 100 codes and images, JavaScript and torch agree to 1 % of the range of pixels, 2 % of that of codes."""
    codes = np.random.default_rng(1).normal(size=(100, 3)).astype(np.float32)
    images = np.array(page.evaluate("codes => codes.map(code => [...decode(code)])", codes.tolist()))
    assert np.abs(images - model.decode(torch.from_numpy(codes)).numpy()).max() < 0.01
    pixels = varied_pixels(100)
    found = np.array(page.evaluate("images => images.map(image => [...encode(image)])", pixels.tolist()))
    exact = model.encode(torch.from_numpy(pixels)).numpy()
    assert np.abs(found - exact).max() < 0.02 * np.ptp(exact)


@pytest.mark.slow
def test_hovering_shows_the_image_and_dragging_decodes(page: Page) -> None:
    """A dot shows its own image, dragging and arrow keys decode another code, and digits can be hidden."""
    page.evaluate("choose(7)")
    box = page.locator("#plane").bounding_box()
    assert box is not None
    x, y = page.evaluate("toScreen(view.xs[7], view.ys[7])")
    page.mouse.move(box["x"] + x, box["y"] + y)
    n = page.evaluate("nearest(...toScreen(view.xs[7], view.ys[7]))")  # a dot may lie on top of another one
    shown = int(page.locator("#chosen").get_attribute("data-image") or -1)
    assert shown == n
    assert np.abs(pixels_of(page, "original") - random_split(300).pixels()[n]).max() < 0.01

    before = pixels_of(page, "decoded")
    page.mouse.down()
    page.mouse.move(box["x"] + 30, box["y"] + 40, steps=5)
    page.mouse.up()
    code = page.evaluate("[...state.cursor]")
    assert page.evaluate("toScreen(state.cursor[0], state.cursor[1])") == pytest.approx([30, 40], abs=1)
    after = pixels_of(page, "decoded")
    assert np.abs(after - before).max() > 0.01
    assert np.abs(after - np.array(page.evaluate("[...decode(state.cursor)]"))).max() < 0.01
    page.locator("#plane").press("ArrowRight")
    assert page.evaluate("state.cursor[0]") > code[0]

    page.locator("#legend").get_by_role("button", name="7").click()
    assert page.evaluate("nearest(...toScreen(view.xs[7], view.ys[7]))") != 7
    page.locator("#legend").get_by_role("button", name="7").click()


@pytest.mark.slow
def test_sliders_axes_and_interpolation(page: Page) -> None:
    """A slider moves one dimension, principal directions can be the axes, and A to B ends at both codes."""
    page.evaluate("choose(5)")
    slider = page.get_by_label("latent dimension 2", exact=True)
    highest = slider.get_attribute("max") or ""
    slider.fill(highest)
    before, after = page.evaluate("[[...codeOf(5)], [...state.cursor]]")
    assert after == pytest.approx([before[0], float(highest), before[2]], abs=0.001)
    page.get_by_label("Kind of axes").select_option("principal")
    assert page.evaluate("variance(view.xs) > variance(view.ys)".replace("variance", VARIANCE))
    page.get_by_label("Kind of axes").select_option("dimensions")
    for share, end in (("0", "a"), ("1", "b")):
        page.get_by_label("Position between A and B").fill(share)
        expected = np.array(page.evaluate(f"[...decode(codeOf(state.{end}))]"))
        assert np.abs(pixels_of(page, "mixLatent") - expected).max() < 0.01


VARIANCE = "((v) => v.reduce((s, x) => s + x * x, 0) / v.length - (v.reduce((s, x) => s + x, 0) / v.length) ** 2)"


@pytest.mark.slow
def test_a_stroke_moves_the_code(page: Page) -> None:
    """A drawn digit is encoded, and another stroke moves its star. The worst images are sorted by their errors."""
    page.locator("#drawing").scroll_into_view_if_needed()
    box = page.locator("#drawing").bounding_box()
    assert box is not None
    stars = []
    for points in ([(60, 50), (160, 50), (100, 190)], [(60, 120), (160, 120)]):
        page.mouse.move(box["x"] + points[0][0], box["y"] + points[0][1])
        page.mouse.down()
        for x, y in points[1:]:
            page.mouse.move(box["x"] + x, box["y"] + y, steps=8)
        page.mouse.up()
        stars.append(page.evaluate("[...state.star]"))
    assert stars[0] != stars[1]
    ink = pixels_of(page, "seen").reshape(28, 28)
    rows, columns = np.nonzero(ink > 0.5)
    assert 18 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 21
    assert abs((ink.sum(axis=1) @ np.arange(28)) / ink.sum() - 13.5) < 1
    errors = [float(text.split(": ")[1]) for text in page.locator("#worst button").all_inner_texts()]
    assert len(errors) == N_WORST
    assert errors == sorted(errors, reverse=True)


@pytest.mark.slow
def test_it_needs_no_network_and_prints_nothing(page: Page) -> None:
    """The page requests nothing but itself, logs nothing, shows its title as text, and fits a telephone."""
    assert page.context.browser is not None
    fresh = page.context.browser.new_page()
    happened: list[str] = []
    fresh.on("console", lambda message: happened.append(message.text))
    fresh.on("pageerror", lambda error: happened.append(str(error)))
    fresh.on("request", lambda request: happened.append(request.url))
    fresh.goto(page.url)
    fresh.wait_for_selector("html[data-ready=yes]")
    fresh.locator("#drawing").scroll_into_view_if_needed()
    fresh.locator("#drawing").click()
    assert happened == [page.url]
    assert fresh.locator("h1").inner_text() == TITLE
    assert fresh.locator("img").count() == 0
    fresh.set_viewport_size({"width": 390, "height": 800})
    assert fresh.evaluate("document.documentElement.scrollWidth") <= 390
    fresh.close()
