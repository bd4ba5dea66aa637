"""Run git in a given folder, even inside a git hook.

Find commits and DVC experiments, read the files of a commit, and copy a workspace to a clone.
"""

import os
import re
import subprocess
from pathlib import Path

from pipeline.core.errors import PipelineError, on_one_line

# A git hook sets these variables; with them git would work in the hook's repository.
HOOK_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")
HERE = Path()


def run_git(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a git command and return the completed process. A failure raises nothing."""
    variables = {name: value for name, value in os.environ.items() if name not in HOOK_VARIABLES}
    return subprocess.run(["git", *arguments], cwd=folder, env=variables, capture_output=True)


def git(folder: Path, *arguments: str) -> str:
    """Return a git command's output, stripped.

    Raises:
        PipelineError: git failed; the message is git's own.
    """
    return git_bytes(folder, *arguments).decode(errors="replace").strip()


def git_bytes(folder: Path, *arguments: str) -> bytes:
    """Return a git command's output as bytes.

    Raises:
        PipelineError: git failed; the message is git's own.
    """
    done = run_git(folder, *arguments)
    if done.returncode != 0:
        raise PipelineError(f"git {arguments[0]}: {on_one_line(done.stderr.decode(errors='replace'))}")
    return done.stdout


def git_or_none(*arguments: str) -> str | None:
    """Return a git command's output in the working folder; None if git is missing or the command fails."""
    try:
        return git(HERE, "-c", "core.quotePath=false", *arguments)
    except (OSError, PipelineError):
        return None


def commit_workspace(root: Path) -> tuple[str, str]:
    """Return (HEAD, a commit of the workspace's tracked files on no branch). The workspace does not change."""
    head = git(root, "rev-parse", "HEAD")
    git(root, "status")  # refreshes the index: `stash` fails if a file was rewritten with the same bytes
    return head, git(root, "-c", "user.name=sweep", "-c", "user.email=sweep@localhost", "stash", "create") or head


def check_out_workspace(clone: Path, head: str, workspace: str) -> None:
    """Reproduce the workspace in a clone: check out `head`, with the workspace's changes as uncommitted changes."""
    git(clone, "checkout", "--quiet", "--detach", head)
    git(clone, "read-tree", "-u", "--reset", workspace)
    git(clone, "reset", "--quiet")


def resolve(name: str) -> str:
    """Return the commit of a revision or a DVC experiment's name; fetch it if only a remote has it.

    Raises:
        PipelineError: there is no such commit; the message gives the command that fetches it.
    """
    if (commit := find_commit(name)) is not None:
        return commit
    remotes = git(HERE, "remote").split()
    remote, _, branch = name.partition("/")
    if remote not in {*remotes, "origin"}:
        remote, branch = "origin", name
    # In a full clone --depth would truncate the history.
    depth = ["--depth=1"] if git(HERE, "rev-parse", "--is-shallow-repository") == "true" else []
    if re.search(r"[~^]", name):
        fetch = ["fetch", "--deepen=10", remote]
    elif re.fullmatch("[0-9a-f]{40}", name):
        fetch = ["fetch", *depth, remote, name]
    else:
        fetch = ["fetch", *depth, remote, f"+refs/heads/{branch}:refs/remotes/{remote}/{branch}"]
    if remote in remotes:
        run_git(HERE, *fetch, "--quiet")
        if (commit := find_commit(f"{remote}/{branch}") or find_commit(name)) is not None:
            return commit
    hint = "" if remotes else " (there is no remote here; a branch or HEAD will do)"
    raise PipelineError(f"unknown revision {name!r}{hint}; if it is on a remote, fetch it: git {' '.join(fetch)}")


def branch_point(name: str, base: str, head: str) -> str:
    """Return the commit where `head` left the branch `name`, so that later commits of the branch do not count.

    Return `base` itself if `name` is not a branch (two commits, two experiments), or if the history is too short, as
    in a shallow clone.
    """
    ref = git_or_none("rev-parse", "--symbolic-full-name", name) or ""
    if not ref.startswith(("refs/heads/", "refs/remotes/")):
        return base
    return git_or_none("merge-base", base, head) or base


def find_commit(name: str) -> str | None:
    """Return the local commit with this name, or None.

    Raises:
        PipelineError: several experiments have this name.
    """
    commit = git_or_none("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if commit is not None:
        return commit
    # refs/exps/<first 2 hex characters of the baseline>/<its other 38>/<name>
    listed = git(HERE, "for-each-ref", "--format=%(refname) %(objectname)", f"refs/exps/*/*/{name}").splitlines()
    experiments = [(*ref.split("/")[2:4], commit) for ref, commit in map(str.split, listed)]
    if len(experiments) > 1:
        found = ", ".join(f"{commit[:10]} (of {first}{rest[:8]})" for first, rest, commit in experiments)
        raise PipelineError(f"{len(experiments)} experiments are called {name!r}; use a commit instead: {found}")
    return experiments[0][2] if experiments else None


def bytes_at(commit: str, path: str) -> bytes | None:
    """Return a file's content in a commit; None if the commit does not have it."""
    return None if blob(commit, path) is None else git_bytes(HERE, "show", f"{commit}:{path}")


def blob(commit: str, path: str) -> str | None:
    """Return the hash of a file's content in a commit; None if the commit does not have it."""
    return git_or_none("rev-parse", "--verify", "--quiet", f"{commit}:{path}")


def experiments() -> dict[tuple[str, str], str]:
    """Return {(baseline commit, name): commit} of the DVC experiments in this repository."""
    listed = git_or_none("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps") or ""
    found = {}
    for line in listed.splitlines():
        ref, commit = line.split()
        # refs/exps/<2 hex characters>/<38>/<name>; DVC keeps other refs next to these.
        parts = ref.split("/")
        if len(parts) == 5 and len(parts[2]) == 2:
            found[parts[2] + parts[3], parts[4]] = commit
    return found


def file_at(commit: str, path: str) -> str | None:
    """Return the text of a file in a commit; None if the commit does not have it."""
    text = git_or_none("show", f"{commit}:{path}")
    return None if text is None else f"{text}\n"
