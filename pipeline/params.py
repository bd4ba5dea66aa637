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
    """The images and their split."""

    dataset: Annotated[
        Literal["mnist", "digits"], Field(description="`digits` is scikit-learn's: 1,797 small images, no download")
    ]
    train_ratio: Annotated[
        float, Field(gt=0, lt=1, description="share of the training images to train on; the others validate")
    ]
    split_seed: Annotated[Seed, Field(description="seed of the split only, so that training seeds share a split")]


class ModelParams(Section):
    """The network. Its hidden widths follow from `n_layers` or are given as `hidden_sizes`."""

    bottleneck_size: Annotated[int, Field(ge=1, le=N_PIXELS, description="latent dimensions")]
    n_layers: Annotated[
        Annotated[int, Field(ge=1, le=100)] | None,
        Field(description="linear layers in each half, with evenly falling widths; null if `hidden_sizes` is given"),
    ]
    hidden_sizes: Annotated[
        list[Annotated[int, Field(ge=1)]] | None,
        Field(description="the encoder's hidden widths, as `[512, 128]`, mirrored in the decoder; else null"),
    ]
    regularizer: Annotated[Literal["batch_norm", "dropout"], Field(description="what follows each ReLU")]
    dropout_p: Annotated[float, Field(ge=0, lt=1, description="share of dropped activations; with `dropout` only")]

    @model_validator(mode="after")
    def one_source_of_widths(self) -> "ModelParams":
        if (self.n_layers is None) == (self.hidden_sizes is None):
            raise ValueError("give either n_layers or hidden_sizes and set the other to null")
        return self


class TrainParams(Section):
    """The training and its device."""

    seed: Annotated[Seed, Field(description="seed of initial weights, shuffling and dropout")]
    n_epochs: Annotated[int, Field(ge=1, description="epochs")]
    batch_size: Annotated[int, Field(ge=2, description="images in a batch")]
    lr: Annotated[float, Field(gt=0, description="learning rate; its peak if the schedule has one")]
    schedule: Annotated[
        Literal["one_cycle", "constant"], Field(description="`one_cycle` rises for 30 % of the steps, then falls to 0")
    ]
    weight_decay: Annotated[
        float, Field(ge=0, description="AdamW's, times the learning rate, of weight matrices only; with 0 it is Adam")
    ]
    adam_beta2: Annotated[
        float, Field(ge=0, lt=1, description="decay of Adam's running mean of squared gradients (torch: 0.999)")
    ]
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(description="type of the training's matrix products; `auto` is bfloat16 where the device has it"),
    ]
    device: Annotated[
        str,
        AfterValidator(names_a_device),
        Field(examples=["auto", "cpu", "cuda", "cuda:N", "mps"], description="where the training runs"),
    ]
    threads: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"],
        Field(description="CPU threads; they decide the last bits of the result"),
    ]


class EvaluateParams(Section):
    """What the figures show."""

    manifold_size: Annotated[
        int, Field(ge=2, le=50, description="images on each side of the decoded manifold's figure")
    ]
    midpoint_pairs: Annotated[int, Field(ge=1, le=10, description="pairs of digits whose midpoints are drawn")]


class Params(AllSections):
    """All of params.yaml."""

    data: DataParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams


def load_params(path: Path = PARAMS_PATH, changes: Mapping[str, Any] = MappingProxyType({})) -> Params:
    """`params_file.load` of these sections."""
    return params_file.load(Params, path, changes)
