"""Run a sweep's points as DVC experiments on this machine, each in a clone of the repository."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.core import dvcfiles
from pipeline.core.dvc_cli import environment_of_stages
from pipeline.core.git import check_out_workspace, commit_workspace, experiments, file_at, git
from pipeline.core.repository import main_root
from pipeline.sweep.grid import Point, digest_in_lock
from pipeline.sweep.progress import PointResult, Running, SweepProgress

COPIES = Path(".dvc/tmp/exps")  # where DVC has its own, so that `main_root` and `make tidy` know them
DVC = [sys.executable, "-m", "dvc"]
# How long an interrupted point may take to close its row and its files.
STOP_SECONDS = 30


def default_jobs(points: list[Point]) -> int:
    """As many points at once as the machine has cores for their threads."""
    return max(1, (os.cpu_count() or 1) // max(point.n_threads for point in points))


def finished(points: list[Point]) -> dict[str, str]:
    """{experiment: commit} of the points that are done, by whichever grid, queue or `dvc exp run`."""
    commits = {digest_at(commit): commit for commit in experiments().values()}
    return {point.experiment: commits[point.digest] for point in points if point.digest in commits}


@cache
def digest_at(commit: str) -> str | None:
    """The hash of the point that a commit's dvc.lock is of; an experiment's name may claim another one."""
    return digest_in_lock(dvcfiles.lock_at(commit))


@contextmanager
def copies(source: Path, n: int) -> Iterator[list[Path]]:
    """Clones of a repository, with its workspace's changes to tracked files and DVC's cache; deleted afterwards.

    Experiments in one repository would share a queue in which DVC stashes the workspace, one at a time.

    Args:
        source: the main repository, or one of its copies.
        n: how many.
    """
    root = main_root()
    (root / COPIES).mkdir(parents=True, exist_ok=True)
    head, workspace = commit_workspace(source)
    cache_folder = subprocess.check_output([*DVC, "cache", "dir"], cwd=source, text=True).strip()
    folders = []
    try:
        for _ in range(n):
            folders.append(folder := Path(tempfile.mkdtemp(prefix="sweep-", dir=root / COPIES)))
            git(source, "clone", "--quiet", "--shared", str(source), str(folder))
            git(folder, "fetch", "--quiet", str(source), workspace)  # a shallow repository shares no objects
            check_out_workspace(folder, head, workspace)
            if (local := source / ".dvc/config.local").is_file():
                shutil.copy(local, folder / ".dvc/config.local")
            subprocess.run([*DVC, "config", "--local", "cache.dir", str(source / cache_folder)], cwd=folder, check=True)
        yield folders
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def run_points(points: list[Point], folders: list[Path], n_points: int) -> list[Point]:
    """Run points, one at a time in each folder; those that failed. An interruption stops all of them."""
    progress = SweepProgress(n_points, len(folders), n_done=n_points - len(points))
    failed = []
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
                result = collect(point, folder)
                if result is None:
                    failed.append(point)
                progress.on_end(point.name, result, point.log, time.monotonic() - started, still_running(running))
            progress.show(still_running(running))
            time.sleep(0.1)
    finally:
        if running:
            stop(running)
            progress.on_interruption()
    return failed


def still_running(running: Mapping[Any, tuple[Point, Path, float]]) -> list[Running]:
    return [Running(point.name, point.log, started) for point, _, started in running.values()]


def start(point: Point, folder: Path) -> subprocess.Popen[bytes]:
    """DVC on one point, in a session of its own, so that a terminal's Ctrl-C reaches the sweep alone."""
    with point.log.open("wb") as log:
        return subprocess.Popen(
            [*DVC, "exp", "run", "--name", point.experiment, *point.settings],
            cwd=folder,
            env=environment_of_stages() | {"MLFLOW_RUN_NAME": point.name},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def collect(point: Point, folder: Path) -> PointResult | None:
    """Bring a point's experiment into this repository; its numbers, None if there is no experiment."""
    ref = f"refs/exps/*/{point.experiment}"
    git(main_root(), "fetch", "--quiet", str(folder), f"+{ref}:{ref}")  # one that is there already is not of this point
    commit = finished([point]).get(point.experiment)
    return PointResult.read(lambda path: file_at(commit, path) or "") if commit else None


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
