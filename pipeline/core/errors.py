"""Errors for the person at the terminal: one line, exit code 2, no traceback."""

import errno
import os
import sys
import traceback
from collections.abc import Callable

# A disk that is full, over quota or read-only, or a file without permission.
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
# The exit code of a bug, for commands whose exit code 1 means something else.
EXIT_BUG = 70
RESTORE_COMMAND = "git restore params.yaml dvc.lock reports && dvc checkout"


class PipelineError(Exception):
    """An error that the user can fix. The message says what is wrong, where, and what to do."""


def on_one_line(error: object) -> str:
    """Return an error's text without line breaks."""
    return " ".join(str(error).split())


def run_command(main: Callable[[], None], exit_code_of_a_bug: int = 1) -> None:
    """Run a stage or a command. A PipelineError or one of STORAGE_ERRORS prints its message and exits with code 2.

    Any other exception is a bug: it prints a traceback and exits with `exit_code_of_a_bug`. Ctrl-C exits with 130.
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
            # DVC deletes a stage's outputs before it runs the stage.
            print(f"to get the last committed results back: {RESTORE_COMMAND}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
