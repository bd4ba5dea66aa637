"""Train the autoencoder on the prepared splits and keep the weights of its best validation epoch.

    python -m pipeline.train          (normally through `dvc repro`)

Reads the `model` and `train` sections of params.yaml. MLflow gets a row of its own for every run. A training
that was stopped goes on from its last checkpoint, in its row, to the same bytes.
"""

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from pipeline import dvcfiles, environment, tracking
from pipeline.checkpoint import FOLDER, Checkpoint, training_hash
from pipeline.data import load_split
from pipeline.errors import run_command
from pipeline.model import Architecture, AutoEncoder, save_model
from pipeline.outs import write_out
from pipeline.params import load_params
from pipeline.progress import TrainingProgress, announce_dataset
from pipeline.repository import main_root
from pipeline.training import (
    EpochRecord,
    TrainingState,
    fit,
    make_deterministic,
    resolve_device,
    resolve_precision,
    steps_of_epoch,
)

TRAIN_PATH = Path("data/prepared/train.safetensors")
VALID_PATH = Path("data/prepared/valid.safetensors")
MODEL_PATH = Path("models/autoencoder.safetensors")
HISTORY_PATH = Path("reports/history.csv")
METRICS_PATH = Path("reports/train.json")


def main() -> None:
    params = load_params()
    announce_dataset(params)
    make_deterministic(None if params.train.threads == "auto" else params.train.threads)
    device = resolve_device(params.train.device)
    if params.train.device == "auto":
        print(f"train.device: auto chose {device}")
    if params.train.precision == "auto":
        print(f"train.precision: auto chose {str(resolve_precision('auto', device)).removeprefix('torch.')}")

    train = torch.from_numpy(load_split(TRAIN_PATH).pixels()).to(device)
    valid = torch.from_numpy(load_split(VALID_PATH).pixels()).to(device)
    torch.manual_seed(params.train.seed)
    model = AutoEncoder(Architecture.from_params(params.model)).to(device)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"training {n_parameters:,} parameters on {len(train):,} images, {device}, {torch.get_num_threads()} threads")

    checkpoint = Checkpoint(main_root() / FOLDER, training_hash(params, str(device)), params.flat())
    with checkpoint.held():
        saved = checkpoint.load()
        earlier = saved.state.result.history if saved else []
        if saved:
            what = "finished, but DVC was stopped before it recorded that" if saved.is_finished else "stopped"
            print(f"going on after epoch {len(earlier)} of {params.train.n_epochs} of a training that was {what}")
        n_steps, batch_size = steps_of_epoch(len(train), params.train.batch_size)
        n_images = n_steps * batch_size  # that an epoch trains on
        progress = TrainingProgress(params.train.n_epochs, n_images, first_epoch=len(earlier) + 1)
        continued = tracking.Continued(saved.run, list(map(asdict, earlier))) if saved else None
        with tracking.training_run(params, str(device), continued) as run:

            def on_epoch(record: EpochRecord, seconds: float) -> None:
                progress.on_epoch(record, seconds)
                run.log_epoch(asdict(record), epoch_seconds=seconds, images_per_second=n_images / seconds)

            def on_state(state: TrainingState) -> None:
                checkpoint.save(state, run.id, is_last=len(state.result.history) == params.train.n_epochs)

            result = fit(
                model,
                train,
                valid,
                params.train,
                on_batch=progress.on_batch,
                on_epoch=on_epoch,
                on_state=on_state,
                state=saved.state if saved else None,
            )

            model.cpu().load_state_dict(result.weights)
            save_model(model, MODEL_PATH)
            write_out(HISTORY_PATH, pd.DataFrame(map(asdict, result.history)).to_csv(index=False, float_format="%.9g"))
            best = result.history[result.best_epoch - 1]
            metrics = {
                "valid": {"best_mse": best.valid_mse, "best_epoch": result.best_epoch},
                "model": {"n_parameters": n_parameters},
            }
            write_out(METRICS_PATH, json.dumps(metrics, indent=2) + "\n")
            environment.record(dvcfiles.md5s(dvcfiles.declared("train")["outs"]), str(device))
            run.log_training_outputs(params)
        checkpoint.finish()
    print(f"best validation MSE {best.valid_mse:.5f} in epoch {result.best_epoch} of {params.train.n_epochs}")


if __name__ == "__main__":
    run_command(main)
