"""Run DVC, and repair the two lock files that a killed DVC may leave half written."""

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


def mend_torn_locks(root: Path) -> None:
    """Delete DVC's list of its running processes where it is half written; take a half-written dvc.lock from git.

    DVC empties both before it writes them, in pieces of 8 KB, and refuses what a kill left of them at every later
    `dvc repro` (https://github.com/treeverse/dvc/issues/7615). What git's dvc.lock does not have is run again, a
    training from its checkpoint.
    """
    if stays_torn(root / RWLOCK_PATH, is_json):
        (root / RWLOCK_PATH).unlink(missing_ok=True)
        print(f"{RWLOCK_PATH} was left half written when DVC was killed; deleted", file=sys.stderr)
    if stays_torn(root / LOCK_PATH, ends_a_line):
        (root / LOCK_PATH).unlink(missing_ok=True)
        run_git(root, "restore", str(LOCK_PATH))
        print(f"{LOCK_PATH} was left half written when DVC was killed; back to git's", file=sys.stderr)


def stays_torn(path: Path, is_whole: Callable[[str], bool]) -> bool:
    """Whether a file is there and not whole, now and half a second later: longer than a DVC that lives needs for it."""
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
    """As all YAML that DVC writes does; one with a merge's conflicts, which is its author's affair, does too."""
    return text.endswith("\n")


def dvc(*arguments: str, folder: Path = Path(), quiet: bool = False) -> None:
    """Run DVC with this Python, without its hints on git and remotes; `quiet` hides what it says of success.

    Raises:
        PipelineError: DVC failed; it has said why.
    """
    # By its path and -P: neither this folder's modules nor the working folder's come before installed ones.
    command = [sys.executable, "-P", str(Path(__file__).with_name("dvc_without_hints.py")), *arguments]
    # What DVC says of success goes to stdout, of errors to stderr.
    stdout = subprocess.DEVNULL if quiet else None
    status = subprocess.run(command, cwd=folder, env=environment_of_stages(), stdout=stdout).returncode
    if status != 0:
        raise PipelineError(f"`dvc {' '.join(arguments)}` failed; see the error above")


def environment_of_stages() -> dict[str, str]:
    """This process's environment with this Python's folder first in PATH, for `python` is the stages' command."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
