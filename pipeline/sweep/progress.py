"""A sweep's progress: a line for each trial that ends, and one line that is updated."""

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import yaml

from pipeline.core import dvcfiles
from pipeline.core.files import numbers
from pipeline.core.metrics import METRICS_PATH, Metric, in_mlflow, parse_metrics, with_role
from pipeline.experiment import EXPERIMENT

# The shortest time between two progress lines in a log, and between two updates of the line on a terminal.
SECONDS_BETWEEN_SWEEP_LINES = 60.0
SECONDS_BETWEEN_CHANGES = 0.5
CLEAR_LINE = "\r\x1b[K"


class TrialResult(NamedTuple):
    """A trial's two numbers and their labels: the metric that selects trials, and the one to report."""

    select: float
    report: float
    labels: tuple[str, str]

    @classmethod
    def of(cls, values: Mapping[str, float], metrics: dict[str, Metric]) -> "TrialResult":
        """Build the result from a run's metrics, by their names in MLflow."""
        (select, first), (report, second) = with_role("select", metrics), with_role("report", metrics)
        labels = (first.label or select, second.label or report)
        return cls(values[in_mlflow(select)], values[in_mlflow(report)], labels)

    @classmethod
    def read(cls, text_of: Callable[[str], str]) -> "TrialResult":
        """Build the result from a repository's files; `text_of` returns the text of a path."""
        stages = yaml.safe_load(text_of("dvc.yaml"))["stages"]
        files = [path for stage in (EXPERIMENT.train, EXPERIMENT.evaluate) for path in dvcfiles.outs_of(stages[stage])]
        values: dict[str, float] = {}
        for path in files:
            if path.endswith(".json"):
                values |= numbers(json.loads(text_of(path)))
        return cls.of(values, parse_metrics(text_of(METRICS_PATH).encode()))

    def __str__(self) -> str:
        return f"{self.labels[0]} {self.select:.4f} ({self.labels[1]} {self.report:.4f})"


class Running(NamedTuple):
    """A running trial: its name, the path of its log (which may not exist yet), its start on the monotonic clock."""

    name: str
    log: Path
    started: float

    def epochs(self) -> tuple[int, int]:
        """Return (epochs done, epochs in total) from the log; (0, 0) before the first epoch ends."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 4096))
                found = re.findall(rb"^epoch +(\d+)/(\d+): ", file.read(), re.MULTILINE)
        except FileNotFoundError:
            return 0, 0
        return (int(found[-1][0]), int(found[-1][1])) if found else (0, 0)


@dataclass
class SweepProgress:
    """Print a sweep's progress: a line for each trial that ends, and one that is updated. `jobs` trials run at once."""

    n_trials: int
    jobs: int
    n_done: int = 0
    n_failed: int = 0
    seconds: list[float] = field(default_factory=list)
    _next_line: float = 0.0

    def show(self, running: Sequence[Running]) -> None:
        """Print the running trials with their epochs: on a terminal in an updated line, in a log once a minute."""
        if not running or time.monotonic() < self._next_line:
            return
        live = sys.stdout.isatty()
        self._next_line = time.monotonic() + (SECONDS_BETWEEN_CHANGES if live else SECONDS_BETWEEN_SWEEP_LINES)
        names = []
        for trial in running[:4]:
            done, n_epochs = trial.epochs()
            names.append(f"{trial.name} (epoch {done}/{n_epochs})" if n_epochs else trial.name)
        more = f" and {len(running) - 4} more" if len(running) > 4 else ""
        logs = [str(trial.log) for trial in running if trial.log.is_file()]
        text = "; ".join(
            [
                f"{self.n_done} of {self.n_trials} done",
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
        """Print a line that stays on the terminal."""
        print(f"{CLEAR_LINE if sys.stdout.isatty() else ''}{text}", flush=True)

    def on_end(
        self, name: str, result: TrialResult | None, log: Path, seconds: float, running: Sequence[Running]
    ) -> None:
        """Print how a trial ended and how long it took. `result` is None if it failed; its log has the reason."""
        if result is None:
            self.n_failed += 1
        else:
            self.n_done += 1
        self.seconds.append(seconds)
        what = f"FAILED, see {log}," if result is None else str(result)
        parts = [f"{self.n_done} of {self.n_trials} done", f"failed: {self.n_failed}", *self._time_left(running)]
        self.say(f"{name}: {what} in {duration(seconds)}   ({'; '.join(parts)})")

    def _time_left(self, running: Sequence[Running]) -> list[str]:
        """Estimate the time left from finished trials, else from the epochs of running ones; empty if unknown."""
        parts = [done / n_epochs if n_epochs else 0.0 for done, n_epochs in (trial.epochs() for trial in running)]
        now = time.monotonic()
        whole = self.seconds or [
            (now - trial.started) / part for trial, part in zip(running, parts, strict=True) if part
        ]
        if not whole:
            return []
        n_left = self.n_trials - self.n_done - self.n_failed - sum(parts)
        return [f"about {duration(n_left * sum(whole) / len(whole) / self.jobs)} left"]

    def on_interruption(self) -> None:
        if sys.stdout.isatty():
            print(CLEAR_LINE, end="", flush=True)
        print(f"stopped; {self.n_done} of {self.n_trials} trials are done; the same command resumes", file=sys.stderr)


def duration(seconds: float) -> str:
    """Format seconds as `42 s`, `3.5 min` or `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
