"""Test what `python -m pipeline.tidy` deletes and what it keeps."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput

from pipeline import tidy
from pipeline.tracking import delivery, runs
from pipeline.tracking.journal import Journal, journals
from tests.helpers import small_params, stored


def tidy_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    monkeypatch.setattr("sys.argv", ["tidy", *options])
    tidy.main()
    return capsys.readouterr().out


def make_old(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (0, 0))


def stored_files(root: Path) -> set[Path]:
    """Return the files that MLflow keeps (it leaves empty folders behind)."""
    return {path for path in (root / "mlartifacts").rglob("*") if path.is_file()}


def test_deleted_runs_are_removed_with_their_files(
    results: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A deleted run is only listed at first. --remove deletes it with its artifacts and its model, and nothing else."""
    for seed in (0, 1):
        runs.log_evaluation(small_params(train__seed=seed))
    delivery.deliver_all(results)
    doomed, kept = stored(store)
    client = MlflowClient(store)
    client.delete_run(doomed.info.run_id)
    files = stored_files(results)

    listed = tidy_up(monkeypatch, capsys)
    assert f"deleted run digits k=2 seed=1, {doomed.info.run_id}" in listed
    assert kept.info.run_id not in listed
    assert stored_files(results) == files

    tidy_up(monkeypatch, capsys, "--remove")
    assert kept.outputs is not None
    kept_ids = {kept.info.run_id, kept.outputs.model_outputs[0].model_id}
    assert stored_files(results) == {path for path in files if kept_ids & set(path.parts)} != set()
    assert client.download_artifacts(kept.info.run_id, "params.yaml")
    assert "0.0 MB  in all" in tidy_up(monkeypatch, capsys)


def test_models_of_deleted_runs_that_are_still_used_stay(
    results: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A deleted run stays if its model is in the registry or is the input of another run.

    A registered version may refer to the run's id or only to an address, or be a copy whose original is deleted.
    """
    for seed in range(5):
        runs.log_evaluation(small_params(train__seed=seed))
    delivery.deliver_all(results)
    client = MlflowClient(store)
    logged = stored(store)
    addresses, ids = [], []
    for run in logged:
        assert run.outputs is not None
        ids.append(run.outputs.model_outputs[0].model_id)
        addresses.append(client.get_logged_model(ids[-1]).artifact_location)
    client.create_registered_model("registered")
    client.create_model_version("registered", addresses[0], logged[0].info.run_id)
    client.create_model_version("registered", addresses[1])
    other = client.create_run(client.create_experiment("other")).info.run_id
    client.log_inputs(other, models=[LoggedModelInput(ids[2])])
    client.create_registered_model("original")
    client.create_model_version("original", addresses[3])
    client.copy_model_version("models:/original/1", "copy")
    client.delete_registered_model("original")
    for run in logged:
        client.delete_run(run.info.run_id)

    said = tidy_up(monkeypatch, capsys, "--remove")
    assert [run.info.run_id in said for run in logged] == [False, False, False, False, True]
    assert [any(id_ in path.parts for path in stored_files(results)) for id_ in ids] == [True, True, True, True, False]


def test_temporary_experiments_without_a_process_are_removed(
    results: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Experiments with a working process or a recent change stay, and so does the folder of DVC's queue."""
    names = ("tmpleft", "sweep-123-0", "standalone/tmpused", "celery")
    left, clone, used, queue = (results / ".dvc/tmp/exps" / name for name in names)
    for folder in (left, clone, used, queue):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * 1_000_000)
        make_old(folder)
    (new := results / ".dvc/tmp/exps/tmpnew").mkdir()
    worker = subprocess.Popen(["sleep", "60"], cwd=used)
    try:
        assert "      1.0 MB  .dvc/tmp/exps/tmpleft" in tidy_up(monkeypatch, capsys, "--remove")
    finally:
        worker.kill()
        worker.wait()
    assert [folder.exists() for folder in (left, clone, used, queue, new)] == [False, False, True, True, True]


def test_checkpoints_are_removed_after_a_week(
    results: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All files of a checkpoint are deleted if none is newer than a week, and otherwise all stay."""
    folder = results / ".checkpoints"
    folder.mkdir()
    old = [folder / "old.state", folder / "old.lock"]
    kept = [folder / "new.state", folder / "new.lock"]
    for path in (*old, *kept):
        path.write_bytes(b"x" * 1_000_000)
        six_days, eight_days = time.time() - 6 * 86400, time.time() - 8 * 86400
        os.utime(path, (six_days, six_days) if path.name == "new.state" else (eight_days, eight_days))
    assert "      1.0 MB  .checkpoints/old.state" in tidy_up(monkeypatch, capsys)
    assert all(path.exists() for path in old)
    tidy_up(monkeypatch, capsys, "--remove")
    assert sorted(folder.iterdir()) == sorted(kept)


def test_waiting_journals_are_never_removed(
    results: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only old journals that are incomplete or damaged are deleted, not those that may still be written."""
    runs.log_evaluation(small_params())
    (waiting,) = journals(results)
    old, new = (Journal(waiting.folder.with_name(name)) for name in (".20200101-old", ".20200101-new"))
    for begun in (old, new):
        shutil.copytree(waiting.folder, begun.folder)
    damaged = waiting.folder.with_name("20200101-damaged")
    shutil.copytree(waiting.folder, damaged)
    (damaged / "events.jsonl").write_text('{"kind": "sta')
    for folder in (old.folder, damaged, waiting.folder):
        make_old(folder)
    said = tidy_up(monkeypatch, capsys, "--remove")
    assert "1 journals wait for delivery: `make sync`" in said
    assert (old.exists(), damaged.exists(), new.exists(), waiting.exists()) == (False, False, True, True)
