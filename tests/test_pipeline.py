"""Run DVC's commands on the whole pipeline: what reruns, what a fresh clone shows, where experiments are stored."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import edited, environment, git, rows, run, small_params, start, wait_until, write_params


def would_run(project: Path) -> list[str]:
    """Return the stages that `dvc repro` would run now."""
    return re.findall(r"Running stage '(\w+)'", run(project, "dvc", "repro", "--dry").stdout)


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        ("params.yaml", "train_ratio: 0.8", "train_ratio: 0.7", ["prepare"]),
        ("params.yaml", "bottleneck_size: 2", "bottleneck_size: 3", ["pca_probes", "train", "evaluate"]),
        ("params.yaml", "n_layers: 2", "n_layers: 3", ["train", "evaluate"]),
        ("params.yaml", "lr: 0.005", "lr: 0.01", ["train"]),
        ("params.yaml", "manifold_size: 5", "manifold_size: 6", ["evaluate"]),
        ("pipeline/autoencoder/figures.py", '"""The figures', '"""Figures', ["evaluate"]),
        ("pipeline/tracking/runs.py", '"""One MLflow', '"""An MLflow', []),
        ("pipeline/core/errors.py", '"error: {error}"', '"the error: {error}"', []),
        ("pipeline/autoencoder/trainer.py", '"""The training loop', '"""A training loop', ["train"]),
    ],
)
def test_a_change_reruns_what_reads_it(project: Path, file: str, old: str, new: str, stages: list[str]) -> None:
    """A change reruns only the stages that read the parameter or module. Later stages follow only if files change."""
    assert would_run(project) == []
    with edited(project / file, old, new):
        assert would_run(project) == stages


def test_a_new_parameter_of_evaluate_reruns_only_evaluate(project: Path) -> None:
    """Adding a key to params.yaml, to the validator and to evaluate triggers no training."""
    with (
        edited(project / "params.yaml", "evaluate:\n", "evaluate:\n  dpi: 100\n"),
        edited(project / "pipeline/params.py", '    """What the figures show."""\n', "    dpi: int\n"),
        edited(
            project / "pipeline/evaluate.py",
            "        k = model.",
            "        print(params.evaluate.dpi)\n        k = model.",
        ),
    ):
        assert would_run(project) == ["evaluate"]


def test_git_sees_only_results(project: Path) -> None:
    """A run changes only dvc.lock and reports/ and leaves no large untracked files."""
    changed = {line[3:].split("/")[0] for line in git(project, "status", "--porcelain").splitlines()}
    assert changed <= {"params.yaml", "dvc.lock", "reports"}


def test_a_fresh_clone_shows_metrics_plots_and_params_diff(project: Path, tmp_path: Path) -> None:
    """A fresh clone without a cache shows metrics, figures and the difference of parameters."""
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(project), "clone")
    for name in ("params.yaml", "dvc.lock"):
        shutil.copy(project / name, clone / name)
    shutil.copytree(project / "reports", clone / "reports", dirs_exist_ok=True)
    git(clone, "add", "-A")
    git(clone, "commit", "-q", "-m", "results")

    shown = json.loads(run(clone, "dvc", "metrics", "show", "--json").stdout)[""]["data"]
    expected = json.loads((project / "reports/evaluate.json").read_text())
    assert shown["reports/evaluate.json"]["data"] == expected
    page = Path(run(clone, "dvc", "plots", "show", "-o", "page").stdout.strip().removeprefix("file://"))
    html = page.read_text()
    assert "latent.png" in html
    assert "valid_mse" in html
    difference = run(clone, "dvc", "params", "diff", "HEAD~1", "HEAD", "--md").stdout
    assert "| params.yaml | train.n_epochs | 20 | 2 |" in re.sub(r" +", " ", difference)


def test_bad_parameters_lose_nothing(project: Path, tmp_path: Path) -> None:
    """`dvc repro` stops with an error, and the commands in its message restore the results."""
    model = (project / "models/autoencoder.safetensors").read_bytes()
    shutil.copytree(project / "reports", tmp_path / "reports")
    with edited(project / "params.yaml", "lr: 0.005", "lr: -1"):
        done = run(project, "dvc", "repro", ok=False)
    assert done.returncode != 0
    assert "train.lr: must be greater than 0, got -1" in done.stderr
    assert "git restore params.yaml dvc.lock reports && dvc checkout" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    run(project, "dvc", "checkout")
    shutil.copytree(tmp_path / "reports", project / "reports", dirs_exist_ok=True)  # as `git restore` would
    assert (project / "models/autoencoder.safetensors").read_bytes() == model
    assert would_run(project) == []


@pytest.mark.slow
def test_experiments_from_temporary_folders_land_in_the_main_store(toy_workspace: Path, tmp_path: Path) -> None:
    """Every experiment's run and its metrics are in the main store.

    The experiments are `exp run` from a subfolder with a stale DVC_ROOT, `--temp`, and `--queue` with two workers. A
    sweep counts all of them as done and tags their runs.
    """
    project = toy_workspace
    git(tmp_path, "init", "-q", "elsewhere")
    run(project / "models", "dvc", "exp", "run", "../dvc.yaml", DVC_ROOT=str(tmp_path / "elsewhere"))
    run(project, "dvc", "exp", "run", "--temp", "-S", "model.degree=3")
    for degree in (4, 5):
        run(project, "dvc", "exp", "run", "--queue", "-S", f"model.degree={degree}")
    # The workers inherit the output streams. With a pipe, the call would return only after the last worker ends.
    subprocess.run(
        [sys.executable, "-m", "dvc", "queue", "start", "-j", "2"],
        cwd=project,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    wait_for_queue(project)
    found = rows(project)
    degrees = sorted(int(row.data.params["model.degree"]) for row in found)
    assert degrees == [2, 3, 4, 5]
    for row in found:
        assert row.info.status == "FINISHED"
        assert "test/mse" in row.data.metrics
        assert row.info.artifact_uri.startswith((project / "mlartifacts").as_uri())
        assert row.data.tags["dvc.experiment"]
    sweep = run(project, "pipeline.sweep", "-S", "model.degree=2,3,4,5,6", "--name", "degrees")
    assert "5 trials, 4 done, 1 to run" in sweep.stdout
    assert [row.data.tags["sweep"] for row in rows(project)] == ["degrees"] * 5


def wait_for_queue(project: Path) -> None:
    for _ in range(300):
        status = run(project, "dvc", "queue", "status").stdout
        assert "Failed" not in status, status
        if "Queued" not in status and "Running" not in status:
            return
        time.sleep(2)
    raise AssertionError(f"the queue did not end:\n{status}")


@pytest.mark.slow
def test_dvc_shows_a_training_while_it_runs(workspace: Path) -> None:
    """While `dvc repro` trains, DVC has the learning curve and the metrics of the epochs so far."""
    write_params(small_params(train__n_epochs=2000), workspace)
    history = workspace / "reports/history.csv"
    history.unlink()
    dvc = start(workspace, "dvc", "repro", "train", PIPELINE_TRACKING="0")
    try:
        wait_until(lambda: history.exists() and len(history.read_text().splitlines()) > 3)
        shown = run(workspace, "dvc", "plots", "show", "reports/history.csv", "--json").stdout
        metrics = run(workspace, "dvc", "metrics", "show", "--json").stdout
        assert dvc.poll() is None
    finally:
        os.killpg(dvc.pid, signal.SIGKILL)
        dvc.communicate()
    ((plot,),) = json.loads(shown)["data"].values()
    epochs = {int(value["epoch"]) for value in plot["content"]["data"]["values"]}
    assert epochs == set(range(1, len(epochs) + 1))
    assert 3 <= len(epochs) < 2000
    assert json.loads(metrics)[""]["data"]["reports/train.json"]["data"]["valid"]["best_epoch"] < 2000
