"""Test another experiment on the same machinery: examples/classifier as a separate project."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
import yaml

from pipeline.core.checkpoint import SECONDS_BETWEEN
from tests.helpers import PROJECT, edited, environment, environment_with_make, git, run, start, wait_until

pytestmark = pytest.mark.slow
N_EPOCHS = 60


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the new project after its first run, with the results committed."""
    folder = tmp_path_factory.mktemp("second") / "project"
    script = [sys.executable, str(PROJECT / "examples/new_project.py"), str(folder)]
    subprocess.run(script, env=environment(), check=True)
    run(folder, "pipeline.run")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "results")
    return folder


def test_its_machinery_is_this_projects(second: Path) -> None:
    """All files of the machinery are identical to this project's."""
    for folder in ("core", "tracking", "sweep", "review", "server"):
        for path in (PROJECT / "pipeline" / folder).glob("*.py"):
            assert (second / "pipeline" / folder / path.name).read_bytes() == path.read_bytes()


def test_its_own_checks_pass(second: Path, tmp_path: Path) -> None:
    """`make lint` and `make test` pass in the new project."""
    for target in ("lint", "test"):
        done = subprocess.run(
            ["make", target], cwd=second, env=environment_with_make(tmp_path / target), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_is_in_mlflow_with_its_metrics_and_its_model(second: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has the metrics of the history and the JSON files, and its model can be loaded and called."""
    (row,) = rows_of(second)
    assert row.info.status == "FINISHED"
    assert row.info.run_name == "hidden=16 seed=0"
    evaluation = json.loads((second / "reports/evaluate.json").read_text())["test"]
    assert row.data.metrics["test/accuracy"] == evaluation["accuracy"] > 0.8
    assert {"train/log_loss", "valid/log_loss", "time/rows_per_second"} <= row.data.metrics.keys()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{second}/mlflow.db")
    assert row.outputs is not None
    (model,) = row.outputs.model_outputs
    loaded = mlflow.pytorch.load_model(f"models:/{model.model_id}")
    assert loaded(torch.zeros(3, 13)).shape == (3, 3)


def test_a_killed_training_resumes_to_the_same_bytes(second: Path) -> None:
    """A training killed with SIGKILL resumes to the bytes of an uninterrupted one, in its run, with each epoch once."""
    model = second / "models/classifier.safetensors"
    with edited(second / "params.yaml", f"n_epochs: {N_EPOCHS}", "n_epochs: 600"):
        run(second, "dvc", "repro", PIPELINE_TRACKING="0")
        expected = model.read_bytes()
        module, often = second / "pipeline/core/checkpoint.py", "SECONDS_BETWEEN = 0.0"
        with edited(module, f"SECONDS_BETWEEN = {SECONDS_BETWEEN}", often):
            dvc = start(second, "dvc", "repro", "--force", "--single-item", "train")
            wait_until(lambda: list((second / ".checkpoints").glob("*.state")))
            os.killpg(dvc.pid, signal.SIGKILL)
            dvc.communicate()
            done = run(second, "dvc", "repro", "--force", "--single-item", "train")
        assert "resuming after epoch" in done.stdout
        assert model.read_bytes() == expected
    wait_until(lambda: rows_of(second)[0].info.status == "FINISHED")
    killed = rows_of(second)[0]
    history = mlflow.MlflowClient(f"sqlite:///{second}/mlflow.db").get_metric_history(
        killed.info.run_id, "valid/log_loss"
    )
    assert [value.step for value in history] == list(range(1, 601))
    git(second, "checkout", "-q", "--", ".")
    run(second, "dvc", "checkout")


def test_a_sweep_is_compared(second: Path) -> None:
    """A sweep over two parameters runs, and the comparison's table has the example's metrics."""
    run(second, "pipeline.sweep", "-S", "model.hidden_size=4,16 train.seed=1")
    run(second, "pipeline.sweep.compare")
    table = (second / "reports/compare/table.md").read_text()
    assert "| model.hidden_size | seeds | validation log-loss | test log-loss | test accuracy | parameters |" in table
    assert "| 4 | 1 |" in table
    assert "the share of the largest class:" in table
    assert not (second / "reports/compare/reconstructions.png").exists()
    assert "MLflow holds the workspace's run" in run(second, "pipeline.tracking.sync").stdout
    git(second, "clean", "-fdq", "reports")


def test_a_review_judges_it(second: Path) -> None:
    """By the example's metrics.yaml, a worse log-loss fails, and metrics on other data are not compared."""
    for change, verdict in (
        ({"n_epochs": 1}, "test.log_loss"),
        ({"valid_ratio": 0.3}, "valid.best_log_loss was measured on other data"),
    ):
        values = yaml.safe_load((second / "params.yaml").read_text())
        for section in values.values():
            section.update({name: value for name, value in change.items() if name in section})
        (second / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        run(second, "dvc", "repro", PIPELINE_TRACKING="0")
        git(second, "commit", "-q", "-a", "-m", "change")
        done = run(second, "pipeline.review", "HEAD~1", "HEAD", ok=False)
        assert done.returncode == 1, done.stdout + done.stderr
        assert f"❌ {verdict}" in done.stdout or verdict in done.stdout.split("\n")[2]
        git(second, "reset", "-q", "--hard", "HEAD~1")
        run(second, "dvc", "checkout")


def test_it_is_verified(second: Path) -> None:
    """Verifying the project in a clone reports every output as identical."""
    assert "every output is bit-identical" in run(second, "pipeline.review.verify").stdout


def rows_of(folder: Path) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("table-classifier")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))
