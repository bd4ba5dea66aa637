"""Copying the workspace to a clone of the repository."""

import os
from pathlib import Path

import pytest

from pipeline.core.git import check_out_workspace, commit_workspace
from pipeline.sweep import dvc_engine
from tests.helpers import git, run


def test_files_rewritten_with_the_same_bytes_are_not_changes(workspace: Path) -> None:
    """If files were only rewritten with the same bytes, as prepare does, the workspace's commit is HEAD."""
    for path in (workspace / "reports/data.json", workspace / "params.yaml"):
        path.write_bytes(path.read_bytes())
        os.utime(path, (1, 1))
    head, commit = commit_workspace(workspace)
    assert head == commit == git(workspace, "rev-parse", "HEAD").strip()


def test_a_clone_has_the_workspaces_changes_as_changes(workspace: Path, tmp_path: Path) -> None:
    """A clone gets the same commit and the same uncommitted changes; the workspace itself does not change."""
    (workspace / "params.yaml").write_text("changed\n")
    (workspace / "README.md").unlink()
    before = git(workspace, "status", "--porcelain")
    head, commit = commit_workspace(workspace)
    git(tmp_path, "clone", "-q", "--shared", str(workspace), "clone")
    check_out_workspace(tmp_path / "clone", head, commit)
    assert git(tmp_path / "clone", "status", "--porcelain") == git(workspace, "status", "--porcelain") == before
    assert (tmp_path / "clone/params.yaml").read_text() == "changed\n"
    assert git(tmp_path / "clone", "rev-parse", "HEAD").strip() == head


def test_copies_work_in_a_shallow_repository(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shallow clone, as in CI, a sweep's copies and copies of copies have the workspace's changes."""
    (workspace / "README.md").write_text("a second commit\n")
    git(workspace, "commit", "-q", "-a", "-m", "second")
    git(tmp_path, "clone", "-q", "--depth", "1", workspace.as_uri(), "shallow")
    monkeypatch.chdir(tmp_path / "shallow")
    Path("params.yaml").write_text("changed\n")
    run(Path.cwd(), "dvc", "config", "--local", "core.checksum_jobs", "3")
    with dvc_engine.copies(Path.cwd(), 1) as (copy,), dvc_engine.copies(copy, 1) as (second,):
        for folder in (copy, second):
            assert (folder / "params.yaml").read_text() == "changed\n"
            assert git(folder, "status", "--porcelain") == " M params.yaml\n"
            assert "checksum_jobs = 3" in (folder / ".dvc/config.local").read_text()
            assert run(folder, "dvc", "cache", "dir").stdout.strip() == str(Path.cwd() / ".dvc/cache")
    assert list(Path(".dvc/tmp/exps").iterdir()) == []
