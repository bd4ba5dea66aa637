"""Clones of the repository as its workspace is at the moment: a commit, and what differs from it in tracked files."""

from pathlib import Path

from pipeline.git import git


def commit_workspace(root: Path) -> tuple[str, str]:
    """(HEAD, a commit with the workspace's tracked files, on no branch); the workspace stays as it is."""
    head = git(root, "rev-parse", "HEAD")
    git(root, "status")  # of a file written anew to the same bytes git knows that after a look only, and stash fails
    return head, git(root, "-c", "user.name=sweep", "-c", "user.email=sweep@localhost", "stash", "create") or head


def check_out_workspace(clone: Path, head: str, workspace: str) -> None:
    """Make a clone's folder what the workspace was: HEAD there, its changes here as changes."""
    git(clone, "checkout", "--quiet", "--detach", head)
    git(clone, "read-tree", "-u", "--reset", workspace)
    git(clone, "reset", "--quiet")
