"""Progress display of training and of a sweep, on a real terminal and in a log."""

import os
import pty
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from pipeline.sweep.progress import Running, SweepProgress, TrialResult
from pipeline.tracking.progress import announce_data, report
from tests.helpers import PROJECT, environment, small_params

EPOCHS = """
from pipeline.tracking.progress import TrainingProgress
from pipeline.autoencoder.trainer import EpochRecord
progress = TrainingProgress(n_epochs=3, n_examples=200)
for epoch in (1, 2, 3):
    for _ in range(2):
        progress.on_batch(100)
    progress.on_epoch(EpochRecord(epoch, 0.05, 0.04, 0.001, 1.0, 2.0), 0.5)
"""


def on_a_terminal(code: str = EPOCHS, **changes: str) -> str:
    """Run code on a real terminal and return all that it receives."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    settings = environment(**changes)
    settings.pop("COLUMNS", None)  # it would override the terminal's width
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env=settings,
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
    ):
        os.close(theirs)
        received = b""
        try:
            while chunk := os.read(ours, 4096):
                received += chunk
        except OSError:  # on Linux: the other end is closed
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
    """A terminal gets a bar per epoch, with the epoch, the losses and images per second."""
    shown = on_a_terminal()
    for epoch in (1, 2, 3):
        assert f"epoch {epoch}/3: 100%" in shown
    assert "images/s" in shown
    assert "train MSE 0.05000, valid MSE 0.04000" in shown


def test_a_log_gets_a_plain_line_now_and_then() -> None:
    """A log gets a line for the first and the last epoch, none for epochs within seconds, and no bar."""
    lines = in_a_log().splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 3/3"]
    assert lines[0] == "epoch 1/3: train MSE 0.05000, valid MSE 0.04000, 400 images/s"


def test_quiet_is_quiet() -> None:
    """PIPELINE_VERBOSE=0 shows nothing, on a terminal or in a log."""
    assert in_a_log(PIPELINE_VERBOSE="0") == ""
    assert on_a_terminal(PIPELINE_VERBOSE="0") == ""


def test_digits_are_announced(capsys: pytest.CaptureFixture[str]) -> None:
    """A run on digits prints the command that switches to MNIST; a run on MNIST prints nothing."""
    announce_data(small_params())
    assert "to go back to MNIST: dvc exp run -S data.dataset=mnist" in capsys.readouterr().out
    announce_data(small_params(data__dataset="mnist"))
    assert capsys.readouterr().out == ""


def test_sweep_reports_its_progress(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A sweep reports done and failed trials, and the time left from their durations and the number of jobs."""
    progress = SweepProgress(n_trials=18, jobs=2, n_done=8)
    log = tmp_path / "b.log"
    running = [Running("digits k=4 seed=0", log, time.monotonic() - 30)]
    progress.on_end("digits k=2 seed=0", TrialResult(0.0338, 0.0341, LABELS), Path("a.log"), 60, running)
    assert capsys.readouterr().out == (
        "digits k=2 seed=0: valid MSE 0.0338 (test MSE 0.0341) in 60 s   "
        "(9 of 18 done; failed: 0; about 4.5 min left)\n"
    )
    log.write_text("epoch 1/20: train MSE 1\nepoch 10/20: train MSE 1\n")  # half of one of the nine
    progress.on_end("digits k=8 seed=0", None, Path("a.log"), 20, running)
    assert capsys.readouterr().out == (
        "digits k=8 seed=0: FAILED, see a.log, in 20 s   (9 of 18 done; failed: 1; about 2.5 min left)\n"
    )


def test_sweep_shows_its_running_trials(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running trials are shown with epochs, time left and their log; in a log at once, then at most once a minute."""
    progress = SweepProgress(n_trials=3, jobs=1)
    log = tmp_path / "k-2.log"
    log.write_text("Running stage 'train'\n")
    clock = time.monotonic() + 1000
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    running = [Running("k=2 seed=0", log, clock - 50)]
    progress.show([])
    progress.show(running)
    assert capsys.readouterr().out == f"0 of 3 done; running: k=2 seed=0; log: {log}\n"
    log.write_text("epoch  1/20: train MSE 0.1\nepoch  5/20: train MSE 0.1\nand more\n")
    progress.show(running)
    assert capsys.readouterr().out == ""
    clock += 61
    progress.show([running[0]._replace(started=clock - 50)])
    assert capsys.readouterr().out == (
        f"0 of 3 done; running: k=2 seed=0 (epoch 5/20); about 9.2 min left; log: {log}\n"
    )


LABELS = ("valid MSE", "test MSE")
SWEEP = """
import time
from pathlib import Path
from pipeline.sweep.progress import TrialResult, Running, SweepProgress
progress = SweepProgress(n_trials=2, jobs=1)
log = Path("no.log")
for epoch in range(2):
    progress.show([Running(f"k={epoch}" + 200 * "x", log, time.monotonic())])
    time.sleep(0.6)
progress.on_end("k=2", TrialResult(0.1, 0.2, ('valid MSE', 'test MSE')), log, 1, [])
"""


def test_terminal_updates_one_line_for_a_sweep() -> None:
    """On a terminal one line is updated in place, cut to the width, and replaced by the line of a finished trial."""
    shown = on_a_terminal(SWEEP)
    clear = "\r\x1b[K"
    first, second, end = shown.split(clear)[1:]
    assert first.startswith("0 of 2 done; running: k=0x")
    assert second.startswith("0 of 2 done; running: k=1x")
    assert len(first) == len(second) == 99
    assert end.startswith("k=2: valid MSE 0.1000 (test MSE 0.2000) in 1 s")


def test_a_stage_reports_what_it_does_unless_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`report` prints one line, or nothing with PIPELINE_VERBOSE=0."""
    monkeypatch.delenv("PIPELINE_VERBOSE", raising=False)
    report("drawing")
    assert capsys.readouterr().out == "drawing\n"
    monkeypatch.setenv("PIPELINE_VERBOSE", "0")
    report("drawing")
    assert capsys.readouterr().out == ""
