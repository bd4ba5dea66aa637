"""Fixtures: an empty working folder, a mirror on loopback, and one whole pipeline run that tests share."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.tracking import delivery
from tests.helpers import copy_project, copy_toy, git, run, small_params, write_params, write_results
from tests.mirror import Mirror


def pytest_configure() -> None:
    """Restore the default signal handling and make's environment, for the tests and the processes that they start.

    A shell makes its background processes ignore SIGINT, and `nohup` makes them ignore SIGHUP.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # set by `make test`; tests run make too
        os.environ.pop(name, None)


@pytest.fixture
def tmp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty working directory, so that tests need no paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        yield server


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a sqlite store with empty tables once. Creating one takes seconds, and copying it takes none."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Create the test's own store, set MLFLOW_TRACKING_URI to it and return its address."""
    path = shutil.copy(empty_store, tmp_path / "store.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return f"sqlite:///{path}"


@pytest.fixture
def results(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with a pipeline run's files. Journals stay there until the test delivers them."""
    folder = tmp_path / "repository"
    write_results(folder, small_params())
    monkeypatch.chdir(folder)
    monkeypatch.setattr(delivery, "start_delivery", lambda _: None)
    monkeypatch.setattr(delivery, "wait_for_delivery", lambda *_: None)
    return folder


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project, in a path with spaces, after `dvc repro` on digits with a small network.

    A test that changes it must restore it.
    """
    folder = copy_project(tmp_path_factory.mktemp("a path") / "with spaces")
    write_params(small_params(), folder)
    run(folder, "dvc", "repro")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a committed copy of the project with a small network. Nothing has run in it."""
    folder = copy_project(tmp_path / "workspace")
    write_params(small_params(), folder)
    git(folder, "commit", "-q", "-a", "-m", "small")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with the toy experiment, in a path with spaces, after `dvc repro` and with committed results.

    A test that changes it must restore it.
    """
    folder = copy_toy(tmp_path_factory.mktemp("a path") / "with a toy")
    run(folder, "dvc", "repro")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "results")
    return folder


@pytest.fixture
def toy_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a committed project with the toy experiment, in a path with a space. Nothing has run in it."""
    folder = copy_toy(tmp_path / "a workspace")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder
