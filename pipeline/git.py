"""Ask git, in the folder that is meant, whatever repository a git hook names in its environment."""

import os
import subprocess
from pathlib import Path

from pipeline.errors import PipelineError

# A git hook sets these: git would work in the hook's repository.
HOOK_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")


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
    variables = {name: value for name, value in os.environ.items() if name not in HOOK_VARIABLES}
    done = subprocess.run(["git", *arguments], cwd=folder, env=variables, capture_output=True)
    if done.returncode != 0:
        raise PipelineError(f"git {arguments[0]}: {' '.join(done.stderr.decode(errors='replace').split())}")
    return done.stdout
