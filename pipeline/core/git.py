"""Run git in the folder that is meant, whatever repository a git hook names in its environment.

With it: find commits and DVC experiments, read the files of a commit, and take a workspace to a clone.
"""

import os
import re
import subprocess
from pathlib import Path

from pipeline.core.errors import PipelineError, on_one_line

# A git hook sets these: git would work in the hook's repository.
HOOK_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")
HERE = Path()


def run_git(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a git command, and return how it ended: a failure raises nothing."""
    variables = {name: value for name, value in os.environ.items() if name not in HOOK_VARIABLES}
    return subprocess.run(["git", *arguments], cwd=folder, env=variables, capture_output=True)


def git(folder: Path, *arguments: str) -> str:
    """A git command's output, without white space around it.

    Raises:
        PipelineError: git says why it cannot.
    """
    return git_bytes(folder, *arguments).decode(errors="replace").strip()


def git_bytes(folder: Path, *arguments: str) -> bytes:
    """A git command's output as it is.

    Raises:
        PipelineError: git says why it cannot.
    """
    done = run_git(folder, *arguments)
    if done.returncode != 0:
        raise PipelineError(f"git {arguments[0]}: {on_one_line(done.stderr.decode(errors='replace'))}")
    return done.stdout


def git_or_none(*arguments: str) -> str | None:
    """Return a git command's output in the working folder; None if there is no git, or if the command fails."""
    try:
        return git(HERE, "-c", "core.quotePath=false", *arguments)
    except (OSError, PipelineError):
        return None


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


def resolve(name: str) -> str:
    """The commit that a revision or a DVC experiment's name means, fetched if a remote has it.

    Raises:
        PipelineError: there is no such commit; the message has the command that fetches it.
    """
    if (commit := find_commit(name)) is not None:
        return commit
    remotes = git(HERE, "remote").split()
    remote, _, branch = name.partition("/")
    if remote not in {*remotes, "origin"}:
        remote, branch = "origin", name
    # In a full clone a depth would cut the history off.
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
    raise PipelineError(f"unknown revision {name!r}; if it is on a remote, fetch it: git {' '.join(fetch)}")


def branch_point(name: str, base: str, head: str) -> str:
    """Where `head` left the branch `name`, so that what the branch did since then is not held against it.

    The base itself where it is no branch (two commits, two experiments), or where the history is too
    short to tell, as in a shallow clone.
    """
    ref = git_or_none("rev-parse", "--symbolic-full-name", name) or ""
    if not ref.startswith(("refs/heads/", "refs/remotes/")):
        return base
    return git_or_none("merge-base", base, head) or base


def find_commit(name: str) -> str | None:
    """The commit that a name means here, None if nothing here has that name.

    Raises:
        PipelineError: several experiments have it.
    """
    commit = git_or_none("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if commit is not None:
        return commit
    # refs/exps/<two digits of the baseline>/<its other 38>/<name>
    listed = git(HERE, "for-each-ref", "--format=%(refname) %(objectname)", f"refs/exps/*/*/{name}").splitlines()
    experiments = [(*ref.split("/")[2:4], commit) for ref, commit in map(str.split, listed)]
    if len(experiments) > 1:
        found = ", ".join(f"{commit[:10]} (of {first}{rest[:8]})" for first, rest, commit in experiments)
        raise PipelineError(f"{len(experiments)} experiments are called {name!r}, give one's commit: {found}")
    return experiments[0][2] if experiments else None


def show(commit: str, path: str) -> bytes | None:
    """A file's content in a commit, None where it is not in it."""
    return None if blob(commit, path) is None else git_bytes(HERE, "show", f"{commit}:{path}")


def blob(commit: str, path: str) -> str | None:
    """The hash of a file's content in a commit, None where it is not in it."""
    return git_or_none("rev-parse", "--verify", "--quiet", f"{commit}:{path}")


def experiments() -> dict[tuple[str, str], str]:
    """{(commit that it started from, name): commit} of the DVC experiments in this repository."""
    listed = git_or_none("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps") or ""
    found = {}
    for line in listed.splitlines():
        ref, commit = line.split()
        # refs/exps/<2 digits>/<38 digits>/<name>; DVC keeps other things beside these.
        parts = ref.split("/")
        if len(parts) == 5 and len(parts[2]) == 2:
            found[parts[2] + parts[3], parts[4]] = commit
    return found


def file_at(commit: str, path: str) -> str | None:
    """The text of a file in a commit; None where it is not in it."""
    text = git_or_none("show", f"{commit}:{path}")
    return None if text is None else f"{text}\n"
