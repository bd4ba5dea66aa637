"""`make compare` on made-up runs in a real store."""

import json
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from dvc_render import VegaRenderer
from matplotlib.collections import LineCollection
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from pipeline.core.errors import PipelineError
from pipeline.core.metrics import METRICS_PATH
from pipeline.experiment import EXPERIMENT
from pipeline.sweep import compare
from pipeline.sweep.curves import FOLDER, RUNS_PATH, Curve, find_runs, load_runs, split_into_curves, summarise
from pipeline.tracking.store import open_store
from tests.helpers import PROJECT, git, rows, run, small_params, write_params

BY = "model.bottleneck_size"
AddRun = Callable[..., str]


@pytest.fixture
def add_run(tmp_dir: Path, store: str) -> AddRun:
    """Return a function that adds a run to the store of an empty repository, the working folder, and returns its id."""
    (tmp_dir / ".dvc").mkdir()
    write_params(small_params(), tmp_dir)
    shutil.copy(PROJECT / METRICS_PATH, tmp_dir)
    client, experiment_id = open_store()

    def add(k: int, *arguments: Any, **changes: Any) -> str:
        return add_to(client, experiment_id, k, *arguments, **changes)

    return add


def add_to(
    client: MlflowClient,
    experiment_id: str,
    k: int,
    seed: int = 0,
    mse: float = 0.01,
    code: str = "a" * 16,
    sweep: str = "s",
    *,
    evaluation_code: str = "b" * 16,
    valid_mse: float | None = None,
    status: str = "FINISHED",
    without: tuple[str, ...] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
    **changes: Any,
) -> str:
    params = small_params(model__bottleneck_size=k, train__seed=seed, **changes).flat()
    metrics = {
        "test/mse": mse,
        "test/psnr_db": -10 * np.log10(mse),
        "test/pca_mse": 0.06 / k,
        "test/mean_image_mse": 0.07,
        "test/ratio_to_pca": mse / (0.06 / k),
        "valid/best_mse": 1.1 * mse if valid_mse is None else valid_mse,
        **{f"accuracy/{name}/codes": 0.5 + 0.1 * seed for name in ("logistic_regression", "nearest_neighbours")},
        **{f"accuracy/{name}/pca": 0.4 for name in ("logistic_regression", "nearest_neighbours")},
        **{f"accuracy/{name}/pixels": 0.9 for name in ("logistic_regression", "nearest_neighbours")},
        "codes/effective_rank": 1.5,
        "model/n_parameters": 1000 * k,
        "time/training_seconds": 60 + seed,
    }
    run_id = client.create_run(experiment_id).info.run_id
    tags = {
        "code": code,
        "evaluation.code": evaluation_code,
        "sweep": sweep,
        "env.device": "cpu",
        "env.hardware": "a CPU",
        "env.threads": "2",
    }
    tags |= {"env.torch": "2.15.0"} | {f"env.{name}": value for name, value in environment.items()}
    client.log_batch(
        run_id,
        [Metric(name, value, 0, 0) for name, value in metrics.items() if name not in without],
        [Param(name, str(value)) for name, value in params.items()],
        [RunTag(name, value) for name, value in tags.items()],
    )
    client.set_terminated(run_id, status)
    return run_id


def curves(by: str = BY, sweep: str | None = None) -> tuple[list[Curve], list[str]]:
    return split_into_curves(find_runs(sweep), by, small_params().flat())


def test_means_and_deviations_by_hand(add_run: AddRun) -> None:
    """The table has the mean and sample standard deviation over seeds; a single seed has no deviation."""
    for k, seed, mse in ((2, 0, 0.03), (2, 1, 0.05), (4, 0, 0.02)):
        add_run(k, seed, mse)
    table = summarise(curves()[0], BY)
    assert list(table[BY]) == [2, 4]
    assert list(table["n_seeds"]) == [2, 1]
    assert list(table["test_mse"]) == pytest.approx([0.04, 0.02])
    assert list(table["valid_mse"]) == pytest.approx([0.044, 0.022])
    assert table["test_mse_std"][0] == pytest.approx(0.02 / 2**0.5)
    assert table["valid_mse_std"][0] == pytest.approx(0.022 / 2**0.5)
    assert np.isnan(table["test_mse_std"][1])
    assert list(table["pca_mse"]) == pytest.approx([0.03, 0.015])
    assert list(table["training_seconds"]) == pytest.approx([60.5, 60])
    text = compare.as_markdown(table, curves()[0], BY)
    assert "| 2 | 2 | 0.04400 ± 0.01556 | 0.04000 ± 0.01414 | 14.12 ± 1.57 | 0.03000 | 1.333 ± 0.471 |" in text
    assert "| 1.333 ± 0.471 | 55.0% ± 7.1% (40.0%) | 55.0% ± 7.1% (40.0%) |" in text
    assert "| 55.0% ± 7.1% (40.0%) | 1.5 ± 0.0 | 2,000 | 60 ± 1 s |" in text
    assert "| 4 | 1 | **0.02200** | 0.02000 | 16.99 | 0.01500 | 1.333 | 50.0% (40.0%) |" in text
    assert "| 50.0% (40.0%) | 1.5 | 4,000 | 60 s |" in text
    assert "; the accuracy of logistic regression on pixels: 90.0%; that of nearest neighbours" in text
    assert "Trained on a CPU, 2 threads, torch 2.15.0." in text


def test_only_comparable_runs_are_on_one_curve(add_run: AddRun) -> None:
    """Other parameters or code make another curve, labelled by them; unfinished runs and single values are not used."""
    for k in (2, 4, 8):
        add_run(k)
    for status in ("KILLED", "FAILED", "RUNNING"):
        add_run(16, status=status)
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
    assert left_out == [f"1 run(s), {BY} 4: code dddddd; train_ratio=0.5; a curve needs two values"]
    figure = compare.draw_metrics(summarise(found, BY), found, BY)
    names = figure.axes[1].get_legend_handles_labels()[1]
    assert {"autoencoder", "autoencoder, code cccccc", "autoencoder, n_epochs=7"} <= set(names)


def test_the_workspaces_own_curve_is_the_first(add_run: AddRun) -> None:
    """Among curves with equally many values, the one with the values of params.yaml comes first, even if older."""
    for changes in ({}, {"train__schedule": "constant", "train__weight_decay": 0.0}):
        for k in (2, 4):
            add_run(k, **changes)
    assert [curve.label for curve in curves()[0]] == ["main", "schedule=constant; weight_decay=0"]


def test_another_environment_makes_another_curve(add_run: AddRun) -> None:
    """Another processor, torch version, device, number of threads or precision chosen by `auto` makes a new curve."""
    others = [{"hardware": "a GPU", "device": "cuda"}, {"torch": "2.11.0"}, {"threads": "4"}, {"precision": "bfloat16"}]
    for k in (2, 4, 8):
        add_run(k, environment={"precision": "float32"}, train__precision="auto", train__threads="auto")
    for seed, environment in enumerate(others, start=1):
        for k in (2, 4):
            of_this = {"precision": "float32"} | environment
            add_run(k, seed, environment=of_this, train__precision="auto", train__threads="auto")
    found, left_out = curves()
    assert {curve.label: list(curve.runs[BY]) for curve in found} == {
        "main": [2, 4, 8],
        "device=cuda; hardware=a GPU": [2, 4],
        "torch=2.11.0": [2, 4],
        "threads=4": [2, 4],
        "precision=bfloat16": [2, 4],
    }
    assert left_out == []


def test_what_the_axis_sets_does_not_split_the_curve(add_run: AddRun) -> None:
    """Devices, threads and precisions can be compared unless one value of the parameter ran on different ones."""
    add_run(2, environment={"device": "cuda", "hardware": "a GPU"}, train__device="cuda", sweep="devices")
    add_run(2, train__device="cpu", sweep="devices")
    assert [len(curve.runs) for curve in curves("train.device", "devices")[0]] == [2]
    for threads in (1, 2):
        add_run(2, environment={"threads": str(threads)}, train__threads=threads, sweep="threads")
    assert [len(curve.runs) for curve in curves("train.threads", "threads")[0]] == [2]
    for precision in ("float32", "bfloat16"):
        add_run(2, environment={"precision": precision}, train__precision=precision, sweep="precisions")
    assert [len(curve.runs) for curve in curves("train.precision", "precisions")[0]] == [2]
    for seed, used in ((1, "4"), (2, "8")):
        add_run(2, seed, environment={"threads": used}, train__lr=0.1, train__threads="auto", sweep="threads | auto")
    assert [len(curve.runs) for curve in curves("train.threads", "threads")[0]] == [2]
    mixed = "2 run(s): some have the same train.threads, but not the same threads"
    assert curves("train.threads", "threads")[1] == [mixed]
    with pytest.raises(PipelineError, match=rf"no two of 2 run.* another --by; left out: {re.escape(mixed)}"):
        curves("train.threads", "auto")


def test_a_run_without_the_tag_has_the_precision_of_its_parameter(add_run: AddRun) -> None:
    """Runs with and without the tag are on one curve; what `auto` chose for an older run is unknown."""
    add_run(2)
    add_run(4, environment={"precision": "float32"})
    assert [len(curve.runs) for curve in curves()[0]] == [2]
    for k in (2, 4):
        add_run(k, train__precision="auto")
    assert [curve.label for curve in curves()[0]] == ["main", "precision=auto; precision=unknown"]


def test_a_curve_has_the_name_of_its_sweep(add_run: AddRun) -> None:
    """A curve is labelled with the one sweep that has exactly its runs; otherwise with what differs."""
    for k in (2, 4, 8):
        add_run(k, sweep="sizes | all")
    for k in (2, 4):
        add_run(k, sweep="original | all", train__lr=0.1)
        add_run(k, sweep="one | another | all", train__lr=0.2)
        add_run(k, sweep="all" if k == 2 else "half | all", train__lr=0.3)
    found, _ = curves()
    assert {curve.label: curve.difference for curve in found} == {
        "main": "",
        "original": "lr=0.1",
        "lr=0.2": "lr=0.2",
        "lr=0.3": "lr=0.3",
    }
    text = compare.as_markdown(summarise(found, BY), found, BY)
    assert "| original | 2 |" in text
    assert "\n`original`: lr=0.1.\n" in text
    assert "`lr=0.2`:" not in text


def test_validation_chooses(add_run: AddRun) -> None:
    """The lowest mean validation MSE of each curve is bold, even if another value has a lower test MSE."""
    for lr, seed, valid_mse, mse in ((0.1, 0, 0.020, 0.050), (0.1, 1, 0.030, 0.060), (0.2, 0, 0.029, 0.010)):
        add_run(2, seed, mse, valid_mse=valid_mse, train__lr=lr)
    (curve,), _ = curves("train.lr")
    table = summarise([curve], "train.lr")
    lines = compare.as_markdown(table, [curve], "train.lr").splitlines()
    assert lines[0].startswith("| train.lr | seeds | valid MSE | test MSE |")
    assert lines[2].startswith("| 0.1 | 2 | **0.02500 ± 0.00707** | 0.05500 ± 0.00707 |")
    assert lines[3].startswith("| 0.2 | 1 | 0.02900 | 0.01000 |")


def test_the_figure_draws_validation_and_test(add_run: AddRun) -> None:
    """Each panel shows its own metric with its deviations; the test panel also shows PCA and the mean image."""
    for k, seed, valid_mse, mse in ((2, 0, 0.04, 0.05), (2, 1, 0.06, 0.09), (4, 0, 0.02, 0.03)):
        add_run(k, seed, mse, valid_mse=valid_mse)
    found, _ = curves()
    valid, test = compare.draw_metrics(summarise(found, BY), found, BY).axes
    (deviation_of_valid,), (deviation_of_test,) = (
        [line for line in ax.collections if isinstance(line, LineCollection)] for ax in (valid, test)
    )
    assert valid.get_title().startswith("validation")
    assert np.asarray(valid.lines[0].get_ydata()) == pytest.approx([0.05, 0.02])
    assert deviation_of_valid.get_segments()[0][:, 1] == pytest.approx([0.05 - 0.02 / 2**0.5, 0.05 + 0.02 / 2**0.5])
    assert test.get_title().startswith("test")
    assert np.asarray(test.lines[0].get_ydata()) == pytest.approx([0.07, 0.03])
    assert deviation_of_test.get_segments()[0][:, 1] == pytest.approx([0.07 - 0.04 / 2**0.5, 0.07 + 0.04 / 2**0.5])
    drawn = {line.get_label(): np.asarray(line.get_ydata()) for line in test.lines}
    assert drawn["PCA of the same size"] == pytest.approx([0.03, 0.015])
    assert drawn["mean image"] == pytest.approx([0.07, 0.07])
    assert "mean image" not in {line.get_label() for line in valid.lines}


def test_two_quantities_have_two_axes(add_run: AddRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the form names no common unit, each panel has its metric's label and its own scale."""
    for k, mse in ((2, 0.05), (4, 50.0)):
        add_run(k, 0, mse, valid_mse=0.01 * k)
    found, _ = curves()
    one = compare.draw_metrics(summarise(found, BY), found, BY).axes
    assert one[0].get_ylim() == one[1].get_ylim()
    assert [ax.get_ylabel() for ax in one] == [EXPERIMENT.metric_label, ""]
    monkeypatch.setattr(compare, "EXPERIMENT", replace(EXPERIMENT, metric_label=""))
    two = compare.draw_metrics(summarise(found, BY), found, BY).axes
    assert two[0].get_ylim()[1] < 1 < 50 < two[1].get_ylim()[1]
    assert [ax.get_ylabel() for ax in two] == ["valid MSE", "test MSE"]


def test_an_experiment_with_one_data_set_needs_no_parameter_for_it(
    add_run: AddRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `data_parameter` the table and the figure have the title of `data_name`."""
    add_run(2, 0, 0.05)
    add_run(4, 0, 0.03)
    found, _ = curves()
    monkeypatch.setattr(
        compare, "EXPERIMENT", replace(EXPERIMENT, data_parameter=None, data_name=lambda _: "my table", data_title=str)
    )
    table = summarise(found, BY)
    assert "over training seeds, on my table. Choose by" in compare.as_markdown(table, found, BY)
    assert compare.draw_metrics(table, found, BY).get_suptitle().startswith("my table, ")


def test_a_run_without_some_metrics_leaves_cells_empty(add_run: AddRun) -> None:
    """A metric that an older version or an outage did not deliver leaves its cell empty."""
    lacking = ("model/n_parameters", "test/pca_mse", "test/ratio_to_pca", "valid/best_mse", "time/training_seconds")
    add_run(2, without=lacking)
    add_run(4)
    found, _ = curves()
    table = summarise(found, BY)
    lines = compare.as_markdown(table, found, BY).splitlines()
    assert lines[2] == "| 2 | 1 |  | 0.01000 | 20.00 |  |  | 50.0% (40.0%) | 50.0% (40.0%) | 1.5 |  |  |"
    assert "| 4,000 | 60 s |" in lines[3]
    assert ",4000," in table.to_csv(float_format="%.6g")
    compare.draw_metrics(table, found, BY)


def test_the_newest_run_of_a_trial_counts(add_run: AddRun) -> None:
    """Two runs with the same parameters, seed and code do not count as two seeds."""
    add_run(2, mse=0.05)
    add_run(4)
    time.sleep(0.01)
    newest = add_run(2, mse=0.04)
    (curve,), left_out = curves()
    assert left_out == ["1 run(s) superseded by a newer run of the same trial"]
    assert curve.runs["run"].iloc[0] == newest
    assert len(curve.runs) == 2


def test_any_parameter_can_be_the_axis(add_run: AddRun) -> None:
    """Numbers, names and parameters of the data can be the axis; --sweep restricts it to the runs of one sweep."""
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
    table = summarise([curve], "train.schedule")
    figure = compare.draw_metrics(table, [curve], "train.schedule")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["constant", "one_cycle"]


def test_nothing_to_compare_fails_with_one_line(add_run: AddRun) -> None:
    """An empty store, an unknown parameter and runs that cannot be compared raise an error that names the cause."""
    with pytest.raises(PipelineError, match="no finished run with the metric test/mse; `make sweep`"):
        find_runs(None)
    add_run(2)
    with pytest.raises(PipelineError, match=r"^no finished run is of the sweep 'x'; there are 's'$"):
        find_runs("x")
    with pytest.raises(PipelineError, match=r"the runs have no such parameter; choose one of data\.dataset, "):
        curves("train.rate")
    with pytest.raises(PipelineError, match=r"no two of 1 run\(s\) differ only in model\.bottleneck_size"):
        curves()
    with pytest.raises(PipelineError, match=r"runs\.csv is missing"):
        load_runs(RUNS_PATH)
    FOLDER.mkdir(parents=True)
    RUNS_PATH.write_text("run,name,started\n")
    with pytest.raises(PipelineError, match=r"runs\.csv has no column code, device, .*; without --redraw"):
        load_runs(RUNS_PATH)


def test_other_evaluation_code_is_on_the_same_curve_and_noted(add_run: AddRun) -> None:
    """Runs evaluated by other code stay on the curve, and the table notes it, also when it is made from runs.csv."""
    add_run(2)
    add_run(4)
    assert "evaluated by" not in compare.as_markdown(summarise(curves()[0], BY), curves()[0], BY)
    add_run(8, evaluation_code="c" * 16)
    found, left_out = curves()
    assert left_out == []
    assert len(found) == 1
    said = "The runs were evaluated by 2 versions of the code, so that test metrics may not compare"
    assert said in compare.as_markdown(summarise(found, BY), found, BY)
    FOLDER.mkdir(parents=True)
    found[0].runs.to_csv(RUNS_PATH, index=False)
    found, _ = split_into_curves(load_runs(RUNS_PATH), BY, small_params().flat())
    assert said in compare.as_markdown(summarise(found, BY), found, BY)


def test_runs_without_the_evaluations_code_are_read(add_run: AddRun) -> None:
    """A runs.csv from an older version, without the column `evaluation_code`, can be read."""
    for k in (2, 4):
        add_run(k)
    FOLDER.mkdir(parents=True)
    find_runs(None).drop(columns="evaluation_code").to_csv(RUNS_PATH, index=False)
    found, _ = split_into_curves(load_runs(RUNS_PATH), BY, small_params().flat())
    assert "evaluated by" not in compare.as_markdown(summarise(found, BY), found, BY)


def test_a_hash_that_looks_like_a_number_stays_text(add_run: AddRun) -> None:
    """A code hash or run id that consists of digits is read from runs.csv as text."""
    for code in ("1e5" + "0" * 13, "12" * 8):
        for k in (2, 4):
            add_run(k, code=code)
    runs = find_runs(None)
    runs.loc[0, "run"] = "7" * 32
    FOLDER.mkdir(parents=True)
    runs.to_csv(RUNS_PATH, index=False)
    read = load_runs(RUNS_PATH)
    assert read["code"].tolist() == runs["code"].tolist()
    assert read["run"].tolist() == runs["run"].tolist()
    found, _ = split_into_curves(read, BY, small_params().flat())
    assert {curve.label for curve in found} in ({"main", "code 1e5000"}, {"main", "code 121212"})


def test_a_fresh_clone_redraws_the_same_without_a_store(add_run: AddRun, tmp_path: Path) -> None:
    """Table and figure are redrawn byte for byte from runs.csv only; reconstructions of other runs are deleted."""
    for k in (2, 4, 8):
        for seed in (0, 1):
            add_run(k, seed, 0.08 / k + 0.001 * seed, model__n_layers=None, model__hidden_sizes=[64, 32])
            add_run(k, seed, 0.1 / k + 0.001 * seed, train__schedule="constant")
    store = f"sqlite:///{tmp_path}/store.db"
    FOLDER.mkdir(parents=True)
    compare.RECONSTRUCTIONS_PATH.write_bytes(b"of another data set")
    said = run(tmp_path, "pipeline.sweep.compare", PYTHONPATH=str(PROJECT), MLFLOW_TRACKING_URI=store).stdout
    assert "12 runs on 2 curve(s)" in said
    assert "the models are not shown: " in said
    assert not compare.RECONSTRUCTIONS_PATH.exists()
    paths = (compare.TABLE_PATH, compare.MARKDOWN_PATH, compare.FOLDER / "test_mse.png")
    before = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    gone = "http://127.0.0.1:9"
    run(tmp_path, "pipeline.sweep.compare", "--redraw", PYTHONPATH=str(PROJECT), MLFLOW_TRACKING_URI=gone)
    assert [path.read_bytes() for path in paths] == before


def test_the_committed_study_is_that_of_its_runs(tmp_dir: Path) -> None:
    """The committed table.csv and table.md, which the study shows, come from runs.csv: six sizes with three seeds."""
    FOLDER.mkdir(parents=True)
    shutil.copy(PROJECT / RUNS_PATH, RUNS_PATH)
    for name in ("params.yaml", METRICS_PATH):
        shutil.copy(PROJECT / name, name)
    run(tmp_dir, "pipeline.sweep.compare", "--redraw", PYTHONPATH=str(PROJECT))
    for path in (compare.TABLE_PATH, compare.MARKDOWN_PATH):
        assert path.read_text() == (PROJECT / path).read_text()
    assert compare.MARKDOWN_PATH.read_text() in (PROJECT / "docs/bottleneck-study.md").read_text()
    main = pd.read_csv(compare.TABLE_PATH).query("curve == 'main'")
    assert (list(main["bottleneck_size"]), set(main["n_seeds"])) == ([2, 4, 8, 16, 32, 64], {3})
    assert (main["test_mse"] < main["pca_mse"]).all()
    smallest = main.iloc[0]
    said = f"Over three seeds on an AMD EPYC the MSE is {smallest['test_mse']:.4f} ± {smallest['test_mse_std']:.4f}"
    assert said in " ".join((PROJECT / "README.md").read_text().split())


def test_dvc_draws_the_curves_of_the_table() -> None:
    """Every field that DVC's plot names is a column of the table, and the curves have different symbols."""
    (entry,) = (
        plot
        for item in yaml.safe_load((PROJECT / "dvc.yaml").read_text())["plots"]
        if isinstance(item, dict)
        for name, plot in item.items()
        if name == "Test MSE against the bottleneck size"
    )
    ((path, columns),) = entry["y"].items()
    table = pd.read_csv(PROJECT / path, dtype=str)
    points = [
        row | {"dvc_inferred_y_value": row[column], "field": column, "filename": path, "rev": "workspace"}
        for column in columns
        for row in table.to_dict("records")
    ]
    spec = VegaRenderer(
        points,
        "plot",
        template=entry["template"],
        template_dir=str(PROJECT / ".dvc/plots"),
        x=entry["x"],
        y="dvc_inferred_y_value",
        anchors_y_definitions=[{"filename": path, "field": column} for column in columns],
    ).get_filled_template()
    encoding = spec["encoding"]
    drawn = spec["data"]["values"]
    fields = {name: part["field"] for name, part in encoding.items() if "field" in part}
    assert all(field in row for field in fields.values() for row in drawn)
    assert fields["x"] == "bottleneck_size"
    assert fields["shape"] == fields["detail"] == "curve"
    assert {row["curve"] for row in drawn} == {"main", "original"}
    assert all(part["field"] in drawn[0] for part in encoding.get("tooltip", []))


@pytest.mark.slow
def test_the_ten_digits_at_every_size(project: Path, tmp_path: Path) -> None:
    """The table has the sizes of the workspace and of a DVC experiment. Figure and page show the store's models."""
    here = shutil.copytree(project, tmp_path / "sizes", symlinks=True)
    run(here, "dvc", "exp", "run", "--temp", "-S", f"{BY}=3")
    said = run(here, "pipeline.sweep.compare").stdout
    assert (here / compare.RECONSTRUCTIONS_PATH).stat().st_size > 10_000
    assert "the same test data at every size: reports/compare/index.html" in said
    assert said.endswith("This replaced the committed comparison. To bring it back: git restore reports/compare\n")
    assert git(here, "check-ignore", str(compare.PAGE_PATH)).strip() == str(compare.PAGE_PATH)
    assert "scikit-learn&#x27;s digits: what does the bottleneck size" in (here / compare.PAGE_PATH).read_text()
    table = pd.read_csv(here / compare.TABLE_PATH)
    assert list(table["bottleneck_size"]) == [2, 3]
    ours = {float(row.data.params[BY]): row.data.metrics["test/mse"] for row in rows(here)}
    assert dict(zip(table["bottleneck_size"], table["test_mse"], strict=True)) == pytest.approx(ours, rel=1e-5)


def test_parameters_that_differ_from_params_yaml_are_noted(add_run: AddRun) -> None:
    """Table's notes name them, because `main` may be the curve of another recipe."""
    for k in (2, 4):
        add_run(k, train__n_epochs=7, evaluate__manifold_size=9)
    (curve,), _ = curves()
    changed = compare.changed_parameters(curve, BY)
    assert changed == {"train.n_epochs": "7"}
    said = compare.as_markdown(summarise([curve], BY), [curve], BY, changed)
    assert "Unlike in params.yaml: `train.n_epochs=7`." in said
    for k in (2, 4):
        add_run(k, train__n_epochs=small_params().train.n_epochs)
    own = next(curve for curve in curves()[0] if compare.changed_parameters(curve, BY) == {})
    assert "Unlike" not in compare.as_markdown(summarise([own], BY), [own], BY, {})


def test_the_page_gets_the_tables_numbers(add_run: AddRun) -> None:
    """Each size has mean ± std over its seeds, its lines, cells and runs; what is missing is None."""
    for seed, mse in ((0, 0.01), (1, 0.03)):
        add_run(2, seed, mse)
    add_run(4, 0, 0.005, without=("test/pca_mse",))
    curves_, _ = curves()
    content = compare.page_content(curves_[0], summarise(curves_, BY), BY)
    assert (content["select"], content["report"], content["data"]) == ("valid MSE", "test MSE", "scikit-learn's digits")
    two, four = content["rows"]
    assert (two["label"], two["value"], four["label"]) == ("k = 2", 2, "k = 4")
    assert two["report"] == pytest.approx((0.02, 0.02 / 2**0.5))
    assert two["select"] == pytest.approx((0.022, 0.022 / 2**0.5))
    assert two["lines"]["PCA of the same size"] == pytest.approx(0.03)
    assert two["cells"][content["headings"].index("test MSE")] == "0.02000 ± 0.01414"
    assert len(two["runs"]) == 2
    assert set(two["runs"].values()) == {None}
    assert four["report"] == (0.005, None)
    assert four["lines"]["PCA of the same size"] is None
    json.dumps(content, allow_nan=False)


N_RUNS = 1000


@pytest.mark.slow
def test_a_thousand_runs_take_less_than_ten_seconds(tmp_dir: Path, store: str) -> None:
    """`make compare` with 1000 runs takes less than 10 s, or less than three times the start-up on a slow machine."""
    (tmp_dir / ".dvc").mkdir()
    write_params(small_params(), tmp_dir)
    shutil.copy(PROJECT / METRICS_PATH, tmp_dir)
    client, experiment_id = open_store()
    copy_run(Path(store.removeprefix("sqlite:///")), add_to(client, experiment_id, 1), N_RUNS - 1)
    settings: dict[str, Any] = {"PYTHONPATH": str(PROJECT), "MLFLOW_TRACKING_URI": store}
    started = time.perf_counter()
    run(tmp_dir, "pipeline.sweep.compare", "--sweep", "unknown", ok=False, **settings)
    compared = time.perf_counter()
    said = run(tmp_dir, "pipeline.sweep.compare", **settings).stdout
    ended = time.perf_counter()
    assert f"{N_RUNS} runs on 1 curve(s)" in said
    assert ended - compared < max(10, 3 * (compared - started))


def copy_run(database: Path, run_id: str, n_copies: int) -> None:
    """Copy a run in MLflow's tables, with 50 bottleneck sizes and other seeds. MLflow itself needs 50 ms for each."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for table in ("runs", "params", "metrics", "latest_metrics", "tags"):
            rows = connection.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", [run_id])
            names = [column[0] for column in rows.description]
            whole = [dict(zip(names, row, strict=True)) for row in rows]
            copies = [
                row | {"run_uuid": f"{run_id[:24]}{number:08x}"} | changes_of(row, number)
                for number in range(1, n_copies + 1)
                for row in whole
            ]
            values = ", ".join(f":{name}" for name in names)
            connection.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values})", copies)


def changes_of(row: dict[str, Any], number: int) -> dict[str, str]:
    """Return what makes the copy's parameters those of another trial."""
    values = {BY: 1 + number % 50, "train.seed": number // 50}
    return {"value": str(values[row["key"]])} if row.get("key") in values else {}
