"""Fixtures: an empty working folder, a mirror on loopback, one whole pipeline run that tests share."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.tracking import delivery
from tests.helpers import copy_project, git, run, small_params, write_params, write_results
from tests.mirror import Mirror


def pytest_configure() -> None:
    """Signals do what they do by default, in the tests and in what they start; so does make.

    A shell ignores SIGINT for what it runs in the background, and `nohup` SIGHUP.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of the `make test` that runs them: they run make themselves
        os.environ.pop(name, None)


@pytest.fixture
def tmp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the working directory, so that tests need no paths of their own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        yield server


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite store with its tables and nothing in them; making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A real store of the test's own, which MLFLOW_TRACKING_URI names; returns its address."""
    path = shutil.copy(empty_store, tmp_path / "store.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return f"sqlite:///{path}"


@pytest.fixture
def results(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with what a pipeline run leaves. Journals stay there until the test delivers them."""
    folder = tmp_path / "repository"
    write_results(folder, small_params())
    monkeypatch.chdir(folder)
    monkeypatch.setattr(delivery, "start_delivery", lambda _: None)
    monkeypatch.setattr(delivery, "wait_for_delivery", lambda *_: None)
    return folder


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, in a path with spaces, after `dvc repro` on digits with a small network.

    Tests that change it set it back themselves.
    """
    folder = copy_project(tmp_path_factory.mktemp("a path") / "with spaces")
    write_params(small_params(), folder)
    run(folder, "dvc", "repro")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed copy of the project with a small network, as the working folder; nothing has run in it."""
    folder = copy_project(tmp_path / "workspace")
    write_params(small_params(), folder)
    git(folder, "commit", "-q", "-a", "-m", "small")
    monkeypatch.chdir(folder)
    return folder
