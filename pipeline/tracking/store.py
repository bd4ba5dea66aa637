"""Which MLflow store the runs go to, if any; opening it safely from several processes at once, and finding runs in it.

mlflow is imported where the store is opened: the stages ask only for its name, and need not wait for that.
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


# MLflow's own defaults wait for minutes, and its retries would make a run twice where the first request
# was only slow: delivery repeats what failed, after a look at what is there.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# What it would print holds the address with its password.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# Runs that a tracking server is asked for at once: it reads some 100 a second, and has to answer in time.
PAGE = 100
# Where MLflow's tables hold absolute addresses of a run's or a model's artifacts.
ADDRESSES = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI if it is set, a relative sqlite path made absolute; else `mlflow.db` under the root."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{root / path}"


def is_server(uri: str) -> bool:
    """Whether an address is that of a tracking server, rather than of a database opened directly."""
    return uri.lower().startswith(("http://", "https://"))


def sqlite_file(uri: str) -> Path | None:
    """The absolute path of a sqlite store's file, from `tracking_uri`; None of any other store."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else Path(path.partition("?")[0])


def answers(uri: str, seconds: float) -> bool:
    """Whether a tracking server answers to a question that makes it look into its database."""
    address = store_name(uri, Path("/"))
    try:
        urlopen(f"{address}/api/2.0/mlflow/experiments/search?max_results=1", timeout=seconds).close()
    except HTTPError as error:  # it may want a password
        return error.code < 500
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # that is for MLflow's own settings to solve
    except (OSError, HTTPException):
        return False
    return True


def store_name(uri: str, root: Path) -> str:
    """An address as journals and links show it: without credentials, and the same after the repository was moved."""
    if (file := sqlite_file(uri)) is not None:
        return f"sqlite:///{file.relative_to(root) if file.is_relative_to(root) else file}"
    if is_server(uri) and "@" not in uri:  # which spares a stage the import
        return re.split(r"[?#]", uri)[0].rstrip("/")
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):  # MLflow will say so; no part of it is known to be harmless
        return uri.partition(":")[0]
    without = URL.create(url.drivername, host=(url.host or "").rpartition("@")[2], port=url.port, database=url.database)
    return without.render_as_string().rstrip("/")


def experiment_name() -> str:
    """MLFLOW_EXPERIMENT_NAME if it is set, else this project's own."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT.name


def open_store(experiment: str | None = None) -> tuple["MlflowClient", str]:
    """A client of the store and the id of the experiment, both created if need be.

    The lock makes first use safe: processes that create one database at the same time break it.
    The experiment has an artifact location of its own, since the default one would be relative to
    wherever the process happens to run. A server sees to both itself.

    Args:
        experiment: its name, `experiment_name()` if it is not given.

    Raises:
        PipelineError: the store does not answer, MLflow refuses it, or its database needs a library that is not here.
    """
    uri = tracking_uri(main_root())
    if is_server(uri) and not answers(uri, float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])):
        # Asked before the import, whose seconds would be taken from the training beside it.
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
                return client, client.create_experiment(name, artifact_location=location)
            except MlflowException:
                # Through a server another process may have been first.
                if (found := client.get_experiment_by_name(name)) is None:
                    raise
                return client, found.experiment_id
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        reason = _reason(error)
        if "out-of-date database schema" in reason:
            raise PipelineError(f"an older MLflow made the store; upgrade it: {upgrade_command(uri)}") from None
        raise PipelineError(f"the MLflow store cannot be opened: {reason}") from None
    except ImportError as error:
        hint = "what PostgreSQL needs: make setup-cluster"
        raise PipelineError(f"the MLflow store cannot be opened: {_reason(error)} ({hint})") from None


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """One process at a time on a database that is opened directly, whichever repositories and machines they work in.

    Raises:
        PipelineError: the folder of a sqlite file does not exist.
    """
    if (file := sqlite_file(uri)) is not None:
        file = file.resolve()  # whatever links lead to it
        if not file.parent.is_dir():  # which the lock would make
            raise PipelineError(f"the MLflow store cannot be opened: there is no folder {file.parent}")
        with FileLock(f"{file}.lock", mode=0o660):  # the group may share the store
            yield
    elif uri.startswith("postgresql"):
        import sqlalchemy as sa

        engine = sa.create_engine(uri, poolclass=sa.NullPool)
        with engine.connect() as connection:  # its end frees the lock
            connection.execute(sa.text("SELECT pg_advisory_lock(hashtext('mlflow'))"))
            yield
    else:
        yield


def search_all(client: "MlflowClient", experiment_id: str, condition: str) -> "list[Run]":
    """All runs for which an MLflow filter holds, the newest first.

    Raises:
        PipelineError: the store fails meanwhile.
    """
    from mlflow.exceptions import MlflowException

    found: list[Run] = []
    token = None
    try:
        while True:
            page = client.search_runs([experiment_id], condition, max_results=PAGE, page_token=token)
            found += page
            if (token := page.token) is None:
                return found
    except MlflowException as error:
        raise PipelineError(f"the MLflow store failed meanwhile; try again: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Why a store failed, in one line without passwords."""
    return redact(on_one_line(error))[:300]


def upgrade_command(uri: str) -> str:
    """The shell command that brings a store to this MLflow's schema, of a sqlite file after a copy."""
    path = sqlite_file(uri)
    if path is None:
        return 'mlflow db upgrade "$MLFLOW_TRACKING_URI" (after a backup)'
    return f"cp '{path}' '{path}.backup' && mlflow db upgrade '{uri}'"


def follow_a_moved_repository(uri: str, root: Path) -> None:
    """Lead a sqlite store inside the repository to its artifacts after the folder was moved or copied.

    MLflow keeps absolute addresses. One under another `mlartifacts` is rewritten where its artifacts are under this
    repository's now: others may be in use by a clone that shares the store, or on a disk that is not mounted at
    the moment. New runs follow where some run's artifacts did, or where there are none and the old folder is gone.
    Called with the store's lock held.
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
                # Table and column are this module's own constants; the addresses are bound.
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
    """The path of a `file:` address."""
    return Path(url2pathname(urlsplit(address).path))


def find_training(client: "MlflowClient", experiment_id: str, fingerprint: str) -> "Run | None":
    """The newest finished run that wrote what the fingerprint is a hash of."""
    wanted = f"tags.{FINGERPRINT_TAG} = '{fingerprint}' AND attributes.status = 'FINISHED'"
    return newest(client, experiment_id, wanted)


def newest(client: "MlflowClient", experiment_id: str, condition: str) -> "Run | None":
    found = client.search_runs([experiment_id], condition, max_results=1, order_by=["start_time DESC"])
    return found[0] if found else None


def is_on() -> bool:
    return os.environ.get("PIPELINE_TRACKING", "1") != "0"
