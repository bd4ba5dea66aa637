"""Run a sweep's trials as DVC experiments on this machine, each in a clone of the repository."""

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
from pipeline.core.dvc_cli import stage_environment
from pipeline.core.git import check_out_workspace, commit_workspace, experiments, file_at, git
from pipeline.core.repository import main_root
from pipeline.sweep.grid import Trial, digest_in_lock
from pipeline.sweep.progress import Running, SweepProgress, TrialResult

COPIES = Path(".dvc/tmp/exps")  # DVC's own folder, which `main_root` and `make tidy` know
DVC = [sys.executable, "-m", "dvc"]
# How long an interrupted trial may take to close its MLflow run and its files.
STOP_SECONDS = 30


def default_jobs(trials: list[Trial]) -> int:
    """Return how many trials can run at once: the machine's cores divided by the threads of a trial."""
    return max(1, (os.cpu_count() or 1) // max(trial.n_threads for trial in trials))


def finished(trials: list[Trial]) -> dict[str, str]:
    """Return {experiment: commit} of the finished trials, whichever grid, queue or `dvc exp run` ran them."""
    commits = {digest_at(commit): commit for commit in experiments().values()}
    return {trial.experiment: commits[trial.digest] for trial in trials if trial.digest in commits}


@cache
def digest_at(commit: str) -> str | None:
    """Return the digest of the trial that a commit's dvc.lock records; the experiment's name may claim another."""
    return digest_in_lock(dvcfiles.lock_at(commit))


@contextmanager
def copies(source: Path, n: int) -> Iterator[list[Path]]:
    """Clone a repository with the uncommitted changes to tracked files and its DVC cache; delete the clones afterwards.

    In one repository experiments would wait for each other, because DVC stashes the workspace for one at a time.

    Args:
        source: the main repository, or one of its copies.
        n: the number of clones.
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


def run_trials(trials: list[Trial], folders: list[Path], n_trials: int) -> list[Trial]:
    """Run trials, one at a time in each folder, and return those that failed. An interruption stops all of them."""
    progress = SweepProgress(n_trials, len(folders), n_done=n_trials - len(trials))
    failed = []
    waiting, idle = deque(trials), list(folders)
    running: dict[subprocess.Popen[bytes], tuple[Trial, Path, float]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                trial, folder = waiting.popleft(), idle.pop()
                running[start(trial, folder)] = (trial, folder, time.monotonic())
            for process in [process for process in running if process.poll() is not None]:
                trial, folder, started = running.pop(process)
                idle.append(folder)
                result = collect(trial, folder)
                if result is None:
                    failed.append(trial)
                progress.on_end(trial.name, result, trial.log, time.monotonic() - started, still_running(running))
            progress.show(still_running(running))
            time.sleep(0.1)
    finally:
        if running:
            stop(running)
            progress.on_interruption()
    return failed


def still_running(running: Mapping[Any, tuple[Trial, Path, float]]) -> list[Running]:
    return [Running(trial.name, trial.log, started) for trial, _, started in running.values()]


def start(trial: Trial, folder: Path) -> subprocess.Popen[bytes]:
    """Start DVC on one trial, in its own session, so that Ctrl-C in a terminal reaches only the sweep."""
    with trial.log.open("wb") as log:
        return subprocess.Popen(
            [*DVC, "exp", "run", "--name", trial.experiment, *trial.settings],
            cwd=folder,
            env=stage_environment() | {"MLFLOW_RUN_NAME": trial.name},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def collect(trial: Trial, folder: Path) -> TrialResult | None:
    """Fetch a trial's experiment into this repository; return its numbers, or None if there is no experiment."""
    ref = f"refs/exps/*/{trial.experiment}"
    git(main_root(), "fetch", "--quiet", str(folder), f"+{ref}:{ref}")  # replaces an experiment of another trial
    commit = finished([trial]).get(trial.experiment)
    return TrialResult.read(lambda path: file_at(commit, path) or "") if commit else None


def stop(running: Iterable[subprocess.Popen[bytes]]) -> None:
    """Send each trial Ctrl-C, so that it closes its MLflow run; SIGKILL those that do not end in time."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave trials running
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
