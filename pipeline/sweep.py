"""Run the pipeline for every point of a grid of parameters, as DVC experiments, several at once.

    python -m pipeline.sweep [-S NAME=VALUE,VALUE …] [--jobs N] [--name NAME]

Without -S the grid is six bottleneck sizes × three seeds. A point is known by its parameters and the code: one
that an experiment of a sweep holds is not run again, and one that was stopped goes on from its checkpoint, so the
same command goes on where the last one was interrupted. The points run in copies of the workspace as it is at the
start, so that it may be changed meanwhile. Exit code 1: some points failed; the others were run all the same.
"""

import argparse
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from pipeline import delivery, dvcfiles, processes, provenance, tracking
from pipeline.errors import PipelineError, run_command
from pipeline.params import Params, load_params, parse_values
from pipeline.provenance import git
from pipeline.repository import main_root
from pipeline.run import dvc, environment_of_stages, mend_emptied_locks
from pipeline.store import open_store
from pipeline.sync import sync

DEFAULT_GRID = ["model.bottleneck_size=2,4,8,16,32,64", "train.seed=0,1,2"]
FOLDER = Path(".dvc/tmp/sweep")  # logs
COPIES = Path(".dvc/tmp/exps")  # where DVC has its own, so that `main_root` and `make tidy` know them
SWEEP_TAG = "sweep"
DVC = [sys.executable, "-m", "dvc"]
# Rows have these in their name anyway.
NAMED = {"model.bottleneck_size", "train.seed"}
# How long an interrupted point may take to close its row and its files.
STOP_SECONDS = 30


@dataclass(frozen=True)
class Point:
    """One cell of the grid. `experiment` is its DVC experiment's name, which ends in a hash of params and code."""

    changes: dict[str, Any]
    params: Params
    name: str
    experiment: str

    @property
    def log(self) -> Path:
        return FOLDER / f"{self.experiment}.log"


@dataclass
class Progress:
    """Says after each point how far the sweep is."""

    n_points: int
    jobs: int
    n_done: int = 0
    seconds: list[float] = field(default_factory=list)
    failed: list[Point] = field(default_factory=list)

    def on_end(self, point: Point, what: str, seconds: float, running: Iterable[Point]) -> None:
        self.seconds.append(seconds)
        n_left = self.n_points - self.n_done - len(self.failed)
        left = n_left * sum(self.seconds) / len(self.seconds) / self.jobs
        parts = [
            f"{self.n_done} of {self.n_points} done",
            f"running: {', '.join(other.name for other in running) or 'none'}",
            f"failed: {len(self.failed)}",
            f"about {duration(left)} left",
        ]
        print(f"{point.name}: {what} in {duration(seconds)}   ({'; '.join(parts)})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-S",
        "--set-param",
        action="append",
        metavar="NAME=VALUES",
        help=f"a parameter and its values; may be given several times (default: {' '.join(DEFAULT_GRID)})",
    )
    parser.add_argument("--jobs", type=int, help="points that run at once (default: cores / train.threads)")
    parser.add_argument("--name", help="what the runs' MLflow tag `sweep` says (default: the parameters of the grid)")
    arguments = parser.parse_args()
    if Path.cwd().resolve() != main_root():
        raise PipelineError(f"run this in the repository's root: cd {main_root()}")
    grid = parse_grid(arguments.set_param or DEFAULT_GRID)
    points = make_points(grid)
    jobs = default_jobs(points) if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise PipelineError(f"--jobs must be 1 or more, got {jobs}")
    name = arguments.name or default_name(grid)

    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(FOLDER / "lock", timeout=0):
            failed = sweep(points, jobs, name)
    except Timeout:
        raise PipelineError("another sweep is running in this repository") from None
    if failed:
        print("\nfailed:", *(f"  {point.name}: {point.log}" for point in failed), sep="\n", file=sys.stderr)
        sys.exit(1)


def sweep(points: list[Point], jobs: int, name: str) -> list[Point]:
    """Run what is not done yet, and tag the rows of all that is; the points that failed."""
    mend_emptied_locks(Path())
    if not any(name.startswith("data.") for name in points[0].changes):
        dvc("repro", "--quiet", "baselines")  # shared by all points, so it is done before them, once
    if tracking.is_on() and all(map(dvcfiles.is_up_to_date, dvcfiles.all_stages())):
        attempt(sync)  # DVC will not run the workspace's own point again
    done = finished(points)
    waiting = [point for point in points if point.experiment not in done]
    print(f"sweep {name!r}: {len(points)} points, {len(done)} done, {len(waiting)} to run, {jobs} at once", flush=True)
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(128 + signal.SIGHUP))  # the terminal was closed
    try:
        with processes.sigterm_as_exit(), copies(min(jobs, len(waiting))) as folders:
            return run_points(waiting, folders, n_points=len(points))
    finally:
        if tracking.is_on():
            attempt(lambda: tag_rows(points, name))


def attempt(call: Callable[[], object]) -> None:
    """The results do not depend on a store."""
    from mlflow.exceptions import MlflowException

    try:
        call()
    except (PipelineError, MlflowException) as error:
        print(f"warning: {error}", file=sys.stderr)


def parse_grid(arguments: list[str]) -> dict[str, list[Any]]:
    """{'model.bottleneck_size': [2, 4], …} of `name=value,value` arguments, several of which may be in one.

    Raises:
        PipelineError: an argument is no `name=values`, or names one twice.
    """
    grid: dict[str, list[Any]] = {}
    for argument in arguments:
        for part in re.split(r"\s+(?=[\w.]+=)", argument.strip()):
            name, equals, values = part.partition("=")
            if not equals or not values:
                raise PipelineError(f"-S wants a parameter and its values, as train.lr=0.001,0.005; got {part!r}")
            if name in grid:
                raise PipelineError(f"{name} is given twice; list its values with commas")
            grid[name] = parse_values(values)
    return grid


def make_points(grid: dict[str, list[Any]]) -> list[Point]:
    """The grid's points, the first parameter varying fastest, so that whole curves appear early.

    Raises:
        PipelineError: a point has values that are not allowed.
    """
    code = tracking.code_of_stages()
    varied = [name for name in grid if name not in NAMED and len(grid[name]) > 1]
    points: dict[str, Point] = {}
    for reversed_values in itertools.product(*reversed(grid.values())):
        changes = dict(zip(grid, reversed(reversed_values), strict=True))
        params = load_params(changes=changes)
        name = " ".join([tracking.run_name(params), *(f"{short(name)}={changes[name]}" for name in varied)])
        content = json.dumps({"params": params.flat(), "code": code}, sort_keys=True)
        readable = re.sub(r"[^\w.]+", "-", name).strip("-.").replace("..", ".")[:100]
        point = Point(changes, params, name, f"{readable}-{hashlib.sha256(content.encode()).hexdigest()[:8]}")
        points.setdefault(point.experiment, point)
    return list(points.values())


def default_name(grid: dict[str, list[Any]]) -> str:
    """`bottleneck_size,seed`, with the value of a parameter that has only one."""
    return ",".join(short(name) + (f"={values[0]}" if len(values) == 1 else "") for name, values in grid.items())


def default_jobs(points: list[Point]) -> int:
    """As many points at once as the machine has cores for their threads."""
    cores = os.cpu_count() or 1
    threads = max(cores if point.params.train.threads == "auto" else point.params.train.threads for point in points)
    return max(1, cores // threads)


def finished(points: list[Point]) -> dict[str, str]:
    """{experiment: commit} of the points that are done, by the hash: other grids name the same point otherwise."""
    commits = {digest(name): commit for (_, name), commit in provenance.experiments().items()}
    return {
        point.experiment: commits[digest(point.experiment)] for point in points if digest(point.experiment) in commits
    }


@contextmanager
def copies(n: int) -> Iterator[list[Path]]:
    """Clones of this repository, with the workspace's changes to tracked files and DVC's cache; deleted afterwards.

    Experiments in one repository would share a queue in which DVC stashes the workspace, one at a time.
    """
    root = main_root()
    state = git(root, "-c", "user.name=sweep", "-c", "user.email=sweep@localhost", "stash", "create") or "HEAD"
    commit = git(root, "rev-parse", state)
    cache = subprocess.check_output([*DVC, "cache", "dir"], text=True).strip()
    folders = [root / COPIES / f"sweep-{os.getpid()}-{number}" for number in range(n)]
    try:
        for folder in folders:
            folder.parent.mkdir(parents=True, exist_ok=True)
            git(root, "clone", "--quiet", "--shared", str(root), str(folder))
            git(folder, "checkout", "--quiet", "--detach", git(root, "rev-parse", "HEAD"))
            git(folder, "read-tree", "-u", "--reset", commit)
            git(folder, "reset", "--quiet")
            if (local := root / ".dvc/config.local").is_file():
                shutil.copy(local, folder / ".dvc/config.local")
            subprocess.run(
                [sys.executable, "-m", "dvc", "config", "--local", "cache.dir", str(root / cache)],
                cwd=folder,
                check=True,
            )
        yield folders
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def run_points(points: list[Point], folders: list[Path], n_points: int) -> list[Point]:
    """Run points, one at a time in each folder; those that failed. An interruption stops all of them."""
    progress = Progress(n_points, len(folders), n_done=n_points - len(points))
    waiting, idle = deque(points), list(folders)
    running: dict[subprocess.Popen[bytes], tuple[Point, Path, float]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                point, folder = waiting.popleft(), idle.pop()
                running[start(point, folder)] = (point, folder, time.monotonic())
            for process in [process for process in running if process.poll() is not None]:
                point, folder, started = running.pop(process)
                idle.append(folder)
                what = collect(point, folder)
                if what is None:
                    progress.failed.append(point)
                else:
                    progress.n_done += 1
                others = [other for other, *_ in running.values()]
                progress.on_end(point, what or f"FAILED, see {point.log},", time.monotonic() - started, others)
            time.sleep(0.1)
    finally:
        if running:
            stop(running)
            n_done = progress.n_done
            print(f"stopped; {n_done} of {n_points} points are done, the same command goes on", file=sys.stderr)
    return progress.failed


def start(point: Point, folder: Path) -> subprocess.Popen[bytes]:
    """DVC on one point, in a session of its own, so that a terminal's Ctrl-C reaches the sweep alone."""
    settings = [argument for name, value in point.changes.items() for argument in ("-S", f"{name}={json.dumps(value)}")]
    with point.log.open("wb") as log:
        return subprocess.Popen(
            [*DVC, "exp", "run", "--name", point.experiment, *settings],
            cwd=folder,
            env=environment_of_stages() | {"MLFLOW_RUN_NAME": point.name},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def collect(point: Point, folder: Path) -> str | None:
    """Bring a point's experiment into this repository: `test MSE 0.0338`; None if there is none."""
    git(main_root(), "fetch", "--quiet", str(folder), f"refs/exps/*/{point.experiment}:refs/exps/*/{point.experiment}")
    commit = finished([point]).get(point.experiment)
    metrics = provenance.file_at(commit, "reports/evaluate.json") if commit else None
    return f"test MSE {json.loads(metrics)['test']['mse']:.4f}" if metrics else None


def stop(running: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ctrl-C for each point, which closes its MLflow row; SIGKILL for what has not ended in time."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave points that run on
    deadline = time.monotonic() + STOP_SECONDS
    for number in (signal.SIGINT, signal.SIGKILL):
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, number)
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue


def tag_rows(points: list[Point], name: str) -> None:
    """This sweep's name in the tag `sweep` of the MLflow rows of all points that are done, whoever ran them."""
    client, experiment_id = open_store()
    missing = []
    commits = finished(points)
    for point in points:
        if point.experiment not in commits:
            continue
        lock = yaml.safe_load(provenance.file_at(commits[point.experiment], "dvc.lock") or "") or {}
        outs = {out["path"]: out["md5"] for out in lock.get("stages", {}).get("train", {}).get("outs", [])}
        row = delivery.find_training(client, experiment_id, tracking.fingerprint(point.params, outs))
        if row is None:
            missing.append(point.name)
        elif name not in (names := sweeps_of(row.data.tags)):
            client.set_tag(row.info.run_id, SWEEP_TAG, " | ".join([*names, name]))
    if missing:
        print(f"note: the MLflow store has no row of {', '.join(missing)}; it was another one, or `make sync` helps")


def sweeps_of(tags: dict[str, str]) -> list[str]:
    """The names of the sweeps that a row belongs to."""
    return tags[SWEEP_TAG].split(" | ") if SWEEP_TAG in tags else []


def digest(experiment: str) -> str:
    """The hash in which an experiment's name ends."""
    return experiment.rpartition("-")[2]


def short(name: str) -> str:
    """`lr` of `train.lr`."""
    return name.partition(".")[2] or name


def duration(seconds: float) -> str:
    """As `42 s`, `3.5 min` or `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    run_command(main)
