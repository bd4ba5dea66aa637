"""Lock files that a killed DVC left half written, in a repository after `dvc repro`."""

import shutil
from pathlib import Path

import pytest

from tests.helpers import git, run


@pytest.mark.parametrize("torn", ["", '{"write": {"models/autoenc'], ids=["empty", "half"])
def test_a_list_of_processes_that_a_killed_dvc_left_half_written_is_no_obstacle(project: Path, torn: str) -> None:
    """Plain `dvc repro` refuses it, `make run` deletes it and says so; a whole one is DVC's own affair."""
    rwlock = project / ".dvc/tmp/rwlock"
    rwlock.write_text(torn)
    assert "JSON structure is corrupted" in run(project, "dvc", "repro", ok=False).stderr
    said = run(project, "pipeline.run", PIPELINE_TRACKING="0").stderr
    assert "rwlock was left half written when DVC was killed; deleted" in said
    rwlock.write_text("{}")
    assert "rwlock" not in run(project, "pipeline.run", PIPELINE_TRACKING="0").stderr


@pytest.mark.parametrize("share", [0, 0.9], ids=["empty", "half"])
def test_a_dvc_lock_that_a_killed_dvc_left_half_written_is_no_obstacle(
    project: Path, tmp_path: Path, share: float
) -> None:
    """`make run` goes on from git's, says so, and ends with the dvc.lock there was."""
    here = shutil.copytree(project, tmp_path / "torn", symlinks=True)
    lock = here / "dvc.lock"
    whole = lock.read_text()
    n_kept = int(len(whole) * share)
    lock.write_text(whole[:n_kept].rstrip("\n"))
    if n_kept == 0:
        assert "'./dvc.lock' validation failed" in run(here, "dvc", "repro", ok=False).stderr
    said = run(here, "pipeline.run", PIPELINE_TRACKING="0").stderr
    assert "dvc.lock was left half written when DVC was killed; back to git's" in said
    assert lock.read_text() == whole


def test_sync_mends_a_half_written_dvc_lock_too(project: Path, tmp_path: Path) -> None:
    """It reads dvc.lock without DVC, which could have refused it."""
    here = shutil.copytree(project, tmp_path / "torn", symlinks=True)
    git(here, "add", "-A")
    git(here, "commit", "-q", "-m", "results")
    lock = here / "dvc.lock"
    whole = lock.read_text()
    lock.write_text(whole[: whole.index("path: ") + 7])
    assert "MLflow holds the workspace's run" in run(here, "pipeline.tracking.sync").stdout
    assert lock.read_text() == whole


def test_a_dvc_lock_with_conflicts_is_left_to_its_author(project: Path, tmp_path: Path) -> None:
    """`make run` does not throw away one side of a merge."""
    here = shutil.copytree(project, tmp_path / "conflicts", symlinks=True)
    lock = here / "dvc.lock"
    conflicts = lock.read_text() + "<<<<<<< HEAD\n=======\n>>>>>>> other\n"
    lock.write_text(conflicts)
    done = run(here, "pipeline.run", ok=False, PIPELINE_TRACKING="0")
    assert "half written" not in done.stderr
    assert lock.read_text() == conflicts
