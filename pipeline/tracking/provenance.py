"""Where a run comes from: the git commit and what differs from it, the user, the DVC experiment."""

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
from pipeline.tracking.tags import POINT_TAG, POINT_VARIABLE

LARGEST_DIFF = 200_000
# Whatever a user's own git configuration says.
PLAIN = ["--no-ext-diff", "--no-color", "--relative"]


def tags() -> dict[str, str]:
    """MLflow tags that say which user, code and experiment made a run; without git, fewer of them."""
    found = {
        "dvc.experiment": os.environ.get("DVC_EXP_NAME"),
        POINT_TAG: os.environ.get(POINT_VARIABLE),
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
    """The files whose content is not that of the commit: tracked ones, and Python files that git does not know.

    Without what a run changes itself: parameters are recorded as such, and DVC deletes a stage's outs
    before it runs. None where there is no git or no commit.
    """
    changed = git_or_none("diff", "--relative", "--name-only", "HEAD")
    if changed is None:
        return None
    untracked = git_or_none("ls-files", "--others", "--exclude-standard", "--", "*.py") or ""
    expected = {"params.yaml", "dvc.lock", str(RECORD_PATH)} | dvcfiles.all_outs()
    return sorted({*changed.splitlines(), *untracked.splitlines()} - expected)


def diff_of_code() -> str:
    """The changed code as a diff against the commit, lines that may hold secrets replaced; empty if nothing changed.

    What is longer than `LARGEST_DIFF` characters is cut off, with a line that says so.
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
        # A comparison with nothing is the only one that git makes of a file it does not know.
        diff += f"{_diff(*PLAIN, '--no-index', '--', os.devnull, path)}\n"
    if len(diff) > LARGEST_DIFF:
        # At the end of a line, for half a secret is not recognised.
        diff = f"{diff[:LARGEST_DIFF].rpartition(chr(10))[0]}\n(cut off: it is longer)\n"
    return redact_diff(diff)


def committed_params() -> dict[str, Any]:
    """{dotted name: value} of params.yaml in the present commit; empty where there is none that can be read."""
    try:
        sections = load_yaml(file_at("HEAD", "./params.yaml") or "") or {}
        return {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    except (yaml.YAMLError, ValueError, AttributeError):
        return {}


def _diff(*arguments: str) -> str:
    """Git's diff of two files outside of its index; it exits with 1 where they differ."""
    return run_git(Path(), "diff", *arguments).stdout.decode(errors="replace").strip()
