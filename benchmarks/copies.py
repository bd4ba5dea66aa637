"""Copies of the workspace, in which a benchmark runs the pipeline with a separate MLflow store."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def copy_workspace(target: Path) -> Path:
    """Make a git clone with the workspace's code and data in it, and return its folder."""
    subprocess.run(["git", "clone", "-q", ".", target], check=True)
    for name in ("pipeline", "data/prepared", "data/baselines", "models", "reports"):
        shutil.copytree(name, target / name, dirs_exist_ok=True)
    for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
        shutil.copy(name, target)
    return target


def change_params(folder: Path, **sections: dict[str, Any]) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for section, values in sections.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def wait_for_background(folder: Path) -> None:
    """Wait until delivery has ended, so that it does not slow other measurements."""
    deadline = time.monotonic() + 120
    while list((folder / ".mlflow-journal").glob("[!.]*/")):
        if time.monotonic() > deadline:
            sys.exit("error: a run could not be delivered, so nothing can be measured")
        time.sleep(0.2)
    time.sleep(1)


def newest_row(folder: Path) -> "tuple[MlflowClient, Run]":
    """Return the client of the copy's store and the last run that finished there."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client, client.search_runs(experiments, "attributes.status = 'FINISHED'", max_results=1)[0]
