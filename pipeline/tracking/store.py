"""Select the MLflow store, open it safely from several processes at once, and find runs in it.

mlflow is imported only where the store is opened, because the stages need only the store's name.
"""

import logging
import os
import re
import sqlite3
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import url2pathname, urlopen

from filelock import FileLock

from pipeline.core.errors import PipelineError, on_one_line
from pipeline.core.repository import main_root
from pipeline.experiment import EXPERIMENT
from pipeline.tracking.redaction import redact
from pipeline.tracking.tags import FINGERPRINT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


# MLflow's defaults wait for minutes, and its retries can create a run twice if the first request was only slow.
# Delivery retries by itself, after checking what the store already has.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# The message would contain the address with its password.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# Runs per request: a tracking server reads some 100 a second and must answer before the timeout.
PAGE_SIZE = 100
# (table, column) in MLflow's database with absolute addresses of artifacts.
ADDRESSES = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def tracking_uri(root: Path) -> str:
    """Return MLFLOW_TRACKING_URI (a relative sqlite path becomes absolute); if unset, `mlflow.db` under the root."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{root / path}"


def is_server(uri: str) -> bool:
    """Return whether an address is a tracking server's, not that of a database opened directly."""
    return uri.lower().startswith(("http://", "https://"))


def sqlite_file(uri: str) -> Path | None:
    """Return the path of a sqlite store's file, absolute for a `tracking_uri`; None for any other store."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else Path(path.partition("?")[0])


def answers(uri: str, seconds: float) -> bool:
    """Return whether a tracking server answers a request that needs its database."""
    address = store_name(uri, Path("/"))
    try:
        urlopen(f"{address}/api/2.0/mlflow/experiments/search?max_results=1", timeout=seconds).close()
    except HTTPError as error:  # it may require a password
        return error.code < 500
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # MLflow has its own TLS settings
    except (OSError, HTTPException):
        return False
    return True


def store_name(uri: str, root: Path) -> str:
    """Return an address as journals and links show it: without credentials, and unchanged if the repository moves."""
    if (file := sqlite_file(uri)) is not None:
        return f"sqlite:///{file.relative_to(root) if file.is_relative_to(root) else file}"
    if is_server(uri) and "@" not in uri:  # avoids the import below
        return re.split(r"[?#]", uri)[0].rstrip("/")
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):  # MLflow reports the error; any other part may be a secret
        return uri.partition(":")[0]
    without = URL.create(url.drivername, host=(url.host or "").rpartition("@")[2], port=url.port, database=url.database)
    return without.render_as_string().rstrip("/")


def experiment_name() -> str:
    """Return MLFLOW_EXPERIMENT_NAME if it is set, else this project's name."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT.name


def open_store(experiment: str | None = None) -> tuple["MlflowClient", str]:
    """Return a client of the store and the experiment's id. Create the store and the experiment if they are missing.

    A lock makes first use safe, because processes that create a database at the same time corrupt it. The experiment
    gets an absolute artifact location, because the default is relative to the working folder. A server handles both
    itself.

    Args:
        experiment: the experiment's name, by default `experiment_name()`.

    Raises:
        PipelineError: the store does not answer, MLflow refuses it, the experiment is deleted, or a library for the
            database is not installed.
    """
    uri = tracking_uri(main_root())
    if is_server(uri) and not answers(uri, float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])):
        # Check before the import, which would take seconds of processor time from the training next to it.
        name = store_name(uri, main_root())
        raise PipelineError(f"the MLflow store cannot be opened: the server {name} does not answer")
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    root = main_root()
    name = experiment or experiment_name()
    location = None if is_server(uri) else (root / "mlartifacts").as_uri()
    tags = {"mlflow.note.content": EXPERIMENT.description}
    try:
        with locked(uri):
            mlflow.set_tracking_uri(uri)
            client = mlflow.MlflowClient()
            found = client.get_experiment_by_name(name)  # refuses a store of an older MLflow
            follow_a_moved_repository(uri, root)
            if found is not None and found.lifecycle_stage == "deleted":
                command = f"mlflow experiments restore --experiment-id {found.experiment_id}"
                raise PipelineError(f"the experiment {name!r} is deleted in MLflow; restore it: {command}")
            if found is not None:
                return client, found.experiment_id
            try:
                return client, client.create_experiment(name, artifact_location=location, tags=tags)
            except MlflowException:
                # Through a server, another process may have created the experiment first.
                if (found := client.get_experiment_by_name(name)) is None:
                    raise
                return client, found.experiment_id
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        reason = _reason(error)
        if "out-of-date database schema" in reason:
            raise PipelineError(f"an older MLflow made the store; upgrade it: {upgrade_command(uri)}") from None
        raise PipelineError(f"the MLflow store cannot be opened: {reason}") from None
    except ImportError as error:
        hint = "for PostgreSQL run: make setup-cluster"
        raise PipelineError(f"the MLflow store cannot be opened: {_reason(error)} ({hint})") from None


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Lock a database that is opened directly, across all repositories and machines that use it.

    Raises:
        PipelineError: the folder of a sqlite file does not exist.
    """
    if (file := sqlite_file(uri)) is not None:
        file = file.resolve()  # all links to the file share one lock
        if not file.parent.is_dir():  # FileLock would create it
            raise PipelineError(f"the MLflow store cannot be opened: there is no folder {file.parent}")
        with FileLock(f"{file}.lock", mode=0o660):  # the group may share the store
            yield
    elif uri.startswith("postgresql"):
        import sqlalchemy as sa

        engine = sa.create_engine(uri, poolclass=sa.NullPool)
        with engine.connect() as connection:  # closing it releases the lock
            connection.execute(sa.text("SELECT pg_advisory_lock(hashtext('mlflow'))"))
            yield
    else:
        yield


def search_all(client: "MlflowClient", experiment_id: str, condition: str) -> "list[Run]":
    """Return all runs that match an MLflow filter, newest first.

    Raises:
        PipelineError: the store fails during the search.
    """
    from mlflow.exceptions import MlflowException

    found: list[Run] = []
    token = None
    try:
        while True:
            page = client.search_runs([experiment_id], condition, max_results=PAGE_SIZE, page_token=token)
            found += page
            if (token := page.token) is None:
                return found
    except MlflowException as error:
        raise PipelineError(f"the MLflow store failed during a search; try again: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Return why a store failed, on one line and without passwords."""
    return redact(on_one_line(error))[:300]


def upgrade_command(uri: str) -> str:
    """Return the shell command that upgrades a store to this MLflow's schema; a sqlite file is copied first."""
    path = sqlite_file(uri)
    if path is None:
        return 'mlflow db upgrade "$MLFLOW_TRACKING_URI" (after a backup)'
    return f"cp '{path}' '{path}.backup' && mlflow db upgrade '{uri}'"


def follow_a_moved_repository(uri: str, root: Path) -> None:
    """Update the artifact addresses of a sqlite store inside the repository after the folder was moved or copied.

    MLflow stores absolute addresses. An address under another `mlartifacts` is rewritten only if its artifacts exist
    under this repository now. Other addresses may belong to a clone that shares the store, or to a disk that is not
    mounted. The experiment's location for new runs is rewritten if any address was, or if it has no addresses and the
    old folder is gone. The caller holds the store's lock.
    """
    path = sqlite_file(uri)
    if path is None or not (path.is_relative_to(root) and path.is_file()):
        return
    new = (root / "mlartifacts").as_uri()
    with closing(sqlite3.connect(path)) as database, database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
            return
        locations = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (old,) in locations:
            if old is None or old == new or not old.endswith("/mlartifacts") or not old.startswith("file://"):
                continue
            n_addresses = n_here = 0
            for table, column in ADDRESSES:
                # Table and column are constants of this module; the addresses are bound parameters.
                query = f"SELECT DISTINCT {column} FROM {table} WHERE substr({column}, 1, ?) = ?"  # noqa: S608
                for (address,) in database.execute(query, (len(old) + 1, f"{old}/")).fetchall():
                    n_addresses += 1
                    here = new + address.removeprefix(old)
                    if not local_path(here).exists():
                        continue
                    n_here += 1
                    database.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (here, address))  # noqa: S608
            if n_here or not (n_addresses or local_path(old).parent.exists()):
                database.execute("UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (new, old))


def local_path(address: str) -> Path:
    """Return the path of a `file:` address."""
    return Path(url2pathname(urlsplit(address).path))


def find_training(client: "MlflowClient", experiment_id: str, fingerprint: str) -> "Run | None":
    """Return the newest FINISHED run with this fingerprint, or None."""
    wanted = f"tags.{FINGERPRINT_TAG} = '{fingerprint}' AND attributes.status = 'FINISHED'"
    return newest(client, experiment_id, wanted)


def newest(client: "MlflowClient", experiment_id: str, condition: str) -> "Run | None":
    found = client.search_runs([experiment_id], condition, max_results=1, order_by=["start_time DESC"])
    return found[0] if found else None


def is_on() -> bool:
    return os.environ.get("PIPELINE_TRACKING", "1") != "0"
