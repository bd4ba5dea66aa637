"""Run DVC, and repair the two lock files that a killed DVC may leave truncated."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.core.errors import PipelineError
from pipeline.core.git import run_git

RWLOCK_PATH = Path(".dvc/tmp/rwlock")
LOCK_PATH = Path("dvc.lock")


def repair_truncated_locks(root: Path) -> None:
    """Delete a truncated `.dvc/tmp/rwlock` (DVC's list of running processes); restore a truncated dvc.lock from git.

    DVC empties both files before it writes them, in pieces of 8 KB. If it is killed in between, every later `dvc repro`
    fails (https://github.com/treeverse/dvc/issues/7615). Stages that git's dvc.lock does not record run again,
    training from its checkpoint.
    """
    if stays_torn(root / RWLOCK_PATH, is_json):
        (root / RWLOCK_PATH).unlink(missing_ok=True)
        print(f"{RWLOCK_PATH} was left half written when DVC was killed; deleted", file=sys.stderr)
    if stays_torn(root / LOCK_PATH, ends_a_line):
        (root / LOCK_PATH).unlink(missing_ok=True)
        run_git(root, "restore", str(LOCK_PATH))
        print(f"{LOCK_PATH} was left half written when DVC was killed; restored from git", file=sys.stderr)


def stays_torn(path: Path, is_whole: Callable[[str], bool]) -> bool:
    """Return whether a file exists and is truncated, now and 0.5 s later. A running DVC writes it in less time."""
    for wait in (0, 0.5):
        time.sleep(wait)
        if not path.is_file() or is_whole(path.read_text()):
            return False
    return True


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def ends_a_line(text: str) -> bool:
    """Return whether a text ends with a newline, as all YAML from DVC does, also with conflict markers of a merge."""
    return text.endswith("\n")


def dvc(*arguments: str, folder: Path = Path(), quiet: bool = False) -> None:
    """Run DVC with this Python, without its hints on git and remotes; `quiet` hides all output except errors.

    Raises:
        PipelineError: DVC failed; DVC itself has printed why.
    """
    # The path and -P keep modules of this folder and of the working folder from shadowing installed ones.
    command = [sys.executable, "-P", str(Path(__file__).with_name("dvc_without_hints.py")), *arguments]
    # DVC prints errors to stderr, everything else to stdout.
    stdout = subprocess.DEVNULL if quiet else None
    status = subprocess.run(command, cwd=folder, env=stage_environment(), stdout=stdout).returncode
    if status != 0:
        raise PipelineError(f"`dvc {' '.join(arguments)}` failed; see the error above")


def stage_environment() -> dict[str, str]:
    """Return this environment with this Python's folder first in PATH, because the stages call `python`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
