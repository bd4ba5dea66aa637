"""Read params.yaml strictly, for any set of sections. One error lists all problems.

There are no defaults and no conversions: the stages get exactly the values in params.yaml.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import PipelineError, on_one_line
from pipeline.core.yaml_reader import load_yaml

PARAMS_PATH = Path("params.yaml")
# The range of numpy's RandomState, the narrowest of the generators in use.
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A strict section: unknown keys, missing keys and wrong types (a bool is not an int) are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class AllSections(Section):
    """All of params.yaml. A subclass has one field per section."""

    def flat(self) -> dict[str, Any]:
        """Return every value under its dotted name: {'train.lr': 0.01, …}."""
        return {
            f"{section}.{name}": value
            for section, values in self.model_dump().items()
            for name, value in values.items()
        }


Sections = TypeVar("Sections", bound=AllSections)


def short(name: str) -> str:
    """Return a parameter's name without its section: `lr` for `train.lr`."""
    return name.partition(".")[2] or name


def load(
    schema: type[Sections], path: Path = PARAMS_PATH, changes: Mapping[str, Any] = MappingProxyType({})
) -> Sections:
    """Read and validate params.yaml. `changes` replaces values by dotted name: `{'train.lr': 0.01}`.

    Raises:
        PipelineError: the file is missing, is not YAML, or holds values that are not allowed; the message lists every
            problem, for example `train.lr: must be greater than 0, got -1`.
    """
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing; run this in the repository's root") from None
    except (yaml.YAMLError, ValueError) as error:
        raise PipelineError(f"{path} is not valid YAML: {on_one_line(error)}") from None
    if not isinstance(values, dict):
        raise PipelineError(f"{path} must hold sections ({', '.join(schema.model_fields)}), got {values!r}")
    for name, value in changes.items():
        section, _, key = name.partition(".")
        if isinstance(found := values.get(section) or {}, dict):
            values[section] = {**found, key: value}
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = "".join(f"\n  {line}" for line in _describe(error))
        what = f"{path} holds values that are not allowed"
        if changes:
            load(schema, path)  # if the file itself is wrong, its error is the one to report
            settings = " ".join(f"{name}={json.dumps(value)}" for name, value in changes.items())
            what = f"-S (GRID) {settings} gives values that are not allowed"
        raise PipelineError(f"{what}:{problems}") from None


def parse_values(text: str) -> list[Any]:
    """Parse a list of values in params.yaml's syntax: `2,4` is [2, 4], `null,[512,128]` is [None, [512, 128]].

    Raises:
        PipelineError: the text is not YAML.
    """
    try:
        return load_yaml(f"[{text}]")
    except (yaml.YAMLError, ValueError):
        raise PipelineError(f"{text!r} is not a list of values; write, for example, 2,4,8 or null,[512,128]") from None


def _describe(error: ValidationError) -> list[str]:
    """Return one line per invalid key: its dotted name, the allowed values and the actual value."""
    lines: list[str] = []
    wanted: dict[str, list[str]] = {}  # a union (a number or "auto") reports one problem for each member
    given: dict[str, Any] = {}
    for problem in error.errors():
        section_and_key, inside = problem["loc"][:2], problem["loc"][2:]
        name = ".".join(map(str, (*section_and_key, *(part for part in inside if isinstance(part, int)))))
        match problem["type"]:
            case "extra_forbidden":
                lines.append(f"{name}: unknown key")
            case "missing":
                lines.append(f"{name}: missing")
            case "value_error":
                lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}")
            case _:
                wanted.setdefault(name, []).append(problem["msg"].removeprefix("Input should be "))
                given[name] = problem["input"]
    return lines + [f"{name}: must be {' or '.join(rules)}, got {given[name]!r}" for name, rules in wanted.items()]
