"""What a person sees while the model trains, a bar on a terminal, a line now and then in a log; and how far a sweep is.

PIPELINE_VERBOSE=0 silences the training and `report`. It is an environment variable, not a parameter, so that chatter
never retrains a model.
"""

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from pipeline.params import Params
    from pipeline.training import EpochRecord

# In a log: at most one line in this many seconds, and always the first and the last epoch's.
SECONDS_BETWEEN_LINES = 10.0


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


@dataclass
class SweepProgress:
    """Says after each point how far a sweep is; `jobs` points run at once."""

    n_points: int
    jobs: int
    n_done: int = 0
    n_failed: int = 0
    seconds: list[float] = field(default_factory=list)

    def on_end(self, name: str, test_mse: float | None, log: object, seconds: float, running: Iterable[str]) -> None:
        """A point ended after some seconds, without a test MSE if it failed, which its log explains."""
        if test_mse is None:
            self.n_failed += 1
        else:
            self.n_done += 1
        self.seconds.append(seconds)
        n_left = self.n_points - self.n_done - self.n_failed
        left = n_left * sum(self.seconds) / len(self.seconds) / self.jobs
        what = f"FAILED, see {log}," if test_mse is None else f"test MSE {test_mse:.4f}"
        names = list(running)
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        parts = [
            f"{self.n_done} of {self.n_points} done",
            f"running: {', '.join(names[:4]) or 'none'}{more}",
            f"failed: {self.n_failed}",
            f"about {duration(left)} left",
        ]
        print(f"{name}: {what} in {duration(seconds)}   ({'; '.join(parts)})", flush=True)

    def on_interruption(self) -> None:
        print(f"stopped; {self.n_done} of {self.n_points} points are done, the same command goes on", file=sys.stderr)


def duration(seconds: float) -> str:
    """As `42 s`, `3.5 min` or `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
