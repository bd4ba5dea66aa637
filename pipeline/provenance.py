"""Where a run comes from: the git commit and what differs from it, the DVC experiment, the environment."""

import getpass
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from pipeline import dvcfiles, environment
from pipeline.errors import PipelineError
from pipeline.git import git
from pipeline.params import load_yaml
from pipeline.redaction import redact_diff

# The point of a sweep on Ray that a run is of.
POINT_TAG = "sweep.point"
POINT_VARIABLE = "PIPELINE_SWEEP_POINT"
LARGEST_DIFF = 200_000
# Whatever a user's own git configuration says.
PLAIN = ["--no-ext-diff", "--no-color", "--relative"]


def tags() -> dict[str, str]:
    """MLflow tags that say which user, code and experiment made a run; without git, fewer of them."""
    found = {
        "dvc.experiment": os.environ.get("DVC_EXP_NAME"),
        POINT_TAG: os.environ.get(POINT_VARIABLE),
        "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        "mlflow.source.git.commit": _git("rev-parse", "HEAD"),
    }
    with suppress(KeyError, OSError):  # in a container this user may have no name
        found["mlflow.user"] = getpass.getuser()
    changed = changed_code()
    if changed is not None:
        found["mlflow.source.git.dirty"] = str(bool(changed)).lower()
    return {name: value for name, value in found.items() if value}


def changed_code() -> list[str] | None:
    """The files whose content is not that of the commit: tracked ones, and Python files that git does not know.

    Without what a run changes itself: parameters are recorded as such, and DVC deletes a stage's outs
    before it runs. None where there is no git or no commit.
    """
    changed = _git("diff", "--relative", "--name-only", "HEAD")
    if changed is None:
        return None
    untracked = _git("ls-files", "--others", "--exclude-standard", "--", "*.py") or ""
    expected = {"params.yaml", "dvc.lock", str(environment.RECORD_PATH)} | dvcfiles.all_outs()
    return sorted({*changed.splitlines(), *untracked.splitlines()} - expected)


def diff_of_code() -> str:
    """The changed code as a diff against the commit, lines that may hold secrets replaced; empty if nothing changed.

    What is longer than `LARGEST_DIFF` characters is cut off, with a line that says so.
    """
    paths = changed_code() or []
    if not paths:
        return ""
    known = (_git("ls-files", "--", *paths) or "").splitlines()
    deleted = (_git("diff", "--relative", "--name-only", "--diff-filter=D", "HEAD", "--", *paths) or "").splitlines()
    tracked = [path for path in paths if path in known or path in deleted]
    diff = f"{_git('diff', *PLAIN, 'HEAD', '--', *tracked)}\n" if tracked else ""
    for path in sorted(set(paths) - set(tracked)):
        if len(diff) > LARGEST_DIFF:
            break
        # A comparison with nothing is the only one that git makes of a file it does not know.
        diff += f"{_diff(*PLAIN, '--no-index', '--', os.devnull, path)}\n"
    if len(diff) > LARGEST_DIFF:
        # At the end of a line, for half a secret is not recognised.
        diff = f"{diff[:LARGEST_DIFF].rpartition(chr(10))[0]}\n(cut off: it is longer)\n"
    return redact_diff(diff)


def experiments() -> dict[tuple[str, str], str]:
    """{(commit that it started from, name): commit} of the DVC experiments in this repository."""
    listed = _git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps") or ""
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
    text = _git("show", f"{commit}:{path}")
    return None if text is None else f"{text}\n"


def committed_params() -> dict[str, Any]:
    """{dotted name: value} of params.yaml in the present commit; empty where there is none that can be read."""
    try:
        sections = load_yaml(file_at("HEAD", "./params.yaml") or "") or {}
        return {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    except (yaml.YAMLError, ValueError, AttributeError):
        return {}


def lock_at(commit: str) -> dict[str, Any]:
    """What dvc.lock holds in a commit; empty where it is not in it."""
    return load_yaml(file_at(commit, "dvc.lock") or "") or {}


def trained_outs(commit: str) -> dict[str, str]:
    """{path: MD5} of what training wrote, by a commit's dvc.lock; empty where that does not say."""
    train = lock_at(commit).get("stages", {}).get("train") or {}
    return {out["path"]: out["md5"] for out in train.get("outs", [])}


def _git(*arguments: str) -> str | None:
    """A git command's output, or None where there is no git or no commit."""
    try:
        return git(Path(), "-c", "core.quotePath=false", *arguments)
    except (OSError, PipelineError):
        return None


def _diff(*arguments: str) -> str:
    """Git's diff of two files outside of its index; it exits with 1 where they differ."""
    return subprocess.run(["git", "diff", *arguments], capture_output=True).stdout.decode(errors="replace").strip()
