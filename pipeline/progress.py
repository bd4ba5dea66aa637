"""What a person sees while the model trains, a bar on a terminal, a line now and then in a log; and how far a sweep is.

PIPELINE_VERBOSE=0 silences the training and `report`. It is an environment variable, not a parameter, so that chatter
never retrains a model.
"""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

if TYPE_CHECKING:
    from pipeline.params import Params
    from pipeline.training import EpochRecord

# In a log: at most one line in this many seconds, and always the first and the last epoch's.
SECONDS_BETWEEN_LINES = 10.0
# The same of a sweep, in a log and on a terminal.
SECONDS_BETWEEN_SWEEP_LINES = 60.0
SECONDS_BETWEEN_CHANGES = 0.5
CLEAR_LINE = "\r\x1b[K"


def is_verbose() -> bool:
    return os.environ.get("PIPELINE_VERBOSE", "1") != "0"


def report(message: str) -> None:
    """Say what a stage does now."""
    if is_verbose():
        print(message, flush=True)


def announce_dataset(params: "Params") -> None:
    """Say that a run is not on MNIST, and how to go back."""
    if params.data.dataset == "digits":
        print(
            "note: this is scikit-learn's digits (1,797 small images), not MNIST; "
            "to go back to MNIST: dvc exp run -S data.dataset=mnist",
            flush=True,
        )


class TrainingProgress:
    """`on_batch` and `on_epoch` are what `training.fit` calls."""

    def __init__(self, n_epochs: int, n_images: int, first_epoch: int = 1):
        self._n_epochs = n_epochs
        self._n_images = n_images
        self._show_bars = is_verbose() and sys.stderr.isatty()
        self._show_lines = is_verbose() and not sys.stderr.isatty()
        self._last_line = -SECONDS_BETWEEN_LINES
        if first_epoch <= n_epochs:
            self._start_bar(first_epoch)

    def _start_bar(self, epoch: int) -> None:
        self._bar = tqdm(
            total=self._n_images,
            desc=f"epoch {epoch:>{len(str(self._n_epochs))}}/{self._n_epochs}",
            unit=" images",
            unit_scale=True,
            disable=not self._show_bars,
        )

    def on_batch(self, n_images: int) -> None:
        self._bar.update(n_images)

    def on_epoch(self, record: "EpochRecord", seconds: float) -> None:
        self._bar.set_postfix_str(f"train {record.train_mse:.5f} valid {record.valid_mse:.5f}")
        self._bar.close()
        last = record.epoch == self._n_epochs
        if not last:
            self._start_bar(record.epoch + 1)
        if self._show_lines and (last or time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES):
            self._last_line = time.monotonic()
            print(
                f"epoch {record.epoch}/{self._n_epochs}: train MSE {record.train_mse:.5f}, "
                f"valid MSE {record.valid_mse:.5f}, {self._n_images / seconds:,.0f} images/s",
                flush=True,
            )


class PointMse(NamedTuple):
    """A point's errors: on validation images, by which points are compared, and on test images."""

    valid: float
    test: float

    @classmethod
    def read(cls, text_of: Callable[[str], str]) -> "PointMse":
        """From the texts of the stages' metrics files, by their paths."""
        valid, test = json.loads(text_of("reports/train.json")), json.loads(text_of("reports/evaluate.json"))
        return cls(valid["valid"]["best_mse"], test["test"]["mse"])


class Running(NamedTuple):
    """A point that runs: its name, where its log is (or will be), and when it started on the monotonic clock."""

    name: str
    log: Path
    started: float

    def epochs(self) -> tuple[int, int]:
        """(epochs done, epochs in all), as far as its log says; (0, 0) before the first."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 4096))
                found = re.findall(rb"^epoch +(\d+)/(\d+): ", file.read(), re.MULTILINE)
        except FileNotFoundError:
            return 0, 0
        return (int(found[-1][0]), int(found[-1][1])) if found else (0, 0)


@dataclass
class SweepProgress:
    """Prints how far a sweep is: a line for each point that ends, and one that changes. `jobs` points run at once."""

    n_points: int
    jobs: int
    n_done: int = 0
    n_failed: int = 0
    seconds: list[float] = field(default_factory=list)
    _next_line: float = 0.0

    def show(self, running: Sequence[Running]) -> None:
        """Print the running points with their epochs: on a terminal in one changing line, in a log a line a minute."""
        if not running or time.monotonic() < self._next_line:
            return
        live = sys.stdout.isatty()
        self._next_line = time.monotonic() + (SECONDS_BETWEEN_CHANGES if live else SECONDS_BETWEEN_SWEEP_LINES)
        names = []
        for point in running[:4]:
            done, n_epochs = point.epochs()
            names.append(f"{point.name} (epoch {done}/{n_epochs})" if n_epochs else point.name)
        more = f" and {len(running) - 4} more" if len(running) > 4 else ""
        logs = [str(point.log) for point in running if point.log.is_file()]
        text = "; ".join(
            [
                f"{self.n_done} of {self.n_points} done",
                f"running: {', '.join(names)}{more}",
                *([f"failed: {self.n_failed}"] if self.n_failed else []),
                *self._time_left(running),
                *(f"log: {log}" for log in logs[:1]),
            ]
        )
        if live:
            print(f"{CLEAR_LINE}{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        else:
            print(text, flush=True)

    def say(self, text: str) -> None:
        """Print a line that is not written over."""
        print(f"{CLEAR_LINE if sys.stdout.isatty() else ''}{text}", flush=True)

    def on_end(self, name: str, mse: PointMse | None, log: Path, seconds: float, running: Sequence[Running]) -> None:
        """Print how a point ended and after how many seconds. `mse` is None if it failed; its log says why."""
        if mse is None:
            self.n_failed += 1
        else:
            self.n_done += 1
        self.seconds.append(seconds)
        what = f"FAILED, see {log}," if mse is None else f"valid MSE {mse.valid:.4f} (test {mse.test:.4f})"
        parts = [f"{self.n_done} of {self.n_points} done", f"failed: {self.n_failed}", *self._time_left(running)]
        self.say(f"{name}: {what} in {duration(seconds)}   ({'; '.join(parts)})")

    def _time_left(self, running: Sequence[Running]) -> list[str]:
        """After what points took so far, or by the epochs of those that run; empty before anything is known."""
        parts = [done / n_epochs if n_epochs else 0.0 for done, n_epochs in (point.epochs() for point in running)]
        now = time.monotonic()
        whole = self.seconds or [
            (now - point.started) / part for point, part in zip(running, parts, strict=True) if part
        ]
        if not whole:
            return []
        n_left = self.n_points - self.n_done - self.n_failed - sum(parts)
        return [f"about {duration(n_left * sum(whole) / len(whole) / self.jobs)} left"]

    def on_interruption(self) -> None:
        if sys.stdout.isatty():
            print(CLEAR_LINE, end="", flush=True)
        print(f"stopped; {self.n_done} of {self.n_points} points are done; the same command resumes", file=sys.stderr)


def duration(seconds: float) -> str:
    """As `42 s`, `3.5 min` or `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
