"""`make ui` in a real browser: its links open the table of runs, where runs are compared side by side."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from playwright.sync_api import Page, expect, sync_playwright

from pipeline.autoencoder.explorer import explorer
from pipeline.autoencoder.model import Architecture, AutoEncoder
from pipeline.params import Params
from pipeline.tracking import delivery, runs, ui
from pipeline.tracking.mlflow_app import ASSISTANT
from pipeline.tracking.store import open_store
from pipeline.tracking.ui import private_folder
from tests.helpers import (
    CHROMIUM,
    PROJECT,
    environment,
    free_port,
    git,
    random_split,
    run,
    small_params,
    start,
    wait_until,
    write_results,
)

SIZES = (2, 4, 8, 16, 32)


def made_up_mse(size: int) -> float:
    """Return an invented MSE that differs for every size in the three decimals that the page shows."""
    return round(0.06 - 0.001 * size, 4)


def log_row(folder: Path, params: Params) -> None:
    """Write a finished run with invented results through the pipeline's own tracking."""
    write_results(folder, params)
    metrics = {"test": {"mse": made_up_mse(params.model.bottleneck_size)}}
    Path("reports/evaluate.json").write_text(json.dumps(metrics))
    model = AutoEncoder(Architecture.from_params(params.model)).eval()
    Path("models/explorer.html").write_text(explorer("made-up images", model, random_split(20), 0.5))
    runs.write_evaluation(params)


@pytest.fixture
def page_and_text(tmp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Page, str]]:
    """A browser page, and the command's output for a store with five runs, four of them in two sweeps."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    Path("data/prepared").mkdir(parents=True)
    Path("data/prepared/test.safetensors").write_text("made up")
    for size in SIZES:
        log_row(tmp_dir, small_params(model__bottleneck_size=size))
    assert delivery.deliver_all(tmp_dir) == []
    client, experiment_id = open_store()
    for row in client.search_runs([experiment_id], f"params.`model.bottleneck_size` != '{SIZES[-1]}'"):
        client.set_tag(row.info.run_id, "sweep", "another | bob's sizes")
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "pipeline.tracking.ui", "--port", str(port)],
        cwd=tmp_dir,
        env=environment(PYTHONPATH=str(PROJECT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    text = "".join(itertools.takewhile(lambda line: line != "Ctrl-C ends it.\n", server.stdout))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page(viewport={"width": 2400, "height": 2400}), text
        browser.close()
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 128 + signal.SIGTERM
    assert server.stdout.read() == ""  # no line for each request
    with socket.create_server(("127.0.0.1", port)):  # no MLflow is left on it
        pass


@pytest.mark.slow
def test_the_links_show_runs_that_compare(page_and_text: tuple[Page, str]) -> None:
    """The last link opens the table of all runs; each other link shows a sweep's runs as bar charts of the test MSE.

    The table has columns for the test MSE and the bottleneck size. Selected runs are compared with parallel
    coordinates, a scatter plot, and a table of test MSE and size. The token in the links is required, and MLflow's
    assistant is blocked.
    """
    page, text = page_and_text
    assert re.findall(r"^(.*) is at http", text, re.MULTILINE) == ['Sweep "bob\'s sizes"', "Sweep 'another'", "MLflow"]
    sweep, _, table = re.findall(r"http://127\S+", text)
    assert len(sweep) < 220
    base = table.partition("?")[0]
    assert [status(base + path) for path in ("", "api/2.0/mlflow/experiments/search", "?token=x")] == [403] * 3
    assert status(base + "health") == 200

    page.goto(sweep)
    expect(page.get_by_text("test/mse").first).to_be_visible(timeout=60_000)
    in_sweep = sorted(map(made_up_mse, SIZES[:-1]))
    wait_until(lambda: in_sweep in [sorted(trace["x"]) for trace in plotted(page, "bar")])
    assert page.evaluate(f"fetch('{ASSISTANT}/config').then(answer => answer.status)") == 404

    page.goto("about:blank")
    page.goto(table)
    for size in SIZES:
        expect(page.get_by_text(f"digits k={size} seed=0", exact=True)).to_be_visible(timeout=60_000)
    for column in ("test/mse", "valid/best_mse", "model.bottleneck_size", "train.seed"):
        expect(page.get_by_role("columnheader", name=column).first).to_be_visible()
    cells = [cell.inner_text() for cell in page.get_by_role("gridcell").all()]
    assert {f"{made_up_mse(size):.3f}" for size in SIZES} <= set(cells)
    page.get_by_role("checkbox").first.click()  # all rows
    page.get_by_role("button", name="Compare").first.click()
    expect(page.get_by_text(f"Comparing {len(SIZES)} Runs")).to_be_visible(timeout=60_000)
    sizes_in_a_row = "\t".join(["model.bottleneck_size", *map(str, sorted(SIZES, reverse=True))])
    test_mse_in_a_row = r"\s+".join(f"{made_up_mse(size):.3f}" for size in sorted(SIZES, reverse=True))
    expect(page.locator("body")).to_contain_text("test/mse", timeout=60_000)
    shown = page.locator("body").inner_text()
    assert sizes_in_a_row in shown
    assert re.search(rf"\b{test_mse_in_a_row}\b", shown)
    expect(page.locator(".parcoords .axis-title").first).to_be_visible(timeout=60_000)
    page.get_by_role("tab", name="Scatter Plot").click()
    test_mse = sorted(map(made_up_mse, SIZES))
    wait_until(lambda: test_mse in [sorted(trace["y"]) for trace in plotted(page, "scattergl")])


@pytest.mark.slow
def test_mlflows_pages_have_explorer_description_and_models(page_and_text: tuple[Page, str]) -> None:
    """In MLflow's viewer the explorer decodes. The runs have a description, the models the test MSE and its data."""
    page, text = page_and_text
    client, experiment_id = open_store()
    run_id = client.search_runs([experiment_id])[0].info.run_id
    page.goto(re.findall(r"http://127\S+", text)[-1])
    expect(page.get_by_text("digits k=2 seed=0", exact=True)).to_be_visible(timeout=60_000)
    address = page.url.partition("#")[0]
    page.goto(f"{address}#/experiments/{experiment_id}/runs/{run_id}/artifacts/models/explorer.html")
    frame = page.frame_locator("iframe")  # MLflow's sandbox
    expect(frame.locator("html[data-ready=yes]")).to_be_attached(timeout=60_000)
    expect(frame.locator("h1")).to_have_text("made-up images")
    page.frames[-1].evaluate("setCursor(codeOf(9))")
    assert page.frames[-1].evaluate("decode(state.cursor).length") == 784

    page.goto("about:blank")
    page.goto(re.findall(r"http://127\S+", text)[-1])
    expect(page.get_by_text("digits k=2 seed=0", exact=True)).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Autoencoders for MNIST.")).to_be_visible(timeout=20_000)

    page.goto(f"{address}#/experiments/{experiment_id}/models?workflowType=machine_learning")
    expect(page.get_by_role("columnheader", name="test/mse")).to_be_visible(timeout=60_000)
    expect(page.get_by_role("columnheader", name="Dataset: digits-test")).to_be_visible()
    cells = [cell.inner_text() for cell in page.get_by_role("gridcell").all()]
    assert {f"{made_up_mse(size):.3f}" for size in SIZES} <= set(cells)


def test_where_the_view_cannot_be_saved_the_table_opens_without_it(
    results: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this user may not save the view, or metrics.yaml is damaged, the link opens MLflow's own table."""
    plain = "/runs?workflowType=machine_learning&searchFilter="
    client, experiment_id = open_store()
    assert "viewStateShareKey" in ui.links(client, experiment_id)["MLflow"]

    def refusing(*_: str) -> None:
        raise MlflowException("Permission denied", PERMISSION_DENIED)

    with monkeypatch.context() as patched:
        patched.setattr(client, "set_experiment_tag", refusing)
        assert ui.links(client, experiment_id)["MLflow"].endswith(plain)
    (results / "metrics.yaml").write_text("[")
    assert ui.links(client, experiment_id)["MLflow"].endswith(plain)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGHUP, 128 + signal.SIGHUP)])
def test_ctrl_c_and_a_closed_terminal_end_it_without_a_traceback(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """The signal reaches the whole process group, as from a terminal; nothing is printed, and no server is left."""
    (tmp_path / ".dvc").mkdir()
    port = free_port()
    ui = start(tmp_path, "pipeline.tracking.ui", "--port", str(port), PYTHONPATH=str(PROJECT))
    assert ui.stdout is not None
    assert any(line == "Ctrl-C ends it.\n" for line in ui.stdout)
    os.killpg(ui.pid, number)
    _, errors = ui.communicate(timeout=60)
    assert ui.returncode == code
    assert "Traceback" not in errors
    assert "Warning" not in errors
    socket.create_server(("127.0.0.1", port)).close()


def status(address: str) -> int:
    try:
        return int(urlopen(address, timeout=20).status)
    except HTTPError as error:
        return error.code


def plotted(page: Page, kind: str) -> list[dict[str, Any]]:
    """Return the page's Plotly traces of one kind, because scatter plots are drawn on a canvas without text."""
    figures = page.evaluate("[...document.querySelectorAll('.js-plotly-plot')].flatMap(figure => figure.data ?? [])")
    return [trace for trace in figures if trace["type"] == kind]


def test_a_servers_links_hold_no_password(
    tmp_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Links to a server have its host, but neither user nor password."""
    (tmp_dir / ".dvc").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:hunter2@host:5000/base/")
    monkeypatch.setattr("sys.argv", ["ui"])
    monkeypatch.setattr(ui, "open_store", lambda: (None, "1"))
    monkeypatch.setattr(ui, "links", lambda *_: {"MLflow": "#/experiments/1"})
    ui.main()
    assert capsys.readouterr().out == "MLflow is at http://host:5000/base/#/experiments/1\n"


def test_the_page_for_the_browser_lies_in_the_repository(tmp_path: Path) -> None:
    """The page is in the repository, where a snap's browser can read it, other users cannot, and git ignores it."""
    with private_folder(tmp_path) as folder:
        assert Path(folder).stat().st_mode & 0o777 == 0o700
        assert Path(folder).parent == tmp_path / ".dvc/tmp"
    assert git(PROJECT, "check-ignore", ".dvc/tmp/x").strip() == ".dvc/tmp/x"


@pytest.mark.slow
def test_a_server_that_is_down_is_an_error(tmp_path: Path) -> None:
    """A tracking server that does not answer gives a one-line error."""
    (tmp_path / ".dvc").mkdir()
    address = f"http://127.0.0.1:{free_port()}"
    done = run(tmp_path, "pipeline.tracking.ui", ok=False, PYTHONPATH=str(PROJECT), MLFLOW_TRACKING_URI=address)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the MLflow store cannot be opened:")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_port_in_use_is_an_error(tmp_path: Path) -> None:
    """If the port is in use, the error suggests another one."""
    (tmp_path / ".dvc").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(tmp_path, "pipeline.tracking.ui", "--port", str(port), ok=False, PYTHONPATH=str(PROJECT))
    assert done.returncode == 2
    assert f"port {port} is in use; choose another: make ui PORT={port + 1}" in done.stderr


@pytest.mark.slow
def test_invalid_port_is_an_error(tmp_path: Path) -> None:
    """A port above 65535 gives a one-line error."""
    (tmp_path / ".dvc").mkdir()
    done = run(tmp_path, "pipeline.tracking.ui", "--port", "70000", ok=False, PYTHONPATH=str(PROJECT))
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot listen on 127.0.0.1, port 70000:")
