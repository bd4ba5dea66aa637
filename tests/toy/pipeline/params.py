"""The sections of params.yaml."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.core import params_file
from pipeline.core.params_file import PARAMS_PATH, AllSections, Section, Seed


class DataParams(Section):
    dataset: Literal["wave"]
    n_points: Annotated[int, Field(ge=10)]
    split_seed: Seed


class ModelParams(Section):
    degree: Annotated[int, Field(ge=1)]


class TrainParams(Section):
    seed: Seed
    n_epochs: Annotated[int, Field(ge=1)]
    lr: Annotated[float, Field(gt=0)]
    device: str
    threads: Annotated[int, Field(ge=1)]
    pause: Annotated[float, Field(ge=0)]  # seconds of sleep in each epoch, so that a test can interrupt the training


class EvaluateParams(Section):
    n_parts: Annotated[int, Field(ge=1)]  # the parts of the x-axis whose MSE is listed


class Params(AllSections):
    data: DataParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams


def load_params(path: Path = PARAMS_PATH, changes: Mapping[str, Any] = MappingProxyType({})) -> Params:
    return params_file.load(Params, path, changes)
