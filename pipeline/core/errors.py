"""Errors for the person at the terminal: one line, exit code 2, no traceback."""

import errno
import os
import sys
import traceback
from collections.abc import Callable

# Of a disk that is full, over its quota, read-only or somebody else's.
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
# For commands whose exit code 1 has a meaning.
BUG = 70
GET_BACK = "git restore params.yaml dvc.lock reports && dvc checkout"


class PipelineError(Exception):
    """Something the user can put right. The message says what is wrong, where, and what to do."""


def on_one_line(error: object) -> str:
    """An error's text without line breaks."""
    return " ".join(str(error).split())


def run_command(main: Callable[[], None], exit_code_of_a_bug: int = 1) -> None:
    """Run a stage or a command; a PipelineError, or a disk's, ends it with one message and exit code 2.

    Any other exception is a bug and keeps its traceback.
    """
    try:
        main()
    except Exception as error:
        is_storage_error = isinstance(error, OSError) and error.errno in STORAGE_ERRORS
        if not (isinstance(error, PipelineError) or is_storage_error):
            traceback.print_exc()
            sys.exit(exit_code_of_a_bug)
        print(f"error: {error}", file=sys.stderr)
        if os.environ.get("DVC_STAGE"):
            # DVC deletes a stage's outs before it runs the stage.
            print(f"to get the last committed results back: {GET_BACK}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
