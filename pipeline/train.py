"""Train the autoencoder on the prepared splits and keep the weights of its best validation epoch.

    python -m pipeline.train          (normally through `dvc repro`)

Reads the `model` and `train` sections of params.yaml. MLflow gets a row of its own for every run.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from pipeline import tracking
from pipeline.data import load_split
from pipeline.errors import run_command
from pipeline.model import Architecture, AutoEncoder, save_model
from pipeline.params import load_params
from pipeline.progress import TrainingProgress, announce_dataset
from pipeline.training import EpochRecord, fit, make_deterministic, resolve_device

TRAIN_PATH = Path("data/prepared/train.safetensors")
VALID_PATH = Path("data/prepared/valid.safetensors")
MODEL_PATH = Path("models/autoencoder.safetensors")
HISTORY_PATH = Path("reports/history.csv")
METRICS_PATH = Path("reports/train.json")


def main() -> None:
    params = load_params()
    announce_dataset(params)
    # cuBLAS is deterministic only with a workspace of fixed size, set before CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    make_deterministic(None if params.train.threads == "auto" else params.train.threads)
    device = resolve_device(params.train.device)
    if params.train.device == "auto":
        print(f"train.device: auto chose {device}")

    train = torch.from_numpy(load_split(TRAIN_PATH).pixels()).to(device)
    valid = torch.from_numpy(load_split(VALID_PATH).pixels()).to(device)
    torch.manual_seed(params.train.seed)
    model = AutoEncoder(Architecture.from_params(params.model)).to(device)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"training {n_parameters:,} parameters on {len(train):,} images, {device}, {torch.get_num_threads()} threads")

    progress = TrainingProgress(params.train.n_epochs, len(train))
    with tracking.training_run(params, device=str(device)) as run:

        def on_epoch(record: EpochRecord, seconds: float) -> None:
            progress.on_epoch(record, seconds)
            run.log_epoch(asdict(record), epoch_seconds=seconds, images_per_second=len(train) / seconds)

        result = fit(model, train, valid, params.train, progress.on_batch, on_epoch)

        model.cpu().load_state_dict(result.weights)
        save_model(model, MODEL_PATH)
        HISTORY_PATH.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(map(asdict, result.history)).to_csv(HISTORY_PATH, index=False, float_format="%.9g")
        best = result.history[result.best_epoch - 1]
        metrics = {
            "valid": {"best_mse": best.valid_mse, "best_epoch": result.best_epoch},
            "model": {"n_parameters": n_parameters},
        }
        METRICS_PATH.write_text(json.dumps(metrics, indent=2) + "\n")
        run.log_training_outputs(params)
    print(f"best validation MSE {best.valid_mse:.5f} in epoch {result.best_epoch} of {params.train.n_epochs}")


if __name__ == "__main__":
    run_command(main)
