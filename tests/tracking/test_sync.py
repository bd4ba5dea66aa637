"""`make sync`: MLflow has a run for the workspace, wherever DVC took the results from."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.helpers import PROJECT, artifacts, git, rows, run, small_params, stored, write_results


def snapshot(uri: str) -> list[object]:
    """Return everything about a store's runs that a second sync could change."""
    client = MlflowClient(uri)
    return [
        (
            row.info.run_id,
            row.info.status,
            row.info.end_time,
            row.data.tags,
            {name: len(client.get_metric_history(row.info.run_id, name)) for name in row.data.metrics},
            artifacts(client, row.info.run_id),
            len(row.outputs.model_outputs) if row.outputs else 0,
        )
        for row in stored(uri)
    ]


def test_a_new_store_gets_the_workspaces_run_once(toy: Path, tmp_path: Path, empty_store: Path) -> None:
    """A new store gets one complete run with dvc.lock, and a second sync changes nothing."""
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'other.db')}"
    said = run(toy, "pipeline.tracking.sync", MLFLOW_TRACKING_URI=uri).stdout
    (row,) = stored(uri)
    assert f"MLflow holds the workspace's run: {row.info.run_name}, {row.info.run_id}" in said
    assert (row.info.status, row.data.tags["replayed"]) == ("FINISHED", "true")
    (own,) = [row for row in rows(toy) if row.data.tags.get("replayed") is None][-1:]
    theirs = {name: value for name, value in own.data.metrics.items() if not name.startswith("time/")}
    assert row.data.metrics == theirs
    local = MlflowClient(uri).download_artifacts(row.info.run_id, "dvc.lock")
    assert Path(local).read_text() == (toy / "dvc.lock").read_text()
    before = snapshot(uri)
    run(toy, "pipeline.tracking.sync", MLFLOW_TRACKING_URI=uri)
    assert snapshot(uri) == before


@pytest.mark.slow
def test_a_fresh_clone_after_dvc_pull_gets_a_run(toy: Path, tmp_path: Path) -> None:
    """In a clone after `dvc pull`, where no stage ran, sync creates the run."""
    committed = shutil.copytree(toy, tmp_path / "committed", symlinks=True)
    run(committed, "dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "remote"))
    run(committed, "dvc", "push")
    git(tmp_path, "clone", "-q", str(committed), "clone")
    clone = tmp_path / "clone"
    assert "no results of a complete run" in run(clone, "pipeline.tracking.sync").stdout
    run(clone, "dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "remote"))
    run(clone, "dvc", "pull")
    run(clone, "pipeline.tracking.sync")
    (row,) = rows(clone)
    assert "test/mse" in row.data.metrics
    assert "models/polynomial.safetensors" in artifacts(MlflowClient(f"sqlite:///{clone}/mlflow.db"), row.info.run_id)


@pytest.mark.slow
def test_experiments_get_their_commit_and_stay_linked(toy: Path, tmp_path: Path) -> None:
    """A run of `dvc exp run` gets the experiment's commit and dvc.lock.

    `exp apply`, the run cache and a return to earlier parameters lead to the existing runs.
    """
    here = shutil.copytree(toy, tmp_path / "experiments", symlinks=True)
    run(here, "pipeline.tracking.sync")
    n_before = len(rows(here))
    run(here, "dvc", "exp", "run", "--temp", "-n", "wavy", "-S", "model.degree=3")
    run(here, "pipeline.tracking.sync")
    found = rows(here)
    assert len(found) == n_before + 1
    tags = found[0].data.tags
    commit = git(here, "for-each-ref", "--format=%(objectname)", "refs/exps/**/wavy").strip()
    assert (tags["dvc.experiment"], tags["dvc.experiment.commit"]) == ("wavy", commit)
    client = MlflowClient(f"sqlite:///{here}/mlflow.db")
    lock = Path(client.download_artifacts(found[0].info.run_id, "dvc.lock")).read_text()
    assert lock.strip() == git(here, "show", f"{commit}:dvc.lock").strip()

    run(here, "dvc", "exp", "apply", "wavy")
    said = run(here, "pipeline.tracking.sync").stdout
    assert found[0].info.run_id in said
    git(here, "checkout", "-q", "--", ".")
    run(here, "dvc", "checkout")
    run(here, "dvc", "repro")
    assert n_before + 1 == len(rows(here))
    before = snapshot(f"sqlite:///{here}/mlflow.db")
    run(here, "pipeline.tracking.sync")
    assert snapshot(f"sqlite:///{here}/mlflow.db") == before


def test_results_of_other_parameters_get_no_run(tmp_path: Path, store: str) -> None:
    """Sync creates no run for results of other parameters."""
    write_results(tmp_path / "repository", small_params())
    said = run(
        tmp_path / "repository", "pipeline.tracking.sync", PYTHONPATH=str(PROJECT), MLFLOW_TRACKING_URI=store
    ).stdout
    assert "no results of a complete run (not up to date: prepare, baselines, pca_probes, train, evaluate)" in said
    assert stored(store) == []


def test_store_that_cannot_be_opened_fails_with_one_line(tmp_path: Path) -> None:
    """A store that cannot be opened fails with a one-line error and exit code 2."""
    write_results(tmp_path / "repository", small_params())
    address = "http://127.0.0.1:9"
    settings = {"PYTHONPATH": str(PROJECT), "MLFLOW_TRACKING_URI": address}
    done = run(tmp_path / "repository", "pipeline.tracking.sync", ok=False, **settings)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the MLflow store cannot be opened: ")
    assert "Traceback" not in done.stderr
