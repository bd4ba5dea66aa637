"""Fit a polynomial to the training points, and keep the coefficients of the best validation epoch."""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from pipeline.core.errors import PipelineError, run_command
from pipeline.core.files import write_out
from pipeline.params import load_params
from pipeline.polynomial import STATE_TYPES, Polynomial, fit, save_model
from pipeline.tracking.training import training


def main() -> None:
    params = load_params()
    if params.train.device != "cpu":
        raise PipelineError(f"train.device: {params.train.device} is not on this machine")
    torch.set_num_threads(params.train.threads)
    torch.manual_seed(params.train.seed)
    model = Polynomial(params.model.degree)
    train, valid = (torch.from_numpy(np.load(f"data/prepared/{name}.npy")).float() for name in ("train", "valid"))
    print(f"training {params.model.degree + 1} parameters on {len(train)} points")
    n_epochs = params.train.n_epochs
    with training(
        params, params.train.device, n_epochs=n_epochs, n_examples=len(train), state_types=STATE_TYPES
    ) as run:
        state = fit(model, train, valid, params.train, [run], run.state)
        model.coefficients.data = state.best
        save_model(model, Path("models/polynomial.safetensors"))
        table = io.StringIO()
        writer = csv.DictWriter(table, asdict(state.history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, state.history))
        write_out(Path("reports/history.csv"), table.getvalue())
        best = min(state.history, key=lambda record: record.valid_mse)
        metrics = {"valid": {"best_mse": best.valid_mse}, "model": {"n_parameters": params.model.degree + 1}}
        write_out(Path("reports/train.json"), json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
