"""Bring MLflow up to date with this repository.

    python -m pipeline.tracking.sync

1. Deliver journals that could not be delivered earlier.
2. If the workspace holds the results of a complete pipeline, complete their run, or create it from the files if the
   store has none. This covers results of a run, `dvc pull`, `dvc exp apply` or DVC's cache. Store dvc.lock in the run,
   because it is complete only after the run.
3. Add to runs of DVC experiments the experiment's commit and dvc.lock, which exist only after the run.

A second sync changes nothing. Exit code 1: something could not be delivered and stays in its journal.
"""

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import dvcfiles
from pipeline.core.dvc_cli import repair_truncated_locks
from pipeline.core.errors import EXIT_BUG, PipelineError, run_command
from pipeline.core.git import experiments, file_at
from pipeline.core.repository import main_root
from pipeline.experiment import EXPERIMENT
from pipeline.params import load_params
from pipeline.tracking import delivery, fingerprints, runs
from pipeline.tracking.journal import journals, one_line, stores_waited_for
from pipeline.tracking.store import find_training, open_store, search_all, store_name, tracking_uri
from pipeline.tracking.tags import COMMIT_TAG, LOCK_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not sync():
        sys.exit(1)


def sync() -> bool:
    """Do all three steps and print what was done. Return False if something could not be delivered.

    Raises:
        PipelineError: the store cannot be opened, or fails in between.
    """
    from mlflow.exceptions import MlflowException

    try:
        return _sync()
    except (MlflowException, OSError) as error:
        raise PipelineError(f"MLflow failed; run `make sync` again to resume: {one_line(error)}") from None


def _sync() -> bool:
    root = main_root()
    repair_truncated_locks(Path())
    store = store_name(tracking_uri(root), root)
    client, experiment_id = open_store()
    n_waiting = len(journals(root, store))
    n_left = len(delivery.deliver_all(root))
    if n_waiting:
        print(f"{n_waiting - n_left} of {n_waiting} journals delivered")

    stale = [stage for stage in dvcfiles.all_stages() if not dvcfiles.is_up_to_date(stage)]
    if stale:
        print(f"the workspace has no results of a complete run (not up to date: {', '.join(stale)})")
    else:
        fingerprint = fingerprints.fingerprint(load_params())
        if fingerprint not in {journal.fingerprint() for journal in journals(root, store)}:
            runs.write_evaluation(load_params())
            delivery.deliver_all(root)
        if (run := find_training(client, experiment_id, fingerprint)) is not None:
            add_lock(client, run, Path("dvc.lock").read_text())
            print(f"MLflow holds the workspace's run: {run.info.run_name}, {run.info.run_id}")
    if n_commits := add_experiment_commits(client, experiment_id):
        print(f"{n_commits} runs in MLflow now have the commit of their DVC experiment")

    failed = {journal: problem for journal in journals(root, store) if (problem := journal.problem()) is not None}
    for journal, (reason, _) in failed.items():
        print(f"error: {journal.folder} is not delivered: {reason}", file=sys.stderr)
    for name in sorted(stores_waited_for(root) - {store}):
        print(f"note: some runs wait for another store; set MLFLOW_TRACKING_URI to deliver them: {name}")
    return not failed


def add_experiment_commits(client: "MlflowClient", experiment_id: str) -> int:
    """Tag runs of DVC experiments with the experiment's commit, and store its dvc.lock. Return the number of runs.

    An experiment's name may be reused (`--force`), so the commit must contain the weights that the run wrote.
    """
    commits = experiments()
    count = 0
    for run in search_all(client, experiment_id, "tags.`dvc.experiment` LIKE '%'"):
        commit = commits.get((run.data.tags.get("dvc.baseline", ""), run.data.tags["dvc.experiment"]))
        if commit is None or COMMIT_TAG in run.data.tags:
            continue
        if run.data.tags.get("model.md5") in dvcfiles.outs_at(commit, EXPERIMENT.train).values():
            add_lock(client, run, file_at(commit, "dvc.lock") or "")
            client.set_tag(run.info.run_id, COMMIT_TAG, commit)
            count += 1
    return count


def add_lock(client: "MlflowClient", run: "Run", lock: str) -> None:
    """Store the artifact `dvc.lock`, unless the run already has the same content."""
    digest = hashlib.sha256(lock.encode()).hexdigest()
    if run.data.tags.get(LOCK_TAG) != digest:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "dvc.lock")
            path.write_text(lock)
            client.log_artifact(run.info.run_id, str(path))
        client.set_tag(run.info.run_id, LOCK_TAG, digest)


if __name__ == "__main__":
    run_command(main, exit_code_of_a_bug=EXIT_BUG)
