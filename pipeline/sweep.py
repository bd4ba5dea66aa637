"""Run the pipeline for every point of a grid of parameters, as DVC experiments, several at once.

    python -m pipeline.sweep [-S NAME=VALUE,VALUE …] [--jobs N] [--name NAME]

Without -S the grid is six bottleneck sizes × three seeds. A point is known by its parameters and the code: one
that an experiment holds is not run again, and one that was stopped goes on from its checkpoint, so the same
command goes on where the last one was interrupted. Each point is `dvc exp run --temp` and has a log of its own.
Exit code 1: some points failed; the others were run all the same.
"""

import argparse
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline import delivery, dvcfiles, processes, provenance, tracking
from pipeline.errors import PipelineError, run_command
from pipeline.params import Params, load_params, parse_values
from pipeline.repository import main_root
from pipeline.run import dvc, environment_of_stages
from pipeline.store import open_store
from pipeline.sync import sync

DEFAULT_GRID = ["model.bottleneck_size=2,4,8,16,32,64", "train.seed=0,1,2"]
LOGS = Path(".dvc/tmp/sweep")
SWEEP_TAG = "sweep"
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
        return LOGS / f"{self.experiment}.log"


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
    parser.add_argument("--name", help="the value of the runs' MLflow tag `sweep` (default: what is varied)")
    arguments = parser.parse_args()
    if Path.cwd().resolve() != main_root():
        raise PipelineError(f"run this in the repository's root: cd {main_root()}")
    grid = parse_grid(arguments.set_param or DEFAULT_GRID)
    points = make_points(grid)
    jobs = arguments.jobs or default_jobs(points)
    if jobs < 1:
        raise PipelineError(f"--jobs must be 1 or more, got {jobs}")
    name = arguments.name or ",".join(short(name) for name, values in grid.items() if len(values) > 1) or "single"

    # Shared by all points, so it is done before them, once.
    dvc("repro", "--quiet", "baselines")
    if tracking.is_on() and all(map(dvcfiles.is_up_to_date, dvcfiles.all_stages())):
        sync()  # DVC will not run the workspace's own point again
    done = finished(points)
    waiting = [point for point in points if point.experiment not in done]
    print(f"sweep {name!r}: {len(points)} points, {len(done)} done, {len(waiting)} to run, {jobs} at once", flush=True)
    failed = run_points(waiting, jobs, n_points=len(points))
    if tracking.is_on():
        tag_rows(points, name)
    if failed:
        print("\nfailed:", *(f"  {point.name}: {point.log}" for point in failed), sep="\n", file=sys.stderr)
        sys.exit(1)


def parse_grid(arguments: list[str]) -> dict[str, list[Any]]:
    """{'model.bottleneck_size': [2, 4], …} of `name=value,value` arguments.

    Raises:
        PipelineError: an argument is no `name=values`, or names one twice.
    """
    grid: dict[str, list[Any]] = {}
    for argument in arguments:
        for part in argument.split():
            name, equals, values = part.partition("=")
            if not equals or not values:
                raise PipelineError(f"-S wants a parameter and its values, as train.lr=0.001,0.005; got {part!r}")
            if name in grid:
                raise PipelineError(f"{name} is given twice; list its values with commas")
            grid[name] = parse_values(values)
    return grid


def make_points(grid: dict[str, list[Any]]) -> list[Point]:
    """The grid's points, the last parameter varying slowest, so that whole curves appear early.

    Raises:
        PipelineError: a point has values that are not allowed.
    """
    code = dvcfiles.md5s(
        ["dvc.yaml", *sorted({path for stage in dvcfiles.all_stages() for path in dvcfiles.declared(stage)["deps"]})]
    )
    code = {path: md5 for path, md5 in code.items() if path.endswith((".py", ".yaml"))}
    points: dict[str, Point] = {}
    for reversed_values in itertools.product(*reversed(grid.values())):
        changes = dict(zip(grid, reversed(reversed_values), strict=True))
        params = load_params(changes=changes)
        extra = [
            f"{short(name)}={value}" for name, value in changes.items() if name not in NAMED and len(grid[name]) > 1
        ]
        name = " ".join([tracking.run_name(params), *extra])
        content = json.dumps({"params": params.flat(), "code": code}, sort_keys=True)
        readable = re.sub(r"[^\w.]+", "-", name).strip("-.").replace("..", ".")
        point = Point(changes, params, name, f"{readable}-{hashlib.sha256(content.encode()).hexdigest()[:8]}")
        points.setdefault(point.experiment, point)
    return list(points.values())


def default_jobs(points: list[Point]) -> int:
    """As many points at once as the machine has cores for their threads."""
    threads = max(point.params.train.threads if point.params.train.threads != "auto" else 10_000 for point in points)
    return max(1, (os.cpu_count() or 1) // threads)


def finished(points: list[Point]) -> dict[str, str]:
    """{experiment: commit} of the points that are done, by the hash: other grids name the same point otherwise."""
    commits = {digest(name): commit for (_, name), commit in provenance.experiments().items()}
    return {
        point.experiment: commits[digest(point.experiment)] for point in points if digest(point.experiment) in commits
    }


def run_points(points: list[Point], jobs: int, n_points: int) -> list[Point]:
    """Run points, `jobs` at once; those that failed. An interruption stops all of them and then goes on as such."""
    LOGS.mkdir(parents=True, exist_ok=True)
    progress = Progress(n_points, jobs, n_done=n_points - len(points))
    waiting = deque(points)
    running: dict[subprocess.Popen[bytes], tuple[Point, float]] = {}
    try:
        with processes.sigterm_as_exit():
            while waiting or running:
                while waiting and len(running) < jobs:
                    point = waiting.popleft()
                    running[start(point)] = (point, time.monotonic())
                for process in [process for process in running if process.poll() is not None]:
                    point, started = running.pop(process)
                    what = result(point) if process.returncode == 0 else None
                    if what is None:
                        progress.failed.append(point)
                    else:
                        progress.n_done += 1
                    others = [other for other, _ in running.values()]
                    progress.on_end(point, what or f"FAILED, see {point.log},", time.monotonic() - started, others)
                time.sleep(0.1)
    finally:
        if running:
            stop(running)
            print(
                f"stopped; {progress.n_done} of {n_points} points are done, the same command goes on", file=sys.stderr
            )
    return progress.failed


def start(point: Point) -> subprocess.Popen[bytes]:
    """DVC on one point, in a folder and a session of its own, so that a terminal's Ctrl-C reaches the sweep alone."""
    settings = [argument for name, value in point.changes.items() for argument in ("-S", f"{name}={json.dumps(value)}")]
    command = ["--wait-for-lock", "exp", "run", "--temp", "--name", point.experiment, *settings]
    with point.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", *command],
            env=environment_of_stages() | {"MLFLOW_RUN_NAME": point.name},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(running: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ctrl-C for each point, which closes its MLflow row; SIGKILL for what has not ended in time."""
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


def result(point: Point) -> str | None:
    """`test MSE 0.0338` of a point that has just ended; None if no experiment holds it."""
    commit = finished([point]).get(point.experiment)
    metrics = provenance.file_at(commit, "reports/evaluate.json") if commit else None
    return f"test MSE {json.loads(metrics)['test']['mse']:.4f}" if metrics else None


def tag_rows(points: list[Point], name: str) -> None:
    """The tag `sweep` for the MLflow rows of all points that are done, whoever ran them, and whenever."""
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
        elif row.data.tags.get(SWEEP_TAG) != name:
            client.set_tag(row.info.run_id, SWEEP_TAG, name)
    if missing:
        print(f"note: the MLflow store has no row of {', '.join(missing)}; it was another one, or `make sync` helps")


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
