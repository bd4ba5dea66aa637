"""Show the progress of the stages: for training, a bar on a terminal or an occasional line in a log.

PIPELINE_VERBOSE=0 silences training and `report`. It is an environment variable, not a parameter, so that changing
verbosity never triggers a rerun.
"""

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pipeline.experiment import EXPERIMENT

if TYPE_CHECKING:
    from pipeline.params import Params

# In a log: at most one line per this many seconds, and always one for the first and the last epoch.
SECONDS_BETWEEN_LINES = 10.0


def is_verbose() -> bool:
    return os.environ.get("PIPELINE_VERBOSE", "1") != "0"


def report(message: str) -> None:
    """Print what a stage is doing."""
    if is_verbose():
        print(message, flush=True)


def announce_data(params: "Params") -> None:
    """Print the experiment's notice about its data, if it has one."""
    if (notice := EXPERIMENT.notice(params)) is not None:
        print(notice, flush=True)


class TrainingProgress:
    """A callback of the training loop that shows the epochs."""

    def __init__(self, n_epochs: int, n_examples: int, first_epoch: int = 1):
        self._n_epochs = n_epochs
        self._n_examples = n_examples
        self._show_bars = is_verbose() and sys.stderr.isatty()
        self._show_lines = is_verbose() and not sys.stderr.isatty()
        self._last_line = -SECONDS_BETWEEN_LINES
        if first_epoch <= n_epochs:
            self._start_bar(first_epoch)

    def _start_bar(self, epoch: int) -> None:
        self._bar = tqdm(
            total=self._n_examples,
            desc=f"epoch {epoch:>{len(str(self._n_epochs))}}/{self._n_epochs}",
            unit=f" {EXPERIMENT.examples}",
            unit_scale=True,
            disable=not self._show_bars,
        )

    def on_batch(self, n_examples: int) -> None:
        self._bar.update(n_examples)

    def on_epoch(self, record: Any, seconds: float) -> None:
        shown = ", ".join(f"{label} {getattr(record, column):.5f}" for column, label in EXPERIMENT.by_epoch.items())
        self._bar.set_postfix_str(shown)
        self._bar.close()
        last = record.epoch == self._n_epochs
        if not last:
            self._start_bar(record.epoch + 1)
        if self._show_lines and (last or time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES):
            self._last_line = time.monotonic()
            print(
                f"epoch {record.epoch}/{self._n_epochs}: {shown}, "
                f"{self._n_examples / seconds:,.0f} {EXPERIMENT.examples}/s",
                flush=True,
            )
