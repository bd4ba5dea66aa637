"""`make compare`: made-up runs in a real store, and what is made of them."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from pipeline import compare
from pipeline.errors import PipelineError
from pipeline.store import open_store
from tests.helpers import PROJECT, rows, run, small_params, write_params

BY = "model.bottleneck_size"
AddRun = Callable[..., str]


@pytest.fixture
def add_run(tmp_dir: Path, store: str) -> AddRun:
    """Puts a run into the store of an otherwise empty repository, which is the working folder; returns its id."""
    (tmp_dir / ".dvc").mkdir()
    write_params(small_params(), tmp_dir)
    client, experiment_id = open_store()

    def add(k: int, seed: int = 0, mse: float = 0.01, code: str = "a" * 16, sweep: str = "s", **changes: Any) -> str:
        return add_to(client, experiment_id, k, seed, mse, code, sweep, **changes)

    return add


def add_to(
    client: MlflowClient, experiment_id: str, k: int, seed: int, mse: float, code: str, sweep: str, **changes: Any
) -> str:
    params = small_params(model__bottleneck_size=k, train__seed=seed, **changes).flat()
    metrics = {
        "test/mse": mse,
        "test/psnr_db": -10 * np.log10(mse),
        "test/pca_mse": 0.06 / k,
        "test/mean_image_mse": 0.07,
        "test/ratio_to_pca": mse / (0.06 / k),
        "valid/best_mse": mse,
        **{f"accuracy/{name}/codes": 0.5 + 0.1 * seed for name in ("logistic_regression", "nearest_neighbours")},
        **{f"accuracy/{name}/pca": 0.4 for name in ("logistic_regression", "nearest_neighbours")},
        **{f"accuracy/{name}/pixels": 0.9 for name in ("logistic_regression", "nearest_neighbours")},
        "codes/effective_rank": 1.5,
        "model/n_parameters": 1000 * k,
        "time/training_seconds": 60 + seed,
    }
    run_id = client.create_run(experiment_id).info.run_id
    tags = {"code": code, "sweep": sweep, "env.hardware": "a CPU", "env.threads": "2", "env.torch": "2.15.0"}
    client.log_batch(
        run_id,
        [Metric(name, value, 0, 0) for name, value in metrics.items()],
        [Param(name, str(value)) for name, value in params.items()],
        [RunTag(name, value) for name, value in tags.items()],
    )
    client.set_terminated(run_id)
    return run_id


def curves(by: str = BY, sweep: str | None = None) -> tuple[list[compare.Curve], list[str]]:
    return compare.split_into_curves(compare.find_runs(sweep), by, small_params().flat())


def test_means_and_deviations_by_hand(add_run: AddRun) -> None:
    """Sample standard deviation over seeds; none for a single one."""
    for k, seed, mse in ((2, 0, 0.03), (2, 1, 0.05), (4, 0, 0.02)):
        add_run(k, seed, mse)
    table = compare.summarise(curves()[0], BY)
    assert list(table[BY]) == [2, 4]
    assert list(table["n_seeds"]) == [2, 1]
    assert list(table["test_mse"]) == pytest.approx([0.04, 0.02])
    assert table["test_mse_std"][0] == pytest.approx(0.02 / 2**0.5)
    assert np.isnan(table["test_mse_std"][1])
    assert list(table["pca_mse"]) == pytest.approx([0.03, 0.015])
    assert list(table["training_seconds"]) == pytest.approx([60.5, 60])
    text = compare.as_markdown(table, curves()[0], BY)
    assert "| 2 | 2 | 0.04000 ± 0.01414 | 14.12 ± 1.57 | 0.03000 | 1.333 ± 0.471 | 55.0% ± 7.1% (40.0%) |" in text
    assert "| 55.0% ± 7.1% (40.0%) | 1.5 ± 0.0 | 2,000 | 60 ± 1 s |" in text
    assert "| 4 | 1 | 0.02000 | 16.99 | 0.01500 | 1.333 | 50.0% (40.0%) |" in text
    assert "| 50.0% (40.0%) | 1.5 | 4,000 | 60 s |" in text
    assert "; the accuracy of logistic regression on pixels: 90.0%; that of nearest neighbours" in text
    assert "Trained on a CPU, 2 threads, torch 2.15.0." in text


def test_only_runs_that_compare_are_on_one_curve(add_run: AddRun) -> None:
    """Other parameters are a curve of their own, labelled by them; other code too; a lone point is left out."""
    for k in (2, 4, 8):
        add_run(k)
    for k in (2, 4):
        add_run(k, train__n_epochs=7, evaluate__manifold_size=9)
    for code in ("b" * 16, "c" * 16):
        for k in (2, 4):
            add_run(k, code=code)
    add_run(4, code="d" * 16, data__train_ratio=0.5)
    found, left_out = curves()
    assert [(curve.label, list(curve.runs[BY])) for curve in found] == [
        ("main", [2, 4, 8]),
        ("code cccccc", [2, 4]),
        ("code bbbbbb", [2, 4]),
        ("n_epochs=7", [2, 4]),
    ]
    assert left_out == [f"1 run(s), {BY} 4: code dddddd; train_ratio=0.5"]
    figure = compare.draw_mse(compare.summarise(found, BY), found, BY)
    names = figure.axes[0].get_legend_handles_labels()[1]
    assert {"autoencoder", "autoencoder,\ncode cccccc", "autoencoder,\nn_epochs=7"} <= set(names)


def test_the_workspaces_own_curve_is_the_first(add_run: AddRun) -> None:
    """Of curves with as many points: the one with the values of params.yaml, though another is newer."""
    for changes in ({}, {"train__schedule": "constant", "train__weight_decay": 0.0}):
        for k in (2, 4):
            add_run(k, **changes)
    assert [curve.label for curve in curves()[0]] == ["main", "schedule=constant; weight_decay=0"]


def test_of_one_point_the_newest_run_counts(add_run: AddRun) -> None:
    """The same parameters, seed and code twice are not two seeds."""
    add_run(2, mse=0.05)
    add_run(4)
    time.sleep(0.01)
    newest = add_run(2, mse=0.04)
    (curve,), left_out = curves()
    assert left_out == ["1 run(s) of points that a newer run has too"]
    assert curve.runs["run"].iloc[0] == newest
    assert len(curve.runs) == 2


def test_any_parameter_can_be_the_axis(add_run: AddRun) -> None:
    """Numbers and names alike, and what decides the data; only runs of a sweep, if it is named."""
    for ratio in (0.5, 0.8):
        add_run(2, data__train_ratio=ratio, sweep="it's | another")
    (curve,), left_out = curves("data.train_ratio", "it's")
    assert (list(curve.runs["data.train_ratio"]), left_out) == ([0.5, 0.8], [])
    for threads in (2, "auto"):
        add_run(2, train__threads=threads, sweep="threads")
    assert list(curves("train.threads", "threads")[0][0].runs["train.threads"]) == ["2", "auto"]
    for schedule in ("one_cycle", "constant"):
        add_run(2, train__schedule=schedule, sweep="schedules")
    add_run(4)
    (curve,), left_out = curves("train.schedule", "schedules")
    assert list(curve.runs["train.schedule"]) == ["constant", "one_cycle"]
    assert left_out == []
    table = compare.summarise([curve], "train.schedule")
    figure = compare.draw_mse(table, [curve], "train.schedule")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["constant", "one_cycle"]


def test_what_cannot_be_compared_is_one_message(add_run: AddRun) -> None:
    """An empty store, an unknown parameter, and runs that have nothing to compare."""
    with pytest.raises(PipelineError, match="no finished run; `make sweep`"):
        compare.find_runs(None)
    add_run(2)
    with pytest.raises(PipelineError, match="no finished run with the tag sweep = 'x'"):
        compare.find_runs("x")
    with pytest.raises(PipelineError, match=r"the runs have no such parameter, but data\.dataset, "):
        curves("train.rate")
    with pytest.raises(PipelineError, match=r"no two runs differ in model\.bottleneck_size"):
        curves()
    with pytest.raises(PipelineError, match=r"runs\.csv is missing"):
        compare.load_runs(compare.RUNS_PATH)


def test_a_fresh_clone_redraws_the_same_without_a_store(add_run: AddRun, tmp_path: Path) -> None:
    """From runs.csv alone, byte for byte: table and figure."""
    for k in (2, 4, 8):
        for seed in (0, 1):
            add_run(k, seed, 0.08 / k + 0.001 * seed, model__n_layers=None, model__hidden_sizes=[64, 32])
            add_run(k, seed, 0.1 / k + 0.001 * seed, train__schedule="constant")
    store = f"sqlite:///{tmp_path}/store.db"
    said = run(tmp_path, "pipeline.compare", PYTHONPATH=str(PROJECT), MLFLOW_TRACKING_URI=store).stdout
    assert "12 runs on 2 curve(s)" in said
    assert "reconstructions.png is left as it is" in said
    paths = (compare.TABLE_PATH, compare.MARKDOWN_PATH, compare.FIGURE_PATH)
    before = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    gone = "http://127.0.0.1:9"
    run(tmp_path, "pipeline.compare", "--redraw", PYTHONPATH=str(PROJECT), MLFLOW_TRACKING_URI=gone)
    assert [path.read_bytes() for path in paths] == before


def test_the_committed_study_is_that_of_its_runs(tmp_dir: Path) -> None:
    """From runs.csv come table.csv and table.md, which the write-up shows; three seeds of six sizes, of one code."""
    compare.FOLDER.mkdir(parents=True)
    shutil.copy(PROJECT / compare.RUNS_PATH, compare.RUNS_PATH)
    shutil.copy(PROJECT / "params.yaml", "params.yaml")
    run(tmp_dir, "pipeline.compare", "--redraw", PYTHONPATH=str(PROJECT))
    for path in (compare.TABLE_PATH, compare.MARKDOWN_PATH):
        assert path.read_text() == (PROJECT / path).read_text()
    assert compare.MARKDOWN_PATH.read_text() in (PROJECT / "docs/bottleneck-study.md").read_text()
    main = pd.read_csv(compare.TABLE_PATH).query("curve == 'main'")
    assert (list(main[BY]), set(main["n_seeds"])) == ([2, 4, 8, 16, 32, 64], {3})
    assert (main["test_mse"] < main["pca_mse"]).all()
    smallest = main.iloc[0]
    said = f"over three it is {smallest['test_mse']:.4f} ± {smallest['test_mse_std']:.4f}"
    assert said in " ".join((PROJECT / "README.md").read_text().split())


@pytest.mark.slow
def test_the_ten_digits_at_every_size(project: Path, tmp_path: Path) -> None:
    """The table has the size in params.yaml and those of DVC's experiments; the weights come out of the store."""
    here = shutil.copytree(project, tmp_path / "sizes", symlinks=True)
    for k in (3, 4):
        run(here, "dvc", "exp", "run", "--temp", "-S", f"{BY}={k}")
    run(here, "pipeline.compare")
    assert (here / compare.RECONSTRUCTIONS_PATH).stat().st_size > 10_000
    table = pd.read_csv(here / compare.TABLE_PATH)
    assert list(table[BY]) == [2, 3, 4]
    ours = {float(row.data.params[BY]): row.data.metrics["test/mse"] for row in rows(here)}
    assert dict(zip(table[BY], table["test_mse"], strict=True)) == pytest.approx(ours, rel=1e-5)


@pytest.mark.slow
def test_a_thousand_runs_take_less_than_ten_seconds(tmp_dir: Path, store: str) -> None:
    """Start-up, reading them all, table and figure; on a machine slow to start, less than three times that."""
    (tmp_dir / ".dvc").mkdir()
    write_params(small_params(), tmp_dir)
    client, experiment_id = open_store()
    for number in range(1000):
        add_to(client, experiment_id, 1 + number % 50, number // 50, 0.05 / (1 + number % 50), "a" * 16, "s")
    settings: dict[str, Any] = {"PYTHONPATH": str(PROJECT), "MLFLOW_TRACKING_URI": store}
    started = time.perf_counter()
    run(tmp_dir, "pipeline.compare", "--sweep", "unknown", ok=False, **settings)
    compared = time.perf_counter()
    said = run(tmp_dir, "pipeline.compare", **settings).stdout
    ended = time.perf_counter()
    assert "1000 runs on 1 curve(s)" in said
    assert ended - compared < max(10, 3 * (compared - started))
