"""Rows of processes that are stopped, with real processes and real signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline import processes
from pipeline.store import DEFAULT_EXPERIMENT
from tests.helpers import PROJECT, environment, small_params, write_params

TRAIN_FOR_EVER = """
import time
from pipeline import tracking
from pipeline.params import load_params
with tracking.training_run(load_params(), "cpu") as run:
    run.log_epoch({"epoch": 1, "train_mse": 0.1}, epoch_seconds=1)
    print("running", flush=True)
    time.sleep(float(__import__("sys").argv[1]))
"""


def start(folder: Path, store: str, seconds: float = 600) -> "subprocess.Popen[str]":
    """A process that has opened its row and logged an epoch."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN_FOR_EVER, str(seconds)],
        cwd=folder,
        env=environment(PYTHONPATH=str(PROJECT), MLFLOW_TRACKING_URI=store),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    return process


def rows(store: str) -> list[Run]:
    """The oldest first."""
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(DEFAULT_EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["start_time ASC"]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository in which a row can be opened."""
    root = tmp_path / "repository"
    (root / ".dvc").mkdir(parents=True)
    (root / "dvc.yaml").write_text((PROJECT / "dvc.yaml").read_text())
    write_params(small_params(), root)
    return root


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, None)])
def test_a_signal_leaves_a_killed_row(folder: Path, store: str, number: signal.Signals, code: int | None) -> None:
    """SIGTERM and Ctrl-C close the row as KILLED, and the process ends as they want it to."""
    process = start(folder, store)
    process.send_signal(number)
    process.wait(60)
    assert process.returncode != 0
    assert code is None or process.returncode == code
    assert [row.info.status for row in rows(store)] == ["KILLED"]


def test_the_next_run_closes_the_row_of_a_process_that_was_killed_without_a_word(folder: Path, store: str) -> None:
    """After SIGKILL the row is RUNNING until the next run on this host sets it KILLED; a living one is left alone."""
    killed, alive = start(folder, store), start(folder, store)
    killed.kill()
    killed.wait(60)
    assert [row.info.status for row in rows(store)] == ["RUNNING", "RUNNING"]
    time.sleep(0.01)
    following = start(folder, store, seconds=0)
    following.wait(60)
    first, second, third = rows(store)
    assert (first.info.status, second.info.status, third.info.status) == ("KILLED", "RUNNING", "FINISHED")
    # It ended when it was last heard of, not when it was found.
    (epoch,) = MlflowClient(store).get_metric_history(first.info.run_id, "train/mse")
    assert first.info.end_time == epoch.timestamp < third.info.start_time
    alive.kill()
    alive.wait(60)


def test_who_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process lives; another start, boot or pid is gone; another host's is not known."""
    me = processes.identity()
    assert not processes.is_gone(me)
    assert processes.is_gone(me | {"process.started": str(float(me["process.started"]) - 60)})
    assert processes.is_gone(me | {"process.boot": "another"})
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert processes.is_gone(me | {"process.pid": str(ended.pid)})
    assert not processes.is_gone(me | {"process.host": "elsewhere", "process.boot": "another"})
    assert not processes.is_gone({})


def test_sigterm_is_given_back() -> None:
    """Outside the block SIGTERM means what it meant before."""
    before = signal.getsignal(signal.SIGTERM)

    def stopped() -> None:
        with processes.sigterm_as_exit():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(SystemExit) as ended:
        stopped()
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
