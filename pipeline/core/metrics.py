"""metrics.yaml: each metric's name, direction, tolerance and display."""

import fnmatch
import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import PipelineError, on_one_line

METRICS_PATH = "metrics.yaml"


class Metric(BaseModel):
    """An entry of metrics.yaml. The comment at the top of that file explains each key.

    A metric with `better` may change by up to absolute + relative × |old|: for the worse in a review, in either
    direction in `verify`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    better: Literal["lower", "higher"] | None = None
    absolute: float = Field(0, ge=0)
    relative: float = Field(0, ge=0)
    role: Literal["select", "report"] | None = None
    column: str | None = None
    seedless: bool = False
    label: str | None = None
    format: str = "g"
    unit: str | None = None
    beside: str | None = None
    line: str | None = None
    note: str | None = None

    @property
    def allowed(self) -> str:
        """The tolerance as text: `3 %`, `0.13` or `1e-06 + 0.1 %`."""
        parts = [f"{self.absolute:g}" if self.absolute else "", f"{100 * self.relative:g} %" if self.relative else ""]
        return " + ".join(filter(None, parts)) or "0"

    def margin(self, old: float) -> float:
        return self.absolute + self.relative * abs(old)

    def verdict(self, old: float, new: float) -> str:
        gain = self.sign() * (new - old)
        if gain > self.margin(old):
            return "better"
        return "within tolerance" if gain >= -self.margin(old) else "worse"

    def sign(self) -> int:
        """Return 1 if higher is better, else −1."""
        return 1 if self.better == "higher" else -1


def is_number(value: Any) -> bool:
    """Return whether a metric's value can be judged: it is a finite number, not a boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def load_metrics() -> dict[str, Metric]:
    """Read metrics.yaml in the working folder, as `parse_metrics` does.

    Raises:
        PipelineError: the file is missing or not valid.
    """
    try:
        return parse_metrics(Path(METRICS_PATH).read_bytes())
    except FileNotFoundError:
        raise PipelineError(f"{METRICS_PATH} is missing; run this in the repository's root") from None


def parse_metrics(content: bytes) -> dict[str, Metric]:
    """Return {metric name or pattern: metric} from the content of metrics.yaml; an empty file has no metrics.

    Raises:
        PipelineError: the content is not valid; the message lists all problems of the first invalid entry.
    """
    try:
        entries = yaml.safe_load(content) or {}
        metrics = {name: Metric.model_validate(entry) for name, entry in entries.items()}
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise PipelineError(f"{METRICS_PATH} is not valid: {problems}") from None
    except (yaml.YAMLError, AttributeError) as error:
        raise PipelineError(f"{METRICS_PATH} is not valid: {on_one_line(error)}") from None
    for role, n_metrics in Counter(metric.role for metric in metrics.values() if metric.role).items():
        if n_metrics > 1:
            raise PipelineError(f"{METRICS_PATH} is not valid: {n_metrics} metrics have the role {role}")
    for name, metric in metrics.items():
        if metric.beside is not None and metric.beside not in metrics:
            raise PipelineError(f"{METRICS_PATH} is not valid: {name} has `beside: {metric.beside}`, an unknown metric")
    return metrics


def with_role(role: str, metrics: dict[str, Metric]) -> tuple[str, Metric]:
    """Return (name, metric) of the only metric with a role.

    Raises:
        PipelineError: no metric has it.
    """
    for name, metric in metrics.items():
        if metric.role == role:
            return name, metric
    raise PipelineError(f"{METRICS_PATH} has no metric with `role: {role}`")


def pattern_of(name: str, metrics: dict[str, Metric]) -> str | None:
    """Return the first pattern that matches a metric's name, or None."""
    return next((pattern for pattern in metrics if fnmatch.fnmatchcase(name, pattern)), None)


def judged_by(name: str, metrics: dict[str, Metric]) -> Metric | None:
    """Return the entry with the tolerance of a metric; None if no entry matches or it has no `better`."""
    pattern = pattern_of(name, metrics)
    metric = None if pattern is None else metrics[pattern]
    return metric if metric is not None and metric.better is not None else None


def in_mlflow(name: str) -> str:
    """Return a metric's name in MLflow: `test/mse` for `test.mse`."""
    return name.replace(".", "/")
