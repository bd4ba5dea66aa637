"""Train the classifier and keep the weights of its best validation epoch.

python -m pipeline.train          (normally through `dvc repro`)
"""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

import torch

from pipeline.classifier.data import load_table
from pipeline.classifier.network import Classifier, save_model
from pipeline.classifier.training import STATE_TYPES, State, fit
from pipeline.core.errors import run_command
from pipeline.core.files import write_out
from pipeline.params import load_params
from pipeline.tracking.training import training

TRAIN_PATH = Path("data/prepared/train.safetensors")
VALID_PATH = Path("data/prepared/valid.safetensors")
MODEL_PATH = Path("models/classifier.safetensors")
HISTORY_PATH = Path("reports/history.csv")
METRICS_PATH = Path("reports/train.json")


def main() -> None:
    params = load_params()
    torch.set_num_threads(params.train.threads)
    train, valid = load_rows(TRAIN_PATH), load_rows(VALID_PATH)
    torch.manual_seed(params.train.seed)
    n_classes = int(train[1].max()) + 1
    model = Classifier(train[0].shape[1], n_classes, params.model.hidden_size)
    model.standardise(train[0])
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"training {n_parameters:,} parameters on {len(train[1])} rows")

    with training(
        params,
        params.train.device,
        n_epochs=params.train.n_epochs,
        n_examples=len(train[1]),
        state_types=STATE_TYPES,
    ) as run:
        state = fit(model, train, valid, params.train, [run], run.state)
        write_results(model, state, n_parameters)


def load_rows(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    table = load_table(path)
    return torch.from_numpy(table.features), torch.from_numpy(table.classes)


def write_results(model: Classifier, state: State, n_parameters: int) -> None:
    model.load_state_dict(state.best)
    save_model(model, MODEL_PATH)
    table = io.StringIO()
    writer = csv.DictWriter(table, asdict(state.history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, state.history))
    write_out(HISTORY_PATH, table.getvalue())
    best = min(state.history, key=lambda record: record.valid_log_loss)
    metrics = {"valid": {"best_log_loss": best.valid_log_loss, "best_epoch": best.epoch}}
    write_out(METRICS_PATH, json.dumps(metrics | {"model": {"n_parameters": n_parameters}}, indent=2) + "\n")
    print(f"best validation log-loss {best.valid_log_loss:.4f} in epoch {best.epoch}")


if __name__ == "__main__":
    run_command(main)
