"""The two lock files that a killed DVC may leave half written, and refuses from then on."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

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
        subprocess.run(["git", "restore", str(LOCK_PATH)], cwd=root, stderr=subprocess.DEVNULL)
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
