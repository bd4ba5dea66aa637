"""The sections of params.yaml, and the values that each key may take."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.core import params_file
from pipeline.core.params_file import PARAMS_PATH, AllSections, Section, Seed

Share = Annotated[float, Field(gt=0, lt=1)]


class DataParams(Section):
    """The table, and how it is split."""

    dataset: Literal["wine", "breast_cancer"]
    test_ratio: Share
    valid_ratio: Share  # of the rows that are not in the test set
    split_seed: Seed


class ModelParams(Section):
    """The network's shape."""

    hidden_size: Annotated[int, Field(ge=1)]


class TrainParams(Section):
    """How and on which device the network is trained."""

    seed: Seed
    n_epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    lr: Annotated[float, Field(gt=0)]
    device: Literal["cpu"]
    threads: Annotated[int, Field(ge=1)]


class Params(AllSections):
    """All of params.yaml."""

    data: DataParams
    model: ModelParams
    train: TrainParams


def load_params(path: Path = PARAMS_PATH, changes: Mapping[str, Any] = MappingProxyType({})) -> Params:
    """Load these sections from params.yaml."""
    return params_file.load(Params, path, changes)
