"""Where the main repository is, also from inside DVC's temporary copies of it; and two folders under its root."""

from pathlib import Path

from pipeline.core.errors import PipelineError

# Under the main repository's root: a cache that every experiment shares, not an out of DVC's.
RAW_FOLDER = Path("data/raw")
# There too: where stopped trainings resume from (autoencoder/checkpoint.py).
CHECKPOINTS = ".checkpoints"


def main_root(start: Path | None = None) -> Path:
    """The absolute path of the folder that holds `.dvc`, found upwards from `start` (default: here).

    `dvc exp run --temp` and `--queue` work in copies somewhere under `<root>/.dvc/tmp/exps/`; for those it
    is <root>, so that caches and the MLflow store outlive the copy. DVC_ROOT is not consulted: an
    inherited, stale value would win over the truth.

    Raises:
        PipelineError: no parent folder is a DVC repository.
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
