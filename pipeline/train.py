"""Train the autoencoder on the prepared splits and keep the weights of its best validation epoch.

    python -m pipeline.train          (normally through `dvc repro`)

Reads the `model` and `train` sections of params.yaml. Each training has its own MLflow run. If training is stopped,
the next start resumes from the last checkpoint, in the same MLflow run, and produces the same bytes.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from pipeline.autoencoder.model import Architecture, AutoEncoder, save_model
from pipeline.autoencoder.splits import load_split
from pipeline.autoencoder.trainer import (
    STATE_TYPES,
    Callback,
    EpochRecord,
    FitResult,
    TrainingState,
    fit,
    make_deterministic,
    resolve_device,
    resolve_precision,
    steps_of_epoch,
)
from pipeline.core.errors import run_command
from pipeline.core.files import write_out
from pipeline.params import TrainParams, load_params
from pipeline.tracking.progress import announce_data
from pipeline.tracking.training import training

TRAIN_PATH = Path("data/prepared/train.safetensors")
VALID_PATH = Path("data/prepared/valid.safetensors")
MODEL_PATH = Path("models/autoencoder.safetensors")
HISTORY_PATH = Path("reports/history.csv")
METRICS_PATH = Path("reports/train.json")


def main() -> None:
    params = load_params()
    announce_data(params)
    device = set_up(params.train)
    train, valid = load_pixels(TRAIN_PATH, device), load_pixels(VALID_PATH, device)
    torch.manual_seed(params.train.seed)
    model = AutoEncoder(Architecture.from_params(params.model)).to(device)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"training {n_parameters:,} parameters on {len(train):,} images, {device}, {torch.get_num_threads()} threads")

    n_images = math.prod(steps_of_epoch(len(train), params.train.batch_size))  # per epoch
    with training(
        params, str(device), n_epochs=params.train.n_epochs, n_examples=n_images, state_types=STATE_TYPES
    ) as run:
        result = fit(model, train, valid, params.train, [run, LiveReports(n_parameters)], run.state)
        write_reports(result, n_parameters)
        model.cpu().load_state_dict(result.weights)
        save_model(model, MODEL_PATH)
    best = result.history[result.best_epoch - 1]
    print(f"best validation MSE {best.valid_mse:.5f} in epoch {best.epoch} of {params.train.n_epochs}")


class LiveReports(Callback):
    """Writes the reports after each epoch, so that DVC shows a training while it runs."""

    def __init__(self, n_parameters: int):
        self._n_parameters = n_parameters

    def on_epoch(self, _record: EpochRecord, _seconds: float, state: TrainingState) -> None:
        write_reports(state.result, self._n_parameters)


def write_reports(result: FitResult, n_parameters: int) -> None:
    """Write the history and the metrics of the epochs so far."""
    write_out(HISTORY_PATH, pd.DataFrame(map(asdict, result.history)).to_csv(index=False, float_format="%.9g"))
    best = result.history[result.best_epoch - 1]
    metrics = {
        "valid": {"best_mse": best.valid_mse, "best_epoch": best.epoch},
        "model": {"n_parameters": n_parameters},
    }
    write_out(METRICS_PATH, json.dumps(metrics, indent=2) + "\n")


def set_up(params: TrainParams) -> torch.device:
    """Set threads and determinism, print what `auto` chose, and return the device to train on."""
    make_deterministic(None if params.threads == "auto" else params.threads)
    device = resolve_device(params.device)
    if params.device == "auto":
        print(f"train.device: auto chose {device}")
    if params.precision == "auto":
        print(f"train.precision: auto chose {str(resolve_precision('auto', device)).removeprefix('torch.')}")
    return device


def load_pixels(path: Path, device: torch.device) -> torch.Tensor:
    """Return a split's images as float32 [n, 784] in 0…1."""
    return torch.from_numpy(load_split(path).pixels()).to(device)


if __name__ == "__main__":
    run_command(main)
