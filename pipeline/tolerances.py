"""tolerances.yaml: how far a metric may move, by the metric's name."""

import fnmatch
import math
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import PipelineError

TOLERANCES_PATH = "tolerances.yaml"


class Tolerance(BaseModel):
    """A metric may move by up to absolute + relative × |old|: to the worse in a review, to either side in `verify`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    better: Literal["lower", "higher"]
    absolute: float = Field(0, ge=0)
    relative: float = Field(0, ge=0)

    def __str__(self) -> str:
        """`3 %`, `0.13` or `1e-06 + 0.1 %`."""
        parts = [f"{self.absolute:g}" if self.absolute else "", f"{100 * self.relative:g} %" if self.relative else ""]
        return " + ".join(filter(None, parts)) or "0"

    def margin(self, old: float) -> float:
        return self.absolute + self.relative * abs(old)

    def verdict(self, old: float, new: float) -> str:
        gain = old - new if self.better == "lower" else new - old
        if gain > self.margin(old):
            return "better"
        return "within tolerance" if gain >= -self.margin(old) else "worse"


def is_number(value: Any) -> bool:
    """Whether a metric's value can be judged: a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def parse_tolerances(content: bytes) -> dict[str, Tolerance]:
    """{pattern of metric names: tolerance} from the file's content; none from an empty one.

    Raises:
        PipelineError: the content is not valid; every problem is listed.
    """
    try:
        rules = yaml.safe_load(content) or {}
        return {name: Tolerance.model_validate(rule) for name, rule in rules.items()}
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise PipelineError(f"{TOLERANCES_PATH} is not valid: {problems}") from None
    except (yaml.YAMLError, AttributeError) as error:
        raise PipelineError(f"{TOLERANCES_PATH} is not valid: {' '.join(str(error).split())}") from None


def pattern_of(name: str, tolerances: dict[str, Tolerance]) -> str | None:
    """The first pattern that fits a metric's name; None where none fits."""
    return next((pattern for pattern in tolerances if fnmatch.fnmatchcase(name, pattern)), None)


def tolerance_of(name: str, tolerances: dict[str, Tolerance]) -> Tolerance | None:
    """That of the first pattern that fits a metric's name; None where none fits."""
    pattern = pattern_of(name, tolerances)
    return None if pattern is None else tolerances[pattern]
