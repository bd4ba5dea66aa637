"""Where a run comes from: the git commit, whether tracked files differ from it, the DVC experiment."""

import os
import subprocess

from pipeline import dvcfiles


def tags() -> dict[str, str]:
    """MLflow tags that say which code and which experiment made a run; without git, fewer of them."""
    found = {
        "dvc.experiment": os.environ.get("DVC_EXP_NAME"),
        "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        "mlflow.source.git.commit": _git("rev-parse", "HEAD"),
    }
    changed = _git("diff", "--name-only", "HEAD")
    if changed is not None:
        # DVC deletes a stage's outs before it runs, and parameters are recorded as such.
        expected = {"params.yaml", "dvc.lock"} | dvcfiles.all_outs()
        found["mlflow.source.git.dirty"] = str(bool(set(changed.splitlines()) - expected)).lower()
    return {name: value for name, value in found.items() if value}


def _git(*arguments: str) -> str | None:
    """A git command's output, or None where there is no git or no commit."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
