"""What is shown while the model trains, on a real terminal and in a log."""

import os
import pty
import subprocess
import sys
import termios

import pytest

from pipeline.progress import SweepProgress, announce_dataset, report
from tests.helpers import PROJECT, environment, small_params

EPOCHS = """
from pipeline.progress import TrainingProgress
from pipeline.training import EpochRecord
progress = TrainingProgress(n_epochs=3, n_images=200)
for epoch in (1, 2, 3):
    for _ in range(2):
        progress.on_batch(100)
    progress.on_epoch(EpochRecord(epoch, 0.05, 0.04, 0.001, 1.0, 2.0), 0.5)
"""


def on_a_terminal(**changes: str) -> str:
    """All that a real terminal receives from training."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with subprocess.Popen(
        [sys.executable, "-c", EPOCHS],
        cwd=PROJECT,
        env=environment(**changes),
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
    ):
        os.close(theirs)
        received = b""
        try:
            while chunk := os.read(ours, 4096):
                received += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(ours)
    return received.decode()


def in_a_log(**changes: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", EPOCHS],
        cwd=PROJECT,
        env=environment(**changes),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def test_a_terminal_gets_a_bar_for_each_epoch() -> None:
    """The bar shows the epoch, the losses and images per second."""
    shown = on_a_terminal()
    for epoch in (1, 2, 3):
        assert f"epoch {epoch}/3: 100%" in shown
    assert "images/s" in shown
    assert "train 0.05000 valid 0.04000" in shown


def test_a_log_gets_a_plain_line_now_and_then() -> None:
    """The first and the last epoch have a line, those that follow within seconds have none; no bar."""
    lines = in_a_log().splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 3/3"]
    assert lines[0] == "epoch 1/3: train MSE 0.05000, valid MSE 0.04000, 400 images/s"


def test_quiet_is_quiet() -> None:
    """PIPELINE_VERBOSE=0 shows nothing on either."""
    assert in_a_log(PIPELINE_VERBOSE="0") == ""
    assert on_a_terminal(PIPELINE_VERBOSE="0") == ""


def test_digits_are_announced(capsys: pytest.CaptureFixture[str]) -> None:
    """A run on digits says so with the command that goes back; a run on MNIST says nothing."""
    announce_dataset(small_params())
    assert "to go back to MNIST: dvc exp run -S data.dataset=mnist" in capsys.readouterr().out
    announce_dataset(small_params(data__dataset="mnist"))
    assert capsys.readouterr().out == ""


def test_a_sweep_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Done, running, failed, and the time left after what points took so far and how many run at once."""
    progress = SweepProgress(n_points=18, jobs=2, n_done=8)
    progress.on_end("digits k=2 seed=0", 0.0338, "a.log", 60, running=["digits k=4 seed=0"])
    assert capsys.readouterr().out == (
        "digits k=2 seed=0: test MSE 0.0338 in 60 s   "
        "(9 of 18 done; running: digits k=4 seed=0; failed: 0; about 4.5 min left)\n"
    )


def test_a_stage_reports_what_it_does_unless_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, or none with PIPELINE_VERBOSE=0."""
    monkeypatch.delenv("PIPELINE_VERBOSE", raising=False)
    report("drawing")
    assert capsys.readouterr().out == "drawing\n"
    monkeypatch.setenv("PIPELINE_VERBOSE", "0")
    report("drawing")
    assert capsys.readouterr().out == ""
