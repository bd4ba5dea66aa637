"""The sections of params.yaml, and the values that each key may take.

This module is not among the stages' dependencies in dvc.yaml: DVC tracks the values themselves.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.core import params_file
from pipeline.core.params_file import PARAMS_PATH, AllSections, Section, Seed

N_PIXELS = 28 * 28


def names_a_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda|cuda:\d+|mps", value):
        raise ValueError(f"must be auto, cpu, cuda, cuda:N or mps, got {value!r}")
    return value


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
    device: Annotated[str, AfterValidator(names_a_device)]
    threads: Annotated[int, Field(ge=1)] | Literal["auto"]


class EvaluateParams(Section):
    """What the figures show."""

    manifold_size: Annotated[int, Field(ge=2, le=50)]
    midpoint_pairs: Annotated[int, Field(ge=1, le=10)]


class Params(AllSections):
    """All of params.yaml."""

    data: DataParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams


def load_params(path: Path = PARAMS_PATH, changes: Mapping[str, Any] = MappingProxyType({})) -> Params:
    """`params_file.load` of these sections."""
    return params_file.load(Params, path, changes)
