"""A run's origin: the git commit and the differences from it, the user, the DVC experiment."""

import getpass
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from pipeline.core import dvcfiles
from pipeline.core.environment import RECORD_PATH
from pipeline.core.git import file_at, git_or_none, run_git
from pipeline.core.yaml_reader import load_yaml
from pipeline.tracking.redaction import redact_diff
from pipeline.tracking.tags import TRIAL_TAG, TRIAL_VARIABLE

LARGEST_DIFF = 200_000
# Make the diff independent of the user's git configuration.
PLAIN = ["--no-ext-diff", "--no-color", "--relative"]


def tags() -> dict[str, str]:
    """Return MLflow tags for a run's user, code and experiment. Without git some are missing."""
    found = {
        "dvc.experiment": os.environ.get("DVC_EXP_NAME"),
        TRIAL_TAG: os.environ.get(TRIAL_VARIABLE),
        "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        "mlflow.source.git.commit": git_or_none("rev-parse", "HEAD"),
    }
    with suppress(KeyError, OSError):  # in a container this user may have no name
        found["mlflow.user"] = getpass.getuser()
    changed = changed_code()
    if changed is not None:
        found["mlflow.source.git.dirty"] = str(bool(changed)).lower()
    return {name: value for name, value in found.items() if value}


def changed_code() -> list[str] | None:
    """Return the tracked files that differ from the commit, and the untracked Python files; None without git or commit.

    Files that a run itself changes are excluded: parameters are recorded separately, and DVC deletes a stage's outputs
    before it runs.
    """
    changed = git_or_none("diff", "--relative", "--name-only", "HEAD")
    if changed is None:
        return None
    untracked = git_or_none("ls-files", "--others", "--exclude-standard", "--", "*.py") or ""
    expected = {"params.yaml", "dvc.lock", str(RECORD_PATH)} | dvcfiles.all_outs()
    return sorted({*changed.splitlines(), *untracked.splitlines()} - expected)


def diff_of_code() -> str:
    """Return the changed code as a diff against the commit, empty if nothing changed. Possible secrets are replaced.

    A diff longer than `LARGEST_DIFF` characters is truncated, and its last line states that.
    """
    paths = changed_code() or []
    if not paths:
        return ""
    known = (git_or_none("ls-files", "--", *paths) or "").splitlines()
    deleted = (
        git_or_none("diff", "--relative", "--name-only", "--diff-filter=D", "HEAD", "--", *paths) or ""
    ).splitlines()
    tracked = [path for path in paths if path in known or path in deleted]
    diff = f"{git_or_none('diff', *PLAIN, 'HEAD', '--', *tracked)}\n" if tracked else ""
    for path in sorted(set(paths) - set(tracked)):
        if len(diff) > LARGEST_DIFF:
            break
        # git shows an untracked file only as a comparison with an empty file.
        diff += f"{_diff(*PLAIN, '--no-index', '--', os.devnull, path)}\n"
    if len(diff) > LARGEST_DIFF:
        # Cut at the end of a line, because half a secret is not recognised.
        diff = f"{diff[:LARGEST_DIFF].rpartition(chr(10))[0]}\n(cut off: it is longer)\n"
    return redact_diff(diff)


def committed_params() -> dict[str, Any]:
    """Return {dotted name: value} of params.yaml in HEAD; empty if it is missing or cannot be read."""
    try:
        sections = load_yaml(file_at("HEAD", "./params.yaml") or "") or {}
        return {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    except (yaml.YAMLError, ValueError, AttributeError):
        return {}


def _diff(*arguments: str) -> str:
    """Return git's diff of two files outside the index. (git exits with 1 if they differ.)"""
    return run_git(Path(), "diff", *arguments).stdout.decode(errors="replace").strip()
