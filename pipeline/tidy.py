"""List leftovers and their size on disk; with --remove, delete them.

    python -m pipeline.tidy [--remove]

- runs that were deleted in MLflow, with their artifacts and models, unless the model registry or another run uses them
  (not those on a tracking server: run `mlflow gc` there)
- folders of DVC's temporary experiments and clones of sweeps, if no process works in them and nothing in them has
  changed for an hour
- checkpoints of trainings that were not resumed for a week
- journals that a killed process had only begun, or that are corrupt; journals that wait for delivery are never touched

DVC's cache is not touched: use `dvc gc`.
"""

import argparse
import io
import itertools
import shutil
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from pipeline.core.errors import run_command
from pipeline.core.repository import CHECKPOINTS, main_root
from pipeline.tracking.journal import FOLDER, journals
from pipeline.tracking.store import is_server, local_path, open_store, search_all, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

# Anything that changed more recently may be in use.
OLD_SECONDS = 3600
OLD_CHECKPOINT_SECONDS = 7 * 24 * 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--remove", action="store_true", help="delete what is listed")
    remove = parser.parse_args().remove

    root = main_root()
    total = 0
    for path in [*begun_journals(root), *temporary_experiments(root), *old_checkpoints(root)]:
        total += print_size(str(path.relative_to(root)), [path])
        if remove and path.is_dir():
            shutil.rmtree(path)
        elif remove:
            path.unlink()
    if is_server(tracking_uri(root)):
        print("deleted runs on a tracking server are not listed: run `mlflow gc` there")
    else:
        client, experiment_id = open_store()
        runs = deleted_runs(client, experiment_id)
        for run, models in runs:
            addresses = [run.info.artifact_uri, *(model.artifact_location for model in models)]
            folders = [local_path(uri) for uri in addresses if uri.startswith("file:")]
            total += print_size(f"deleted run {run.info.run_name}, {run.info.run_id}", folders)
        if remove and runs:
            delete_for_good(client, runs, tracking_uri(root))
    print(f"{total / 1e6:9.1f} MB  in all{' removed' if remove else '; `python -m pipeline.tidy --remove` deletes it'}")
    if n_waiting := len(journals(root)):
        print(f"{n_waiting} journals wait for delivery: `make sync`")


def print_size(what: str, paths: list[Path]) -> int:
    """Print a line with the size on disk, and return the size in bytes."""
    size = sum(file.stat().st_size for path in paths for file in [path, *path.rglob("*")] if file.is_file())
    print(f"{size / 1e6:9.1f} MB  {what}")
    return size


def begun_journals(root: Path) -> list[Path]:
    """Return journals that were never completed, are corrupt, or whose deletion was interrupted."""
    whole = {journal.folder for journal in journals(root)}
    return [path for path in (root / FOLDER).glob("*/") if path not in whole and is_old(path)]


def is_old(folder: Path) -> bool:
    """Whether nothing in a folder has changed for an hour."""
    try:
        times = [path.lstat().st_mtime for path in [folder, *folder.rglob("*")]]
    except FileNotFoundError:  # a process is working in it
        return False
    return max(times) < time.time() - OLD_SECONDS


def temporary_experiments(root: Path) -> list[Path]:
    """Return old folders of `dvc exp run --temp` and `--queue`, and sweeps' clones, that no process works in."""
    folder = root / ".dvc/tmp/exps"
    used = [Path(cwd) for process in psutil.process_iter(["cwd"]) if (cwd := process.info["cwd"])]
    return [
        path
        for pattern in ("tmp*/", "standalone/tmp*/", "sweep-*/")
        for path in folder.glob(pattern)
        if is_old(path) and not any(cwd.is_relative_to(path) for cwd in used)
    ]


def old_checkpoints(root: Path) -> list[Path]:
    """Return the checkpoint files of trainings none of whose files has changed for a week."""
    files: dict[str, list[Path]] = {}
    for path in sorted((root / CHECKPOINTS).glob("*")):
        files.setdefault(path.stem, []).append(path)
    newest = time.time() - OLD_CHECKPOINT_SECONDS
    return [path for paths in files.values() if max(p.stat().st_mtime for p in paths) < newest for path in paths]


def deleted_runs(client: "MlflowClient", experiment_id: str) -> "list[tuple[Run, list[LoggedModel]]]":
    """Return the runs that were deleted in MLflow, each with its models, without those that are still in use.

    A run is in use if the model registry has a version of it, or if a run that is not deleted uses one of its models.
    """
    from mlflow.entities import ViewType

    runs = client.search_runs([experiment_id], run_view_type=ViewType.DELETED_ONLY, max_results=50_000)
    used = used_models(client) if runs else set()
    # A version may be registered by an address, without a run id.
    versions = client.search_model_versions(max_results=10_000) if runs else []
    # A copied version names the original version as its source, and shares the original's files.
    files = [client.get_model_version_download_uri(version.name, version.version) for version in versions]
    sources = [f"{version.run_id} {version.source} {place}" for version, place in zip(versions, files, strict=True)]
    found = []
    for run in runs:
        models = list(client.search_logged_models([experiment_id], f"source_run_id = '{run.info.run_id}'"))
        ids = {run.info.run_id, *(model.model_id for model in models)}
        if not (ids & used or any(id_ in source for id_ in ids for source in sources)):
            found.append((run, models))
    return found


def used_models(client: "MlflowClient") -> set[str]:
    """Return the ids of all models that are inputs or outputs of runs that are not deleted, in any experiment."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    used: set[str] = set()
    for found in itertools.chain.from_iterable(search_all(client, each, "") for each in experiments):
        run = client.get_run(found.info.run_id)  # a search does not return a run's input models
        used |= {model.model_id for model in (run.inputs.model_inputs if run.inputs else [])}
        used |= {model.model_id for model in (run.outputs.model_outputs if run.outputs else [])}
    return used


def delete_for_good(client: "MlflowClient", runs: "list[tuple[Run, list[LoggedModel]]]", uri: str) -> None:
    """Permanently delete runs that were deleted in MLflow, with their artifacts and models."""
    from mlflow.cli import gc

    ids = ["--run-ids", ",".join(run.info.run_id for run, _ in runs)]
    models = [model.model_id for _, models in runs for model in models]
    if models:
        ids += ["--logged-model-ids", ",".join(models)]
    for model_id in models:
        # `mlflow gc` only removes models that are marked as deleted.
        client.delete_logged_model(model_id)
    with redirect_stdout(io.StringIO()):
        # In this process, because a command line would show a password in the address to everyone on the machine.
        gc.main(["--backend-store-uri", uri, "--tracking-uri", uri, *ids], standalone_mode=False)


if __name__ == "__main__":
    run_command(main)
