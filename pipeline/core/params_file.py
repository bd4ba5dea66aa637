"""params.yaml, whatever its sections are: read strictly, with errors that name all problems at once.

There are no defaults and no conversions: what params.yaml says is what the stages get.
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
# What numpy's RandomState, the narrowest of the generators in use, accepts.
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """Strict: unknown keys, missing keys and wrong types (a bool is no int) are all errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class AllSections(Section):
    """All of params.yaml: a subclass has a field for each section."""

    def flat(self) -> dict[str, Any]:
        """{'train.lr': 0.01, …}: every value under its dotted name."""
        return {
            f"{section}.{name}": value
            for section, values in self.model_dump().items()
            for name, value in values.items()
        }


Sections = TypeVar("Sections", bound=AllSections)


def short(name: str) -> str:
    """`lr` of `train.lr`."""
    return name.partition(".")[2] or name


def load(
    schema: type[Sections], path: Path = PARAMS_PATH, changes: Mapping[str, Any] = MappingProxyType({})
) -> Sections:
    """Read and validate params.yaml, with other values for some dotted names, as `{'train.lr': 0.01}`.

    Raises:
        PipelineError: the file is missing, is not YAML, or holds values that are not allowed; every
            problem is listed, as `train.lr: must be greater than 0, got -1`.
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
            load(schema, path)  # which is to blame where it is wrong without them too
            settings = " ".join(f"{name}={json.dumps(value)}" for name, value in changes.items())
            what = f"-S (GRID) {settings} gives values that are not allowed"
        raise PipelineError(f"{what}:{problems}") from None


def parse_values(text: str) -> list[Any]:
    """Several values as params.yaml would hold them: `2,4` is [2, 4], `null,[512,128]` is [None, [512, 128]].

    Raises:
        PipelineError: the text is not YAML.
    """
    try:
        return load_yaml(f"[{text}]")
    except (yaml.YAMLError, ValueError):
        raise PipelineError(f"{text!r} is not a list of values, as 2,4,8 or null,[512,128]") from None


def _describe(error: ValidationError) -> list[str]:
    """One line for each key that is wrong: its dotted name, what it must be, what it is."""
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
