"""Find the main repository, also from DVC's temporary copies of it; and name folders under its root."""

from pathlib import Path

from pipeline.core.errors import PipelineError

# Under the main repository's root: a download cache that all experiments share, not a DVC output.
RAW_FOLDER = Path("data/raw")
# Under the main repository's root: the checkpoints (core/checkpoint.py).
CHECKPOINTS = ".checkpoints"
# What `make compare` writes. It is in git, but it is not a result of the workspace's run.
COMPARISON = Path("reports/compare")
# The environment that made the committed results (core/environment.py). It is in git, but not a stage's output.
RECORD_PATH = Path("reports/environment.json")


def main_root(start: Path | None = None) -> Path:
    """Return the absolute path of the nearest folder with `.dvc`, upwards from `start` (default: the working folder).

    `dvc exp run --temp` and `--queue` work in copies under `<root>/.dvc/tmp/exps/`. There the result is <root>, so that
    caches and the MLflow store outlive the copy. DVC_ROOT is ignored, because an inherited value may be stale.

    Raises:
        PipelineError: neither `start` nor a parent folder is a DVC repository.
    """
    start = (start or Path.cwd()).resolve()
    folders = (start, *start.parents)
    for folder in folders:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    for folder in folders:
        if (folder / ".dvc").is_dir():
            return folder
    raise PipelineError(f"{start} is not inside a DVC repository; run this in a clone of the project")
