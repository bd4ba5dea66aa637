"""Migration of the repository's own store to the server: everything arrives unchanged, or nothing does."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType

from pipeline.core.errors import PipelineError
from pipeline.server import migrate, postgres
from pipeline.tracking.journal import Journal
from pipeline.tracking.store import follow_a_moved_repository, store_name
from tests.helpers import PROJECT, artifacts, environment, run
from tests.team_server import TeamServer, server_folder

STEPS = [(0, 1_000, 0.5), (1, 2_000, float("nan")), (1, 2_500, float("inf")), (7, 3_000, -1e-300), (7, 3_000, 0.25)]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with server_folder() as path:
        yield path


@pytest.fixture(scope="module")
def repository(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy project after a run, in a renamed folder, with other kinds of entries in its MLflow store."""
    folder = tmp_path_factory.mktemp("moved")
    copy = folder / "at first"
    shutil.copytree(toy, copy, symlinks=True)
    follow_a_moved_repository(f"sqlite:///{copy}/mlflow.db", copy)
    client = MlflowClient(f"sqlite:///{copy}/mlflow.db")
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    made = client.create_run(experiment.experiment_id, start_time=1, run_name="ünïcode").info.run_id
    points = [Metric("loss", value, time, step) for step, time, value in STEPS]
    client.log_batch(made, points, [Param("p", "x" * 5000)], [RunTag("t", "a\nb 'c' \"d\" %s \\")])
    data = Dataset("train", "digest", "local", json.dumps({"uri": "data"}))
    client.log_inputs(made, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])
    client.log_text(made, "text", "a folder/with spaces & ü.txt")
    client.set_terminated(made, "KILLED", 9)
    deleted = client.create_run(experiment.experiment_id).info.run_id
    client.log_text(deleted, "gone, not lost", "file.txt")
    client.delete_run(deleted)
    other = client.create_experiment("other", (copy / "mlartifacts").as_uri())
    client.log_text(client.create_run(other).info.run_id, "other", "other.txt")
    (model,) = client.search_logged_models([experiment.experiment_id])
    client.create_registered_model("best")
    client.create_model_version("best", model.artifact_location, model.source_run_id)
    return copy.rename(folder / "to an ünlikely folder")


def move(repository: Path, folder: Path, ok: bool = True, **variables: Any) -> subprocess.CompletedProcess[str]:
    variables = {"PYTHONPATH": str(PROJECT)} | variables
    return run(repository, "pipeline.server.migrate", "--folder", str(folder / "server"), ok=ok, **variables)


def all_rows(address: str) -> dict[str, list[tuple[Any, ...]]]:
    engine = sa.create_engine(address)
    with engine.connect() as connection:
        tables = migrate.tables(connection)
        found = {
            name: sorted((tuple(row) for row in connection.execute(sa.select(*sorted_columns(table)))), key=repr)
            for name, table in tables.tables.items()
        }
    engine.dispose()
    return found


def sorted_columns(table: sa.Table) -> list[sa.Column[Any]]:
    addresses = {*migrate.ADDRESSES.get(table.name, ())[:1], *migrate.INNER_ADDRESSES.get(table.name, ())}
    return sorted((c for c in table.columns if c.name not in addresses), key=lambda column: column.name)


def runs(client: MlflowClient) -> dict[str, Run]:
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(ids, run_view_type=ViewType.ALL)
    return {run.info.run_id: run for run in found}


@pytest.mark.slow
def test_a_migration_copies_everything_or_nothing(repository: Path, folder: Path) -> None:
    """A migration that is killed leaves an empty database; the next one copies every row and byte unchanged.

    Through the server the histories and files are the same. New runs and experiments can be added. A second migration
    is refused.
    """
    killed = (
        "import os, signal, pipeline.server.migrate as command\n"
        "command.os.sync = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"import sys; sys.argv[1:] = ['--folder', {str(folder / 'server')!r}]\n"
        "command.main()\n"
    )
    variables = environment(PYTHONPATH=str(PROJECT))
    done = subprocess.run([sys.executable, "-c", killed], cwd=repository, env=variables, capture_output=True)
    assert done.returncode == -9, done.stderr
    assert list((folder / "server/artifacts").rglob("*.safetensors"))
    with postgres.running(folder / "server") as database:
        rows = all_rows(database.address(postgres.RUNS))
        assert {name for name, found in rows.items() if found} <= {"alembic_version", "experiments", "workspaces"}
        assert len(rows["experiments"]) == 1

    before = (repository / "mlflow.db").read_bytes()
    said = move(repository, folder)
    assert (repository / "mlflow.db").read_bytes() == before
    with postgres.running(folder / "server") as database:
        was = all_rows(f"sqlite:///{repository}/mlflow.db")
        assert all_rows(database.address(postgres.RUNS)) == was
    assert f"{len(was['runs'])} runs, {len(was['metrics'])} metric values, " in said.stdout

    again = move(repository, folder, ok=False)
    assert again.returncode == 2
    assert "error: the server's database is not empty (" in again.stderr

    team = TeamServer(repository, folder)
    team.start()
    try:
        assert "a tracking server is using" in move(repository, folder, ok=False).stderr
        old, new = MlflowClient(f"sqlite:///{repository}/mlflow.db"), MlflowClient(team.address)
        here, there = runs(old), runs(new)
        assert len(here) == len(there) == len(was["runs"])
        for run_id, kept in here.items():
            moved = there[run_id]
            assert repr(moved.data.to_dictionary()) == repr(kept.data.to_dictionary())
            assert repr(moved.inputs) == repr(kept.inputs)
            assert moved.info.artifact_uri == (f"mlflow-artifacts:/{moved.info.experiment_id}/{run_id}/artifacts")
            for name in kept.data.metrics:
                assert repr(new.get_metric_history(run_id, name)) == repr(old.get_metric_history(run_id, name))
            names = artifacts(old, run_id)
            assert artifacts(new, run_id) == names
            for path in names:
                copies = [Path(client.download_artifacts(run_id, path)).read_bytes() for client in (old, new)]
                assert copies[0] == copies[1]
        version = new.get_model_version("best", "1")
        assert version.run_id in there
        loading = "import mlflow; mlflow.pytorch.load_model('models:/best/1')"
        variables = environment(MLFLOW_TRACKING_URI=team.address, PYTHONPATH=str(PROJECT))
        subprocess.run([sys.executable, "-c", loading], cwd=folder, env=variables, check=True, capture_output=True)

        highest = max(int(experiment.experiment_id) for experiment in old.search_experiments())
        assert new.create_experiment("a new one") == str(highest + 1)
        experiment = new.get_experiment_by_name("toy")
        assert experiment is not None
        run_id = new.create_run(experiment.experiment_id).info.run_id
        new.log_text(run_id, "new", "new.txt")
        assert (folder / f"server/artifacts/{experiment.experiment_id}/{run_id}/artifacts/new.txt").read_text() == "new"
        # The server has the workspace's run, so that no new one is made for it.
        synced = run(repository, "pipeline.tracking.sync", MLFLOW_TRACKING_URI=team.address)
        assert "MLflow holds the workspace's run" in synced.stdout
        assert len(runs(new)) == len(here) + 1
    finally:
        team.stop()


@pytest.fixture
def small(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a store without runs."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / ".dvc").mkdir()
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


def test_a_missing_or_other_store_is_an_error(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's address and a missing file are errors."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(PipelineError, match="MLFLOW_TRACKING_URI is not an sqlite store"):
        migrate.store_to_move(small)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///absent.db")
    with pytest.raises(PipelineError, match=r"there is no store to move: .*absent\.db"):
        migrate.store_to_move(small)


def test_undelivered_runs_are_not_left_behind(small: Path) -> None:
    """Nothing is moved while a journal waits for the old store, because it can be delivered only there."""
    with Journal.create(small) as journal:
        journal.append({"kind": "start", "store": store_name(f"sqlite:///{small}/mlflow.db", small)})
    with pytest.raises(PipelineError, match=r"1 runs are not delivered to .*make sync"):
        migrate.store_to_move(small)


@pytest.mark.slow
def test_a_store_of_another_version_is_an_error(small: Path) -> None:
    """The error for an older store names the upgrade command; a file that is not a database is an error too."""
    with closing(sqlite3.connect(small / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '1bd49d398cd2'")
    with server_folder() as folder:
        assert f"upgrade it: cp '{small}/mlflow.db'" in move(small, folder, ok=False).stderr
        (small / "mlflow.db").write_bytes(b"no database at all" * 100)
        done = move(small, folder, ok=False)
    assert done.stderr.splitlines()[-1] == "error: nothing was moved: file is not a database"


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("file:///a%20b/c", "/a b/c"),
        ("/a b/c", "/a b/c"),
        ("mlruns/0", "/repository/mlruns/0"),
        ("mlflow-artifacts:/1/x/artifacts", "/repository/mlartifacts/1/x/artifacts"),
        ("s3://bucket/x", None),
        (None, None),
    ],
)
def test_where_artifacts_lie(address: str | None, path: str | None) -> None:
    """Addresses of local artifacts become the server's; other addresses, for example of a bucket, do not change."""
    found = migrate.local_folder(address, Path("/repository"))
    assert found == (None if path is None else Path(path))
    row = migrate.with_new_addresses(
        "runs", {"artifact_uri": address, "run_uuid": "r", "experiment_id": 3}, [], Path("/repository")
    )
    assert row["artifact_uri"] == (address if path is None else "mlflow-artifacts:/3/r/artifacts")
