"""Which MLflow store the runs go to, and opening it safely from several processes at once."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

# A server that does not answer must not hold a stage up: MLflow's own defaults wait for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.errors import PipelineError
from pipeline.repository import main_root

DEFAULT_EXPERIMENT = "mnist-autoencoder"
# Where MLflow's tables hold absolute addresses of artifacts.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI if it is set, a relative sqlite path made absolute; else `mlflow.db` under the root."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{root / path}"


def open_store() -> tuple[MlflowClient, str]:
    """A client of the store and the id of the experiment, both created if need be.

    The lock makes first use safe: processes that create one database at the same time break it.
    The experiment has an artifact location of its own, since the default one would be relative to
    wherever the process happens to run. MLFLOW_EXPERIMENT_NAME names another experiment.

    Raises:
        PipelineError: the store does not answer, or MLflow refuses it.
    """
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    root = main_root()
    uri = tracking_uri(root)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    # A server decides for itself where artifacts go.
    location = None if urlsplit(uri).scheme in ("http", "https") else (root / "mlartifacts").as_uri()
    try:
        with FileLock(root / ".mlflow.lock"):
            follow_a_moved_repository(uri, root)
            mlflow.set_tracking_uri(uri)
            client = MlflowClient()
            experiment = client.get_experiment_by_name(name)
            if experiment is not None:
                return client, experiment.experiment_id
            return client, client.create_experiment(name, artifact_location=location)
    except MlflowException as error:
        reason = " ".join(str(error).split())[:300]
        if "out-of-date database schema" in reason:
            raise PipelineError(f"an older MLflow made the store; upgrade it: {upgrade_command(uri)}") from None
        raise PipelineError(f"the MLflow store cannot be opened: {reason}") from None


def upgrade_command(uri: str) -> str:
    """The shell command that brings a store to this MLflow's schema, of a sqlite file after a copy."""
    path = uri.removeprefix("sqlite:///")
    if path == uri:
        return 'mlflow db upgrade "$MLFLOW_TRACKING_URI" (after a backup)'
    return f"cp '{path}' '{path}.backup' && mlflow db upgrade '{uri}'"


def follow_a_moved_repository(uri: str, root: Path) -> None:
    """Lead a sqlite store inside the repository to its artifacts after the folder was moved or copied.

    MLflow keeps absolute addresses. Those that end in this project's `mlartifacts` while the store
    lies under another root are rewritten; called with the store's lock held.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if not (uri.startswith("sqlite:///") and path.is_relative_to(root) and path.is_file()):
        return
    new = (root / "mlartifacts").as_uri()
    with closing(sqlite3.connect(path)) as database, database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
            return
        locations = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (old,) in locations:
            if old is None or old == new or not old.endswith("/mlartifacts") or not old.startswith("file://"):
                continue
            for table, column in ADDRESSES:
                # Table and column are this module's own constants; the addresses are bound.
                database.execute(
                    f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "  # noqa: S608
                    f"WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'",
                    {"new": new, "old": old},
                )
