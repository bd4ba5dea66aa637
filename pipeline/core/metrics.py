"""metrics.yaml: what each metric is called, which way is better, how far it may move, where it is shown."""

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
    """An entry of metrics.yaml, whose head tells what each key means.

    With `better` a metric may move by up to absolute + relative × |old|: to the worse in a review, to either side in
    `verify`.
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
        """`3 %`, `0.13` or `1e-06 + 0.1 %`."""
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
        """1 where more is better, else −1."""
        return 1 if self.better == "higher" else -1


def is_number(value: Any) -> bool:
    """Whether a metric's value can be judged: a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def load_metrics() -> dict[str, Metric]:
    """`parse_metrics` of the working folder's file.

    Raises:
        PipelineError: it is missing or not valid.
    """
    try:
        return parse_metrics(Path(METRICS_PATH).read_bytes())
    except FileNotFoundError:
        raise PipelineError(f"{METRICS_PATH} is missing; run this in the repository's root") from None


def parse_metrics(content: bytes) -> dict[str, Metric]:
    """{metric's name, or a pattern of names: metric} from the file's content; none from an empty one.

    Raises:
        PipelineError: the content is not valid; every problem is listed.
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
            raise PipelineError(f"{METRICS_PATH} is not valid: {name} is to be beside {metric.beside}, which it lacks")
    return metrics


def with_role(role: str, metrics: dict[str, Metric]) -> tuple[str, Metric]:
    """(name, metric) of the one metric with a role.

    Raises:
        PipelineError: none has it.
    """
    for name, metric in metrics.items():
        if metric.role == role:
            return name, metric
    raise PipelineError(f"{METRICS_PATH} names no metric with `role: {role}`")


def pattern_of(name: str, metrics: dict[str, Metric]) -> str | None:
    """The first pattern that fits a metric's name; None where none fits."""
    return next((pattern for pattern in metrics if fnmatch.fnmatchcase(name, pattern)), None)


def judged_by(name: str, metrics: dict[str, Metric]) -> Metric | None:
    """The entry that tells how far a metric of that name may move; None where none does."""
    pattern = pattern_of(name, metrics)
    metric = None if pattern is None else metrics[pattern]
    return metric if metric is not None and metric.better is not None else None


def in_mlflow(name: str) -> str:
    """`test/mse` of `test.mse`."""
    return name.replace(".", "/")
