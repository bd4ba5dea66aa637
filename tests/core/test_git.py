"""Clones of the repository as its workspace is."""

import os
from pathlib import Path

import pytest

from pipeline.core.git import check_out_workspace, commit_workspace
from pipeline.sweep import dvc_engine
from tests.helpers import git, run


def test_files_written_anew_to_the_same_bytes_are_no_change(workspace: Path) -> None:
    """As prepare does in a fresh clone; the commit of the workspace is HEAD then."""
    for path in (workspace / "reports/data.json", workspace / "params.yaml"):
        path.write_bytes(path.read_bytes())
        os.utime(path, (1, 1))
    head, commit = commit_workspace(workspace)
    assert head == commit == git(workspace, "rev-parse", "HEAD").strip()


def test_a_clone_has_the_workspaces_changes_as_changes(workspace: Path, tmp_path: Path) -> None:
    """Of tracked files, on the same commit; the workspace is left as it was."""
    (workspace / "params.yaml").write_text("changed\n")
    (workspace / "README.md").unlink()
    before = git(workspace, "status", "--porcelain")
    head, commit = commit_workspace(workspace)
    git(tmp_path, "clone", "-q", "--shared", str(workspace), "clone")
    check_out_workspace(tmp_path / "clone", head, commit)
    assert git(tmp_path / "clone", "status", "--porcelain") == git(workspace, "status", "--porcelain") == before
    assert (tmp_path / "clone/params.yaml").read_text() == "changed\n"
    assert git(tmp_path / "clone", "rev-parse", "HEAD").strip() == head


def test_a_shallow_repository_makes_copies_too(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CI checks one out: a sweep's copies, and copies of these, have what differs from its only commit."""
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
