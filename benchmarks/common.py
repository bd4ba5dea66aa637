"""What the benchmarks share: the prepared images, and how a result is written down."""

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.autoencoder import environment
from pipeline.autoencoder.splits import load_split
from pipeline.autoencoder.trainer import (
    PRECISIONS,
    Callback,
    EpochRecord,
    TrainingState,
    fit,
    has_bfloat16,
    make_deterministic,
)
from pipeline.params import Params, TrainParams, load_params

RESULTS = Path("reports/benchmarks")


def committed_params() -> Params:
    """Those of params.yaml, with its number of threads and deterministic kernels switched on."""
    params = load_params()
    assert params.train.threads != "auto", "params.yaml has a number"
    make_deterministic(params.train.threads)
    return params


def load_pixels(name: str, device: str = "cpu") -> torch.Tensor:
    """The images of `train`, `valid` or `test`, float32 [n, 784] in 0…1."""
    return torch.from_numpy(load_split(Path(f"data/prepared/{name}.safetensors")).pixels()).to(device)


def native_precisions() -> list[str]:
    """Those that this processor has instructions for."""
    return list(PRECISIONS) if has_bfloat16(torch.device("cpu")) else ["float32"]


class Epochs(Callback):
    """The seconds that each epoch's training steps took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch(self, _record: EpochRecord, seconds: float, _state: TrainingState) -> None:
        self.seconds.append(seconds)


def training_seconds(model: nn.Module, train: torch.Tensor, params: TrainParams) -> float:
    """Train by `fit` and add up the training steps' seconds, without validation."""
    epochs = Epochs()
    fit(model, train, train[:1], params, [epochs])
    return sum(epochs.seconds)


def clocks() -> tuple[float, float]:
    """The wall clock, and the processor time that all threads of this process have taken; both in seconds."""
    return time.perf_counter(), time.process_time()


def machine(device: str = "cpu") -> dict[str, Any]:
    """Hardware and versions, which belong beside every timing."""
    return environment.fingerprint(device) | {"cores": os.cpu_count()}


def without_store() -> dict[str, str]:
    """This process's environment with none of MLflow's settings, so that a copy has a store of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}


def spread(values: list[float]) -> dict[str, Any]:
    """The values in the order in which they were measured, and their median."""
    return {"median": round(statistics.median(values), 4), "all": [round(value, 4) for value in values]}


def write_result(name: str, result: dict[str, Any]) -> None:
    """Write reports/benchmarks/NAME.json and show it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
