"""Where the store is, and first use by several processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.store import DEFAULT_EXPERIMENT, open_store, tracking_uri
from tests.helpers import PROJECT, environment


def test_the_default_store_lies_under_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting it is mlflow.db in the main repository, wherever the process runs."""
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
    """MLFLOW_TRACKING_URI is used as it is, a relative sqlite path counted from the root."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", setting)
    assert tracking_uri(tmp_path) == expected.format(root=tmp_path)


def test_the_experiment_keeps_its_artifacts_under_the_root(
    tmp_dir: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Artifacts have an explicit absolute place; MLFLOW_EXPERIMENT_NAME names another experiment."""
    (tmp_dir / ".dvc").mkdir()
    client, experiment_id = open_store()
    experiment = client.get_experiment(experiment_id)
    assert experiment.name == DEFAULT_EXPERIMENT
    assert experiment.artifact_location == (tmp_dir / "mlartifacts").as_uri()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    assert client.get_experiment(open_store()[1]).name == "another"


@pytest.mark.slow
def test_eight_processes_may_create_the_store_at_once(tmp_path: Path) -> None:
    """No error, and one experiment."""
    (tmp_path / ".dvc").mkdir()
    code = "from pipeline.store import open_store; print(open_store()[1])"
    settings = environment(PYTHONPATH=str(PROJECT))
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=settings, stdout=subprocess.PIPE)
        for _ in range(8)
    ]
    results = [process.communicate(timeout=300)[0].decode().strip() for process in started]
    assert [process.returncode for process in started] == [0] * 8
    assert len(set(results)) == 1
