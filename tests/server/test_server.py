"""`make server`: runs arrive on PostgreSQL, only the server listens, passwords do not leak, and it stops cleanly."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest
import sqlalchemy as sa
from mlflow import MlflowClient

from pipeline.core.errors import PipelineError
from pipeline.server import __main__ as server_command
from pipeline.server import postgres
from pipeline.tracking.mlflow_app import ASSISTANT
from tests.helpers import PROJECT, artifacts, files_with, run, stored
from tests.team_server import TeamServer, server_folder

IN_ADDRESS, IN_ENVIRONMENT = "correct-horse-7", "battery-staple-9"
ADMIN_PASSWORD = "wheel-anchor-31"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with server_folder() as path:
        yield path


@pytest.fixture(scope="module")
def team(toy: Path, folder: Path) -> Iterator[TeamServer]:
    """The server with its defaults."""
    server = TeamServer(toy, folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / ".dvc").mkdir()
    return tmp_path


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_a_run_is_on_the_server_with_its_artifacts(toy: Path, team: TeamServer) -> None:
    """After a training and `make sync` the server has parameters, metrics by epoch, files and a loadable model."""
    run(toy, "pipeline.train", MLFLOW_TRACKING_URI=team.address)
    synced = run(toy, "pipeline.tracking.sync", MLFLOW_TRACKING_URI=team.address)
    assert "MLflow holds the workspace's run" in synced.stdout
    (row,) = stored(team.address)
    assert row.info.status == "FINISHED"
    assert row.data.params["data.dataset"] == "wave"
    client = MlflowClient(team.address)
    assert [point.step for point in client.get_metric_history(row.info.run_id, "train/mse")] == [1, 2]
    assert {"models/polynomial.safetensors", "reports/history.csv"} <= artifacts(client, row.info.run_id)
    (model,) = client.search_logged_models([row.info.experiment_id])
    loading = f"import mlflow; mlflow.pytorch.load_model('models:/{model.model_id}')"
    (toy / "loading.py").write_text(loading)
    try:
        run(toy, "loading", MLFLOW_TRACKING_URI=team.address)
    finally:
        (toy / "loading.py").unlink()


@pytest.mark.slow
def test_by_default_only_loopback_is_listened_on(team: TeamServer) -> None:
    """The only port is on 127.0.0.1; PostgreSQL has none, and only its owner may enter its socket's folder."""
    connections = [connection for process in team.processes() for connection in process.net_connections("inet")]
    listening = {connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", team.port)}
    assert any(process.name() == "postgres" for process in team.processes())
    assert (team.folder / "server/socket").resolve().stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_it_ends_cleanly_and_survives_a_kill(team: TeamServer) -> None:
    """SIGTERM and Ctrl-C end every process; after SIGKILL to all or to the command the next start has the runs."""
    client = MlflowClient(team.address)
    run_id = client.create_run(client.create_experiment("kept")).info.run_id

    for end in (lambda: team.stop(signal.SIGTERM), lambda: team.stop(signal.SIGINT)):
        processes = team.processes()
        assert end() in (0, 128 + signal.SIGTERM)
        assert not any(map(lives, processes))
        assert not (team.folder / "server/socket").exists()
        team.start()
    team.kill()
    team.start()
    left = [process for process in team.processes() if process.pid != team.process.pid]  # type: ignore[union-attr]
    team.stop(signal.SIGKILL)
    assert all(map(lives, left))
    # They still hold the port.
    team.start()
    assert not any(map(lives, left))
    assert client.get_run(run_id).info.run_id == run_id


@pytest.mark.slow
def test_beyond_loopback_it_requires_passwords(toy: Path) -> None:
    """No password, MLflow's old default and a wrong password get 401; names of other hosts and pages are refused.

    MLflow's assistant is not available. A user who is not an admin delivers a run with the password in the address.
    That password, the admin's and another one in the environment are in no table, artifact, log, journal, environment
    or command line.
    """
    secrets = [IN_ADDRESS, IN_ENVIRONMENT, ADMIN_PASSWORD]
    with server_folder() as folder:
        team = TeamServer(
            toy,
            folder,
            "--host",
            "0.0.0.0",
            MLFLOW_AUTH_ADMIN_PASSWORD=ADMIN_PASSWORD,
            DEPLOY_TOKEN=IN_ENVIRONMENT,
        )
        team.start()
        try:
            assert team.status() == 401
            assert team.status("admin", "password1234") == 401
            assert team.status("admin", "wrong") == 401
            assert team.status("admin", ADMIN_PASSWORD) == 200
            with pytest.raises(HTTPError, match="404"):
                urlopen(f"{team.address}{ASSISTANT}/config", timeout=20)
            here = f"{socket.gethostname()}:{team.port}"
            assert team.status("admin", ADMIN_PASSWORD, Host=here, Origin=f"http://{here}") == 200
            assert team.status("admin", ADMIN_PASSWORD, Host="elsewhere.example") == 403
            assert team.status("admin", ADMIN_PASSWORD, Origin="http://elsewhere.example") == 403

            as_admin: dict[str, Any] = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": ADMIN_PASSWORD}
            (toy / "new_user.py").write_text(
                "from mlflow.server import get_app_client\n"
                f"get_app_client('basic-auth', '{team.address}').create_user('bob', '{IN_ADDRESS}')\n"
            )
            try:
                run(toy, "new_user", **as_admin)
            finally:
                (toy / "new_user.py").unlink()
            # The admin creates the experiment that bob adds to.
            run(toy, "pipeline.tracking.ui", MLFLOW_TRACKING_URI=team.address, **as_admin)
            address = team.address.replace("//", f"//bob:{IN_ADDRESS}@")
            done = run(toy, "pipeline.tracking.sync", MLFLOW_TRACKING_URI=address, DEPLOY_TOKEN=IN_ENVIRONMENT)
            printed = done.stdout + done.stderr
            refused = run(
                toy, "pipeline.tracking.sync", ok=False, MLFLOW_TRACKING_URI=address.replace("horse", "donkey")
            )
            assert refused.returncode == 2
            assert refused.stderr.startswith("error: the MLflow store cannot be opened:")

            dump = team.dump()
            assert "polynomial.safetensors" not in dump  # it is a file
            assert "degree=2 seed=0" in dump
            assert list((folder / "server/artifacts").rglob("polynomial.safetensors"))
            for process in team.processes()[1:]:
                with suppress(psutil.NoSuchProcess):  # PostgreSQL's processes come and go
                    assert ADMIN_PASSWORD not in " ".join([*process.cmdline(), *process.environ().values()])
            for secret in secrets:
                assert secret not in dump
                assert secret not in printed
                assert secret not in " ".join(team.processes()[0].cmdline())
        finally:
            team.stop()
        for secret in secrets:
            assert files_with(secret, folder, toy / ".mlflow-journal") == []


@pytest.mark.parametrize("password", [None, "short", "password1234"])
def test_beyond_loopback_it_does_not_start_without_a_password(repository: Path, password: str | None) -> None:
    """Beyond loopback the server does not start without a password, with a short one or with MLflow's old default."""
    variables = {} if password is None else {"MLFLOW_AUTH_ADMIN_PASSWORD": password}
    done = run(repository, "pipeline.server", "--host", "0.0.0.0", ok=False, PYTHONPATH=str(PROJECT), **variables)
    assert done.returncode == 2
    assert "MLFLOW_AUTH_ADMIN_PASSWORD needs at least 12 characters" in done.stderr
    assert not (repository / ".server").exists()


@pytest.mark.parametrize(
    ("host", "inside"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)]
)
def test_what_is_loopback(host: str, inside: bool) -> None:
    """Names other than localhost count as reachable from outside."""
    assert server_command.is_loopback(host) == inside
    assert not server_command.is_loopback("localhost.example.org")


def test_a_port_in_use_is_an_error(repository: Path) -> None:
    """The error for a port in use names another port to try."""
    with server_folder() as folder, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        options = ["--port", str(port), "--folder", str(folder)]
        done = run(repository, "pipeline.server", *options, ok=False, PYTHONPATH=str(PROJECT))
    assert done.returncode == 2
    assert f"port {port} is in use; choose another: make server PORT={port + 1}" in done.stderr


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without psycopg2 or PostgreSQL the error says what to install."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "psycopg2", None)
        with pytest.raises(PipelineError, match="make setup-cluster"), postgres.running(tmp_path):
            pass
    monkeypatch.setattr(postgres, "DEBIAN", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(PipelineError, match="apt-get install postgresql"):
        postgres._programs(tmp_path)


def test_one_process_at_a_time_uses_the_folder() -> None:
    """A second server on the same folder is refused while the first keeps running."""
    with server_folder() as folder, postgres.running(folder) as database:
        with pytest.raises(PipelineError, match="a tracking server is using"), postgres.running(folder):
            pass
        assert database.process.poll() is None


def test_a_stale_process_id_does_not_block_the_start() -> None:
    """PostgreSQL starts if its pid file names another process, as after a container restart, and does not end it."""
    user = "postgres" if os.geteuid() == 0 else None
    with server_folder() as folder, subprocess.Popen(["sleep", "600"], user=user) as other:
        try:
            with postgres.running(folder) as database:
                pid_file = folder / "postgres/postmaster.pid"
                lines = pid_file.read_text().splitlines()
            assert database.process.poll() == 0
            pid_file.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
            with postgres.running(folder) as database:
                assert database.process.poll() is None
            assert other.poll() is None
        finally:
            other.kill()


@pytest.mark.parametrize("text", ["", "no number\n"])
def test_a_truncated_process_id_does_not_block_the_start(text: str) -> None:
    """PostgreSQL starts although a crash truncated its pid file."""
    with server_folder() as folder:
        with postgres.running(folder):
            pass
        (folder / "postgres/postmaster.pid").write_text(text)
        with postgres.running(folder) as database:
            assert database.process.poll() is None


def test_a_half_made_database_is_made_again() -> None:
    """A killed `initdb` leaves nothing that a later start would mistake for a database."""
    with server_folder() as folder:
        (folder / "postgres.partial").mkdir()
        (folder / "postgres.partial/PG_VERSION").write_text("15\n")
        with postgres.running(folder) as database:
            assert database.process.poll() is None


@pytest.mark.slow
def test_the_admins_password_is_that_of_the_last_start() -> None:
    """Starting the server with a new password replaces the admin's old one."""
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    with server_folder() as folder, postgres.running(folder) as database:
        address = database.address(postgres.USERS)
        for password in (ADMIN_PASSWORD, IN_ENVIRONMENT):
            server_command.set_admin_password(address, password)
        users = SqlAlchemyStore()
        users.init_db(address)
        assert users.authenticate_user("admin", IN_ENVIRONMENT)
        assert not users.authenticate_user("admin", ADMIN_PASSWORD)
        users.engine.dispose()


def version(engine: sa.Engine) -> str:
    with engine.connect() as connection:
        return str(connection.scalar(sa.text("SELECT version_num FROM alembic_version")))


@pytest.mark.slow
def test_the_tables_of_an_older_mlflow_are_upgraded() -> None:
    """--upgrade brings an older MLflow's tables to the current version."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config

    with server_folder() as folder, postgres.running(folder) as database:
        address = database.address(postgres.RUNS)
        engine = sa.create_engine(address)
        server_command.upgrade(address)
        newest = version(engine)
        command.downgrade(_get_alembic_config(address), "-1")
        assert version(engine) != newest
        server_command.upgrade(address)
        assert version(engine) == newest
        engine.dispose()
