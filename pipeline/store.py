"""Which MLflow store the runs go to, and opening it safely from several processes at once."""

import logging
import os
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
            mlflow.set_tracking_uri(uri)
            client = MlflowClient()
            experiment = client.get_experiment_by_name(name)
            if experiment is not None:
                return client, experiment.experiment_id
            return client, client.create_experiment(name, artifact_location=location)
    except MlflowException as error:
        reason = " ".join(str(error).split())[:300]
        raise PipelineError(f"the MLflow store cannot be opened: {reason}") from None
