"""Sweeps as DVC experiments: parallelism, and which experiment counts as a finished trial."""

import os
from pathlib import Path

import pytest
import yaml

from pipeline.core.git import experiments
from pipeline.sweep import dvc_engine
from pipeline.sweep.grid import make_trials
from pipeline.tracking import fingerprints
from tests.helpers import git


@pytest.mark.parametrize(
    ("threads", "jobs"), [([1], 8), ([2], 4), ([3], 2), ([2, 3], 2), ([8], 1), ([16], 1), (["auto"], 1)]
)
def test_as_many_trials_run_at_once_as_the_cores_allow(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, threads: list[int | str], jobs: int
) -> None:
    """The default is the cores divided by the largest number of threads of a trial, and at least one."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert dvc_engine.default_jobs(make_trials({"train.threads": threads})) == jobs


def test_an_experiment_counts_by_what_its_lock_holds(workspace: Path, tmp_path: Path) -> None:
    """An experiment with a trial's name but another trial's dvc.lock does not count; the right one replaces it.

    A clone without the experiment brings none.
    """
    (trial,) = make_trials({"train.seed": [5]})
    head = git(workspace, "rev-parse", "HEAD").strip()
    ref = f"refs/exps/{head[:2]}/{head[2:]}/{trial.experiment}"
    git(tmp_path, "clone", "-q", str(workspace), "copy")
    copy = tmp_path / "copy"
    git(workspace, "commit", "-q", "--allow-empty", "-m", "not of the trial")
    git(workspace, "update-ref", ref, "HEAD")
    assert dvc_engine.finished([trial]) == {}
    assert dvc_engine.collect(trial, copy) is None

    code = [{"path": path, "md5": md5} for path, md5 in fingerprints.code_of_stages().items()]
    lock = {"stages": {"all": {"deps": code, "params": {"params.yaml": trial.params.model_dump()}}}}
    (copy / "dvc.lock").write_text(yaml.safe_dump(lock))
    (copy / "reports/train.json").write_text('{"valid": {"best_mse": 0.25}}')
    (copy / "reports/evaluate.json").write_text('{"test": {"mse": 0.5}}')
    git(copy, "commit", "-q", "-a", "-m", "experiment")
    git(copy, "update-ref", ref, "HEAD")
    result = dvc_engine.collect(trial, copy)
    assert result is not None
    assert (result.select, result.report) == (0.25, 0.5)
    commit = git(copy, "rev-parse", "HEAD").strip()
    assert dvc_engine.finished([trial]) == {trial.experiment: commit}
    assert experiments() == {(head, trial.experiment): commit}
