"""Lock files that a killed DVC left truncated, in a repository after `dvc repro`."""

import shutil
from pathlib import Path

import pytest

from tests.helpers import git, run


@pytest.mark.parametrize("torn", ["", '{"write": {"models/autoenc'], ids=["empty", "half"])
def test_truncated_rwlock_is_repaired(toy: Path, tmp_path: Path, torn: str) -> None:
    """`dvc repro` fails on a truncated rwlock; `make run` deletes it with a message, and leaves a valid one alone."""
    here = shutil.copytree(toy, tmp_path / "torn", symlinks=True)
    rwlock = here / ".dvc/tmp/rwlock"
    rwlock.write_text(torn)
    assert "JSON structure is corrupted" in run(here, "dvc", "repro", ok=False).stderr
    said = run(here, "pipeline.run", PIPELINE_TRACKING="0").stderr
    assert "rwlock was left half written when DVC was killed; deleted" in said
    rwlock.write_text("{}")
    assert "rwlock" not in run(here, "pipeline.run", PIPELINE_TRACKING="0").stderr


@pytest.mark.parametrize("share", [0, 0.9], ids=["empty", "half"])
def test_truncated_dvc_lock_is_repaired(toy: Path, tmp_path: Path, share: float) -> None:
    """`make run` restores a truncated dvc.lock from git with a message, and ends with the original content."""
    here = shutil.copytree(toy, tmp_path / "torn", symlinks=True)
    lock = here / "dvc.lock"
    whole = lock.read_text()
    lock.write_text(whole[: whole.index("  evaluate:")])
    git(here, "commit", "-q", "-a", "-m", "not evaluated yet")
    n_kept = int(len(whole) * share)
    lock.write_text(whole[:n_kept].rstrip("\n"))
    if n_kept == 0:
        assert "'./dvc.lock' validation failed" in run(here, "dvc", "repro", ok=False).stderr
    said = run(here, "pipeline.run", PIPELINE_TRACKING="0").stderr
    assert "dvc.lock was left half written when DVC was killed; restored from git" in said
    assert lock.read_text() == whole


def test_sync_repairs_truncated_dvc_lock(toy: Path, tmp_path: Path) -> None:
    """`make sync`, which reads dvc.lock without DVC, restores a truncated one from git."""
    here = shutil.copytree(toy, tmp_path / "torn", symlinks=True)
    lock = here / "dvc.lock"
    whole = lock.read_text()
    lock.write_text(whole[: whole.index("path: ") + 7])
    assert "MLflow holds the workspace's run" in run(here, "pipeline.tracking.sync").stdout
    assert lock.read_text() == whole


def test_dvc_lock_with_conflicts_is_left_alone(toy: Path, tmp_path: Path) -> None:
    """`make run` leaves a dvc.lock with merge conflicts as it is."""
    here = shutil.copytree(toy, tmp_path / "conflicts", symlinks=True)
    lock = here / "dvc.lock"
    conflicts = lock.read_text() + "<<<<<<< HEAD\n=======\n>>>>>>> other\n"
    lock.write_text(conflicts)
    done = run(here, "pipeline.run", ok=False, PIPELINE_TRACKING="0")
    assert "half written" not in done.stderr
    assert lock.read_text() == conflicts
