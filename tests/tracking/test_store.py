"""The store's location, and first use by several processes."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from pipeline.core.errors import PipelineError
from pipeline.experiment import EXPERIMENT
from pipeline.server import postgres
from pipeline.tracking.store import (
    answers,
    locked,
    open_store,
    search_all,
    store_name,
    tracking_uri,
)
from tests.helpers import PROJECT, environment, free_port
from tests.team_server import server_folder


def test_the_default_store_lies_under_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the store is mlflow.db in the main repository, wherever the process runs."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("sqlite:///other.db", "sqlite:///{root}/other.db"),
        ("sqlite:////var/other.db", "sqlite:////var/other.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("postgresql://host/db", "postgresql://host/db"),
    ],
)
def test_mlflow_tracking_uri_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, expected: str) -> None:
    """MLFLOW_TRACKING_URI is used unchanged, except that a relative sqlite path is relative to the root."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", setting)
    assert tracking_uri(tmp_path) == expected.format(root=tmp_path)


def test_a_journal_names_its_store_without_credentials(tmp_path: Path) -> None:
    """A store's name has no credentials, and the own store's name does not depend on the repository's location."""
    assert store_name("postgresql://bob:hunter2@db:5432/runs?password=x", tmp_path) == "postgresql://db:5432/runs"
    assert store_name("http://bob:hunter2@host:5000", tmp_path) == "http://host:5000"
    assert store_name(f"sqlite:///{tmp_path}/mlflow.db", tmp_path) == store_name("sqlite:////x/mlflow.db", Path("/x"))


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("postgresql://bob:pa/s#s?w@db:5432/runs", "postgresql://db:5432/runs"),
        ("http://bob:pa/s#s?w@host:5000/mlflow/", "http://host:5000/mlflow"),
        ("http://host/a@b/?x=1#y", "http://host/a%40b"),
        ("http://[::1]:5000/", "http://[::1]:5000"),
        ("postgresql://bob:secret@db:port/runs", "postgresql"),
        ("sqlite:////x/repository/runs #1.db", "sqlite:///runs #1.db"),
        ("sqlite:////x/repository2/mlflow.db", "sqlite:////x/repository2/mlflow.db"),
        ("sqlite:////y/x/repository/mlflow.db", "sqlite:////y/x/repository/mlflow.db"),
    ],
)
def test_the_name_of_a_store_is_whole_and_holds_no_password(uri: str, name: str) -> None:
    """Names are complete and have no password, whatever its characters; paths outside the repository stay absolute."""
    assert store_name(uri, Path("/x/repository")) == name


def test_the_experiment_keeps_its_artifacts_under_the_root(
    tmp_dir: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Artifacts have an absolute location under the root, and the experiment has its description.

    MLFLOW_EXPERIMENT_NAME selects another experiment.
    """
    (tmp_dir / ".dvc").mkdir()
    client, experiment_id = open_store()
    experiment = client.get_experiment(experiment_id)
    assert experiment.name == EXPERIMENT.name
    assert experiment.artifact_location == (tmp_dir / "mlartifacts").as_uri()
    assert experiment.tags["mlflow.note.content"] == EXPERIMENT.description
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    assert client.get_experiment(open_store()[1]).name == "another"


def test_all_runs_are_found_page_by_page(tmp_dir: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs are found over several pages, and a store that refuses a search fails with one line."""
    (tmp_dir / ".dvc").mkdir()
    monkeypatch.setattr("pipeline.tracking.store.PAGE_SIZE", 2)
    client, experiment_id = open_store()
    made = {client.create_run(experiment_id).info.run_id for _ in range(5)}
    found = search_all(client, experiment_id, "attributes.status = 'RUNNING'")
    assert (len(found), {run.info.run_id for run in found}) == (5, made)
    with pytest.raises(PipelineError, match=r"the MLflow store failed during a search; try again: .*filter"):
        search_all(client, experiment_id, "no filter")


@pytest.mark.slow
def test_eight_processes_and_the_ui_may_create_the_store_at_once(tmp_path: Path) -> None:
    """Eight processes and the UI create one experiment without an error, and the UI opens it."""
    (tmp_path / ".dvc").mkdir()
    code = "from pipeline.tracking.store import open_store; print(open_store()[1])"
    settings = environment(PYTHONPATH=str(PROJECT))
    ui = subprocess.Popen(
        [sys.executable, "-m", "pipeline.tracking.ui", "--port", str(free_port())],
        cwd=tmp_path,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=settings, stdout=subprocess.PIPE)
        for _ in range(8)
    ]
    results = [process.communicate(timeout=300)[0].decode().strip() for process in started]
    assert ui.stdout is not None
    link = next(line for line in ui.stdout if "MLflow is at" in line)
    ui.send_signal(signal.SIGINT)
    ui.wait(30)
    assert [process.returncode for process in started] == [0] * 8
    assert len(set(results)) == 1
    assert f"#/experiments/{results[0]}/runs" in link
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM experiments WHERE name != 'Default'")]
    assert names == [EXPERIMENT.name]


OPEN_AT_ONCE = (
    "import sys\n"
    "import mlflow\n"
    "from pipeline.tracking.store import open_store\n"
    "print('ready', flush=True)\n"
    "sys.stdin.readline()\n"
    "print(open_store()[1])\n"
)


def open_at_once(uri: str, *roots: Path) -> list[tuple[int, str]]:
    """Open one store from several repositories at the same moment. Return each process's exit code and experiment."""
    for root in roots:
        (root / ".dvc").mkdir(parents=True)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_AT_ONCE],
            cwd=root,
            env=environment(PYTHONPATH=str(PROJECT), MLFLOW_TRACKING_URI=uri),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for root in roots
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[0].strip() for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def test_two_clones_may_create_one_store_at_once(tmp_path: Path) -> None:
    """Two clones can create a shared store at once, because the lock is next to the database."""
    uri = f"sqlite:///{tmp_path}/shared.db"
    assert open_at_once(uri, tmp_path / "one", tmp_path / "two") == [(0, "1"), (0, "1")]


def test_all_links_to_one_database_share_its_lock(tmp_path: Path) -> None:
    """Symbolic links to one database share its lock, also before the database exists."""
    database = tmp_path / "shared.db"
    for name in ("one.db", "two.db"):
        (tmp_path / name).symlink_to(database)
        with locked(f"sqlite:///{tmp_path}/{name}"), pytest.raises(Timeout):
            FileLock(f"{database}.lock").acquire(timeout=0)


def test_two_clones_may_create_tables_in_one_postgresql_at_once(tmp_path: Path) -> None:
    """Two clones can create the tables of one PostgreSQL database at once, because the database holds the lock."""
    with server_folder() as folder, postgres.running(folder) as database:
        uri = database.address(postgres.RUNS)
        assert open_at_once(uri, tmp_path / "one", tmp_path / "two") == [(0, "1"), (0, "1")]


def make_store(root: Path, **variables: str) -> str:
    """Create a store (default: the repository's own) with one run and one artifact. Return the run's id."""
    (root / ".dvc").mkdir(parents=True)
    code = (
        "from pipeline.tracking.store import open_store\n"
        "client, experiment = open_store()\n"
        "run = client.create_run(experiment)\n"
        "client.log_text(run.info.run_id, 'kept', 'note.txt')\n"
        "print(run.info.run_id)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=environment(PYTHONPATH=str(PROJECT), **variables),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_moved_repository_keeps_its_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the folder is renamed, old runs have their artifacts, and new artifacts go to the new location."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_id = make_store(tmp_path / "old place")
    (tmp_path / "old place").rename(tmp_path / "new place")
    monkeypatch.chdir(tmp_path / "new place")
    client, experiment_id = open_store()
    assert [item.path for item in client.list_artifacts(run_id)] == ["note.txt"]
    new = client.create_run(experiment_id)
    assert new.info.artifact_uri.startswith((tmp_path / "new place/mlartifacts").as_uri())
    client.log_text(new.info.run_id, "new", "note.txt")
    assert not (tmp_path / "old place").exists()


def test_a_shared_store_keeps_each_clones_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts of another clone's experiment keep their addresses, also while that clone's disk is not mounted."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    own = make_store(tmp_path / "owner")
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/owner/mlflow.db", "MLFLOW_EXPERIMENT_NAME": "theirs"}
    other = make_store(tmp_path / "other", **variables)
    monkeypatch.chdir(tmp_path / "owner")
    open_store()
    (tmp_path / "other").rename(tmp_path / "unmounted")
    open_store()
    (tmp_path / "unmounted").rename(tmp_path / "other")
    client, _ = open_store("theirs")
    for run_id in (own, other):
        assert [item.path for item in client.list_artifacts(run_id)] == ["note.txt"]
    experiment = client.get_experiment_by_name("theirs")
    assert experiment is not None
    assert experiment.artifact_location == (tmp_path / "other/mlartifacts").as_uri()


def test_a_copied_repository_uses_its_own_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy uses its own artifacts although the original exists; an experiment without runs follows a moved folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_id = make_store(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    client, _ = open_store()
    assert client.get_run(run_id).info.artifact_uri.startswith((tmp_path / "copy/mlartifacts").as_uri())
    client.delete_run(run_id)
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute("DELETE FROM runs")
    (tmp_path / "copy").rename(tmp_path / "moved")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # MLflow has set it
    monkeypatch.chdir(tmp_path / "moved")
    client, experiment_id = open_store()
    assert client.get_experiment(experiment_id).artifact_location == (tmp_path / "moved/mlartifacts").as_uri()


def test_a_deleted_experiment_is_an_error_with_the_way_back(
    tmp_dir: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the experiment is deleted, the error has the command that restores it."""
    (tmp_dir / ".dvc").mkdir()
    client, experiment_id = open_store()
    client.delete_experiment(experiment_id)
    with pytest.raises(PipelineError, match=f"restore it: mlflow experiments restore --experiment-id {experiment_id}"):
        open_store()


def test_a_damaged_store_is_an_error(tmp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged store fails with one line and no traceback."""
    (tmp_dir / ".dvc").mkdir()
    (tmp_dir / "mlflow.db").write_bytes(b"no database " * 1000)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(PipelineError, match="the MLflow store cannot be opened: "):
        open_store()


def test_store_in_a_missing_folder_is_an_error(tmp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store in a missing folder is an error, and the folder is not created, so a misspelt path leaves no store."""
    (tmp_dir / ".dvc").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///absent/mlflow.db")
    with pytest.raises(PipelineError, match=r"the MLflow store cannot be opened: there is no folder .*/absent"):
        open_store()
    assert not Path("absent").exists()


@pytest.mark.parametrize(("status", "expected"), [(200, True), (401, True), (404, True), (500, False), (503, False)])
def test_what_counts_as_an_answer(status: int, expected: bool) -> None:
    """A server that requires a password counts as answering; one with a 5xx error does not."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            assert answers(f"http://127.0.0.1:{server.server_port}", 5) == expected
        finally:
            server.shutdown()


def test_a_database_without_its_library_is_an_error(tmp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the database's library is missing, as PostgreSQL's after only `make setup`, the error says what to install."""
    (tmp_dir / ".dvc").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql://127.0.0.1:9/mlflow")
    with pytest.raises(PipelineError, match=r"No module named 'MySQLdb' \(for PostgreSQL run: make setup-cluster"):
        open_store()


def test_artifacts_stored_elsewhere_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment whose artifacts are outside the repository keeps its location."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_store(tmp_path / "repository")
    (tmp_path / "big disk/mlartifacts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repository")
    client, _ = open_store()
    chosen = client.create_experiment("chosen", artifact_location=(tmp_path / "big disk/mlartifacts").as_uri())
    open_store()
    assert client.get_experiment(chosen).artifact_location == (tmp_path / "big disk/mlartifacts").as_uri()


def test_a_store_of_an_older_mlflow_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of an older MLflow is not written to, and the error has the command that copies and upgrades it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_store(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "repository")  # a move, which would change the store's addresses
    monkeypatch.chdir(tmp_path / "repository")
    path = tmp_path / "repository/mlflow.db"
    # MLflow recognises a store's age only by this number; an early release serves as the example.
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = 'acf3f17fdcc7'")
    before = path.read_bytes()
    with pytest.raises(PipelineError, match="an older MLflow made the store; upgrade it: cp ") as error:
        open_store()
    assert path.read_bytes() == before
    assert f"mlflow db upgrade 'sqlite:///{path}'" in str(error.value)
