"""params.yaml: its sections, the values each key may take, and errors that name all problems at once.

There are no defaults and no conversions here: what params.yaml says is what the stages get. That is
why this module is not among the stages' dependencies in dvc.yaml; DVC tracks the values themselves.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.core.errors import PipelineError, on_one_line
from pipeline.core.yaml_reader import load_yaml

PARAMS_PATH = Path("params.yaml")
N_PIXELS = 28 * 28
# What numpy's RandomState, the narrowest of the generators in use, accepts.
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """Strict: unknown keys, missing keys and wrong types (a bool is no int) are all errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DataParams(Section):
    """Which images, and how they are split. The seed is the split's own: training seeds share a split."""

    dataset: Literal["mnist", "digits"]
    train_ratio: Annotated[float, Field(gt=0, lt=1)]
    split_seed: Seed


class ModelParams(Section):
    """The network's shape. The hidden widths follow from n_layers or are given as hidden_sizes."""

    bottleneck_size: Annotated[int, Field(ge=1, le=N_PIXELS)]
    n_layers: Annotated[int, Field(ge=1, le=100)] | None
    hidden_sizes: list[Annotated[int, Field(ge=1)]] | None
    regularizer: Literal["batch_norm", "dropout"]
    dropout_p: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def one_source_of_widths(self) -> "ModelParams":
        if (self.n_layers is None) == (self.hidden_sizes is None):
            raise ValueError("give either n_layers or hidden_sizes and set the other to null")
        return self


class TrainParams(Section):
    """How the network is trained, and on what."""

    seed: Seed
    n_epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)]
    lr: Annotated[float, Field(gt=0)]
    schedule: Literal["one_cycle", "constant"]
    weight_decay: Annotated[float, Field(ge=0)]
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["auto", "float32", "bfloat16"]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda|cuda:\d+|mps)$")]
    threads: Annotated[int, Field(ge=1)] | Literal["auto"]


class EvaluateParams(Section):
    """What the figures show."""

    manifold_size: Annotated[int, Field(ge=2, le=50)]
    midpoint_pairs: Annotated[int, Field(ge=1, le=10)]


class Params(Section):
    """All of params.yaml."""

    data: DataParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams

    def flat(self) -> dict[str, Any]:
        """{'model.bottleneck_size': 2, …}: every value under its dotted name."""
        return {
            f"{section}.{name}": value
            for section, values in self.model_dump().items()
            for name, value in values.items()
        }


def short(name: str) -> str:
    """`lr` of `train.lr`."""
    return name.partition(".")[2] or name


def load_params(path: Path = PARAMS_PATH, changes: Mapping[str, Any] = MappingProxyType({})) -> Params:
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
        raise PipelineError(f"{path} must hold sections ({', '.join(Params.model_fields)}), got {values!r}")
    for name, value in changes.items():
        section, _, key = name.partition(".")
        if isinstance(found := values.get(section) or {}, dict):
            values[section] = {**found, key: value}
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        problems = "".join(f"\n  {line}" for line in _describe(error))
        what = f"{path} holds values that are not allowed"
        if changes:
            load_params(path)  # which is to blame where it is wrong without them too
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
            case kind:
                device = kind == "string_pattern_mismatch"
                rule = "auto, cpu, cuda, cuda:N or mps" if device else problem["msg"]
                wanted.setdefault(name, []).append(rule.removeprefix("Input should be "))
                given[name] = problem["input"]
    return lines + [f"{name}: must be {' or '.join(rules)}, got {given[name]!r}" for name, rules in wanted.items()]
