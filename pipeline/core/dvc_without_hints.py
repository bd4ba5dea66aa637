"""DVC's command line without its hints on git and remotes. DVC has no setting to disable them.

Following the hints leads to a commit without params.yaml and reports/, and to a push without a remote.
"""

import logging
import sys
from typing import Any

from dvc.cli import main
from dvc.ui import ui

PUSH_HINT = "Use `dvc push` to send your updates to remote storage."

if __name__ == "__main__":
    logging.getLogger("dvc.repo.scm_context").setLevel(logging.WARNING)
    write = ui.write

    def write_without_hint(*objects: Any, **settings: Any) -> None:
        if objects[:1] != (PUSH_HINT,):
            write(*objects, **settings)

    ui.write = write_without_hint
    sys.exit(main(sys.argv[1:]))
