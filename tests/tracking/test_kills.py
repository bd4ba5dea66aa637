"""Runs that are killed: real processes and real signals, at random moments."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from pipeline.core.dvc_cli import repair_truncated_locks
from pipeline.tracking import delivery
from pipeline.tracking.journal import Journal, journals
from tests.helpers import (
    PROJECT,
    artifacts,
    environment,
    rows,
    run,
    save_every_epoch,
    set_params,
    small_params,
    stored,
    wait_until,
    working_in,
    write_results,
)

# 12 s: delivery, which runs at lower priority, begins long before the training ends.
N_EPOCHS = 40

TRAIN = """
import sys, time
from pipeline.tracking import runs
from pipeline.params import load_params
with runs.training_run(load_params(), "cpu") as run:
    run.log_epoch({"epoch": 1, "train_mse": 0.1}, epoch_seconds=1)
    print("running", flush=True)
    time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository in which a run can be started."""
    write_results(tmp_path / "repository", small_params())
    return tmp_path / "repository"


def start(folder: Path, store: str, seconds: float = 600) -> "subprocess.Popen[str]":
    """Start a process, and wait until it has started a run and logged an epoch."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(seconds)],
        cwd=folder,
        env=environment(PYTHONPATH=str(PROJECT), MLFLOW_TRACKING_URI=store),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    return process


def statuses(store: str) -> list[str]:
    """Return the statuses of all runs, newest first."""
    return [row.info.status for row in stored(store)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, None)])
def test_signal_leaves_a_killed_run(folder: Path, store: str, number: signal.Signals, code: int | None) -> None:
    """SIGTERM and Ctrl-C close the run as KILLED and end the process with an error; SIGTERM's exit code is 143."""
    process = start(folder, store)
    process.send_signal(number)
    process.wait(180)
    assert process.returncode != 0
    assert code is None or process.returncode == code
    wait_until(lambda: statuses(store) == ["KILLED"])


def test_run_killed_by_sigkill_is_closed(folder: Path, store: str) -> None:
    """After SIGKILL the run's delivery process, which survives, closes the run at the time of the last epoch."""
    process = start(folder, store)
    process.kill()
    wait_until(lambda: not journals(folder))
    assert statuses(store) == ["KILLED"]
    (row,) = stored(store)
    (epoch,) = MlflowClient(store).get_metric_history(row.info.run_id, "train/mse")
    assert row.info.end_time == epoch.timestamp
    process.wait()


def test_after_a_machine_crash_the_next_run_closes_the_lost_one(folder: Path, store: str) -> None:
    """If only a run's journal is left, the next run on the host closes it, and leaves a live run alone."""
    alive = start(folder, store)
    lost = start(folder, store)
    wait_until(lambda: statuses(store) == ["RUNNING", "RUNNING"])
    for delivering in working_in(folder, "pipeline.tracking.delivery"):
        if journals(folder)[1].id in " ".join(delivering.cmdline()):
            delivering.kill()
    lost.kill()
    lost.wait()
    assert statuses(store) == ["RUNNING", "RUNNING"]
    start(folder, store, seconds=0).wait(180)
    wait_until(lambda: statuses(store) == ["FINISHED", "KILLED", "RUNNING"])
    alive.terminate()
    alive.wait(180)
    assert statuses(store) == ["FINISHED", "KILLED", "KILLED"]


@pytest.mark.slow
@pytest.mark.alone
def test_killed_at_any_moment_every_run_is_correct(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """After SIGTERM or SIGKILL at random moments, no run is left RUNNING, or FINISHED without its results.

    There are KILLS of them, 10 unless set.

    The signal goes to the stage, to DVC's process group, or to both and delivery. No metric is duplicated, some runs
    are resumed, and the next run completes.
    """
    seed = int(os.environ.get("KILL_SEED") or time.time())
    print(f"KILL_SEED={seed}")
    record_property("seed", seed)
    choose = random.Random(seed)
    here = shutil.copytree(toy, tmp_path / "killed", symlinks=True)
    set_params(here, train__n_epochs=N_EPOCHS, train__pause=0.3)
    save_every_epoch(here)
    monkeypatch.chdir(here)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = {row.info.run_id for row in rows(here)}
    n_kills = int(os.environ.get("KILLS", "10"))
    moments = (["sending", "evaluation", "training", "start-up"] * n_kills)[: n_kills - 3]
    choose.shuffle(moments)
    moments = ["training"] * 3 + moments  # so that some are resumed
    n_killed = n_gone_on = 0
    newest = rows(here)[0]
    for number, moment in enumerate(moments):
        what, whom = choose.choice([signal.SIGTERM, signal.SIGKILL]), choose.choice(["stage", "group", "all"])
        print(number, moment, what.name, whom, flush=True)
        kill_once(here, moment, what, whom, choose)
        wait_until(lambda: not working_in(here, "pipeline.tracking.delivery"))
        # A process that is killed during a write to disk ends with a delay.
        wait_until(lambda: delivery.deliver_all(here) == [])
        check(here, before)
        earlier, newest = newest, rows(here)[0]
        n_killed += newest.info.status == "KILLED"
        went_on = newest.info.run_id == earlier.info.run_id and newest.data.metrics != earlier.data.metrics
        n_gone_on += earlier.info.status == "KILLED" and went_on
    print(f"{n_killed} killed runs, {n_gone_on} resumed")
    assert n_killed >= 3
    assert n_gone_on >= 1
    run(here, "dvc", "repro")
    check(here, before)
    newest = rows(here)[0]
    assert newest.info.status == "FINISHED"
    assert "test/mse" in newest.data.metrics


def kill_once(here: Path, moment: str, what: signal.Signals, whom: str, choose: random.Random) -> None:
    """Start DVC on one stage, and kill it at a random moment of the given kind."""
    stage = "evaluate" if moment == "evaluation" else "train"
    if stage == "evaluate":
        # evaluate needs the outputs of train, which earlier kills may have removed.
        run(here, "dvc", "repro", "train")
        wait_until(lambda: not working_in(here, "pipeline.tracking.delivery"))
    old = {journal.id for journal in journals(here)}
    dvc = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--force", "--single-item", stage],
        cwd=here,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    module = f"pipeline.{stage}"
    wait_until(lambda: working_in(here, module) or dvc.poll() is not None)

    def new() -> list[Journal]:
        return [journal for journal in journals(here) if journal.id not in old]

    if moment == "start-up":
        time.sleep(choose.uniform(0, 4))
    elif moment == "sending":
        n_requests = choose.randrange(1, 12)
        wait_until(lambda: dvc.poll() is not None or any(is_sending(journal, n_requests) for journal in new()))
    elif moment == "training":
        wait_until(lambda: dvc.poll() is not None or new())
        time.sleep(choose.uniform(0, 3))
    else:
        time.sleep(choose.uniform(0, 5))
    if whom == "stage":
        victims = working_in(here, module)
    else:
        victims = [process for process in psutil.process_iter() if group_of(process) == dvc.pid]
    if whom == "all":
        victims += working_in(here, "pipeline.tracking.delivery")
    for victim in victims:
        try:
            victim.send_signal(what)
        except psutil.NoSuchProcess:
            continue
    dvc.wait(120)
    wait_until(lambda: not working_in(here, module))
    repair_truncated_locks(here)  # DVC recovers from its other stale locks itself
    assert (here / "dvc.lock").is_file()


def is_sending(journal: Journal, n_requests: int) -> bool:
    """Return whether a request is open and enough events are delivered, or the whole journal is."""
    try:
        state = journal.state()
    except FileNotFoundError:
        return True
    return state["request_since"] is not None and state["delivered"] >= min(n_requests, 9) - 1


def group_of(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


def check(here: Path, before: set[str]) -> None:
    """Check what must hold for the runs after every kill."""
    client = MlflowClient(f"sqlite:///{here}/mlflow.db")
    for row in rows(here):
        if row.info.run_id in before:
            continue
        assert row.info.status in ("FINISHED", "KILLED")
        steps = [point.step for point in client.get_metric_history(row.info.run_id, "valid/mse")]
        assert steps == list(range(1, len(steps) + 1))
        if row.info.status == "FINISHED":
            assert len(steps) == N_EPOCHS
            wanted = {"models/polynomial.safetensors", "reports/history.csv", "reports/train.json"}
            assert artifacts(client, row.info.run_id) >= wanted
            assert "fingerprint" in row.data.tags
