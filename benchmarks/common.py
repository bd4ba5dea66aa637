"""Code that the benchmarks share: load the prepared images, describe the machine, write a result."""

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
    """Return the parameters of params.yaml, after setting its number of threads and deterministic kernels."""
    params = load_params()
    assert params.train.threads != "auto", "params.yaml has a number"
    make_deterministic(params.train.threads)
    return params


def load_pixels(name: str, device: str = "cpu") -> torch.Tensor:
    """Return the images of `train`, `valid` or `test`, float32 [n, 784] in 0…1."""
    return torch.from_numpy(load_split(Path(f"data/prepared/{name}.safetensors")).pixels()).to(device)


def native_precisions() -> list[str]:
    """Return the precisions that this processor has instructions for."""
    return list(PRECISIONS) if has_bfloat16(torch.device("cpu")) else ["float32"]


class Epochs(Callback):
    """Records the seconds that each epoch's training steps took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch(self, _record: EpochRecord, seconds: float, _state: TrainingState) -> None:
        self.seconds.append(seconds)


def training_seconds(model: nn.Module, train: torch.Tensor, params: TrainParams) -> float:
    """Train with `fit` and return the seconds of the training steps, without validation."""
    epochs = Epochs()
    fit(model, train, train[:1], params, [epochs])
    return sum(epochs.seconds)


def clocks() -> tuple[float, float]:
    """Return the wall clock and the processor time of all threads of this process, both in seconds."""
    return time.perf_counter(), time.process_time()


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return hardware and versions, which are recorded with every timing."""
    return environment.fingerprint(device) | {"cores": os.cpu_count()}


def without_store() -> dict[str, str]:
    """Return this process's environment without MLflow's settings, so that a copy uses its own store."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}


def spread(values: list[float]) -> dict[str, Any]:
    """Return the median and all values, in the order in which they were measured."""
    return {"median": round(statistics.median(values), 4), "all": [round(value, 4) for value in values]}


def write_result(name: str, result: dict[str, Any]) -> None:
    """Write reports/benchmarks/NAME.json and print it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
