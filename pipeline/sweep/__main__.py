"""Run the pipeline for every trial of a parameter grid, several at once: as DVC experiments, or on Ray.

    python -m pipeline.sweep [-S NAME=VALUE,VALUE …] [--jobs N] [--name NAME] [--engine ray [--address ADDRESS]]

Without -S the grid is the default of pipeline/experiment.py. A trial is identified by its parameters and the code.
Finished trials are not run again, and stopped ones resume from their checkpoint, so the same command resumes an
interrupted sweep. The sweep copies the workspace before it names its trials and runs them in such copies, so that an
edit after the start changes nothing. Exit code 1: some trials failed; all others were run.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from pipeline.core import dvcfiles, processes
from pipeline.core.dvc_cli import dvc, repair_truncated_locks
from pipeline.core.errors import EXIT_BUG, PipelineError, run_command
from pipeline.core.metrics import load_metrics, with_role
from pipeline.core.repository import main_root
from pipeline.experiment import EXPERIMENT
from pipeline.params import load_params
from pipeline.sweep import dvc_engine, ray_engine
from pipeline.sweep.grid import LOGS, Trial, default_name, make_trials, parse_grid, shared_stages
from pipeline.tracking import fingerprints, store
from pipeline.tracking.journal import one_line
from pipeline.tracking.store import open_store
from pipeline.tracking.sync import sync
from pipeline.tracking.tags import tag_row

if TYPE_CHECKING:
    from mlflow import MlflowClient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-S",
        "--set-param",
        action="append",
        metavar="NAME=VALUES",
        help=f"a parameter and its values; may be given several times (default: {' '.join(EXPERIMENT.default_grid)})",
    )
    parser.add_argument("--jobs", type=int, help="trials that run at once (default: cores / train.threads)")
    parser.add_argument(
        "--name", help="the sweep's name, stored in the runs' MLflow tag `sweep` (default: the grid's parameters)"
    )
    parser.add_argument("--engine", choices=["dvc", "ray"], default="dvc", help="what runs the trials")
    parser.add_argument("--address", help="address of a Ray cluster (default: start Ray on this machine only)")
    arguments = parser.parse_args()
    if Path.cwd().resolve() != main_root():
        raise PipelineError(f"run this in the repository's root: cd {main_root()}")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise PipelineError(f"--jobs must be 1 or more, got {arguments.jobs}")
    if arguments.address and arguments.engine != "ray":
        raise PipelineError("--address is for a Ray cluster: add --engine ray")
    grid = parse_grid(arguments.set_param or [*EXPERIMENT.default_grid])
    name = arguments.name or default_name(grid)
    if "|" in name:
        raise PipelineError(f"--name must not contain |, which separates the names of a run's sweeps; got {name!r}")

    processes.sighup_as_exit()
    LOGS.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(LOGS / "lock", timeout=0), processes.sigterm_as_exit():
            repair_truncated_locks(Path())
            with dvc_engine.copies(main_root(), 1) as (snapshot,):
                with chdir(snapshot):
                    # Fail now, not when the first trial ends.
                    EXPERIMENT.check(load_params().flat())
                    for role in ("select", "report"):
                        with_role(role, load_metrics())
                    trials = make_trials(grid)
                if arguments.engine == "ray":
                    failed = sweep_on_ray(trials, snapshot, arguments.jobs, name, arguments.address)
                else:
                    failed = sweep(trials, snapshot, arguments.jobs or dvc_engine.default_jobs(trials), name)
    except Timeout:
        raise PipelineError("another sweep is running in this repository") from None
    if store.is_on():
        print(f"to compare the trials: make compare SWEEP={shlex.quote(name)}")
    if failed:
        print("\nfailed:", *(f"  {trial.name}: {trial.log}" for trial in failed), sep="\n", file=sys.stderr)
        sys.exit(1)


def sweep(trials: list[Trial], snapshot: Path, jobs: int, name: str) -> list[Trial]:
    """Run the unfinished trials as DVC experiments and tag the MLflow runs of all finished ones.

    Returns:
        The trials that failed.
    """
    done = dvc_engine.finished(trials)
    waiting = [trial for trial in trials if trial.experiment not in done]
    announce(trials, waiting, name, f"{jobs} at once")
    prepare(waiting, snapshot)
    if store.is_on() and all(map(dvcfiles.is_up_to_date, dvcfiles.all_stages())):
        warn_on_error(sync)  # DVC does not run the workspace's own trial again
    try:
        with dvc_engine.copies(snapshot, min(jobs, len(waiting)) - 1) as others:
            return dvc_engine.run_trials(waiting, [snapshot, *others], n_trials=len(trials))
    finally:
        if store.is_on():
            warn_on_error(lambda: tag_rows(trials, name))


def sweep_on_ray(trials: list[Trial], snapshot: Path, jobs: int | None, name: str, address: str | None) -> list[Trial]:
    """Run the unfinished trials on Ray; return those that failed."""
    ray_engine.check(trials, address)
    client, experiment_id = open_store()
    ray_engine.keep_one_finished_run(client, experiment_id, trials)
    done = ray_engine.finished(client, experiment_id, trials)
    waiting = [trial for trial in trials if trial.experiment not in done]
    announce(trials, waiting, name, f"on Ray at {address or 'this machine'}")
    prepare(waiting, snapshot)
    try:
        if not waiting:
            return []
        return ray_engine.run_trials(client, experiment_id, waiting, snapshot, jobs, address, n_trials=len(trials))
    finally:
        warn_on_error(lambda: conclude(client, experiment_id, trials, name))


def conclude(client: "MlflowClient", experiment_id: str, trials: list[Trial], name: str) -> None:
    """After a sweep on Ray, leave one finished run per trial, tag it, and print the command for the best trial."""
    ray_engine.keep_one_finished_run(client, experiment_id, trials)
    rows = ray_engine.finished(client, experiment_id, trials)
    for row in rows.values():
        tag_row(client, row, name)
    if (best := ray_engine.best(trials, rows)) is not None:
        name, metric = with_role("select", load_metrics())
        command = ray_engine.command_for(best)
        print(f"{best.name} has the best {metric.label or name}; to bring it here: {command}")


def prepare(trials: list[Trial], snapshot: Path) -> None:
    """Run the stages that all trials share: in the snapshot for the trials, in the workspace for `make compare`.

    Raises:
        PipelineError: a stage fails in the snapshot.
    """
    with chdir(snapshot):
        shared = shared_stages(trials) if trials else []
    if shared:
        dvc("repro", *shared, folder=snapshot, quiet=True)
        warn_on_error(lambda: dvc("repro", *shared, folder=main_root(), quiet=True))


def announce(trials: list[Trial], waiting: list[Trial], name: str, how: str) -> None:
    n_done = len(trials) - len(waiting)
    print(f"sweep {name!r}: {len(trials)} trials, {n_done} done, {len(waiting)} to run, {how}", flush=True)


def warn_on_error(call: Callable[[], object]) -> None:
    """Run a call and print its error as a warning: the results do not depend on a store."""
    from mlflow.exceptions import MlflowException

    try:
        call()
    except (PipelineError, MlflowException) as error:
        print(f"warning: {one_line(error)}", file=sys.stderr)


def tag_rows(trials: list[Trial], name: str) -> None:
    """Add this sweep's name to the tag `sweep` of the MLflow runs of all finished trials, whoever ran them."""
    client, experiment_id = open_store()
    missing = []
    commits = dvc_engine.finished(trials)
    for trial in trials:
        if trial.experiment not in commits:
            continue
        outs = dvcfiles.outs_at(commits[trial.experiment], EXPERIMENT.train)
        row = store.find_training(client, experiment_id, fingerprints.fingerprint(trial.params, outs))
        if row is None:
            missing.append(trial.name)
        else:
            tag_row(client, row, name)
    if missing:
        print(
            f"note: the MLflow store has no run for {', '.join(missing)}. If an outage delayed it, `make sync` "
            "delivers it and the same sweep command tags it; otherwise `dvc exp apply NAME` and `make sync` create one"
        )


if __name__ == "__main__":
    run_command(main, exit_code_of_a_bug=EXIT_BUG)
