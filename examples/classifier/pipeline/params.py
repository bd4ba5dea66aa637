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
    """Which table, and how it is split."""

    dataset: Literal["wine", "breast_cancer"]
    test_ratio: Share
    valid_ratio: Share  # of what is not for the test
    split_seed: Seed


class ModelParams(Section):
    """The network's shape."""

    hidden_size: Annotated[int, Field(ge=1)]


class TrainParams(Section):
    """How the network is trained, and on what."""

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
    """`params_file.load` of these sections."""
    return params_file.load(Params, path, changes)
