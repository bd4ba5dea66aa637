"""Train the classifier and keep the weights of its best validation epoch.

python -m pipeline.train          (normally through `dvc repro`)
"""

import csv
import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path

import torch
from pipeline.classifier.data import load_table
from pipeline.classifier.network import Classifier, save_model
from pipeline.classifier.training import State, environment, fit, pack, unpack

from pipeline.core import dvcfiles
from pipeline.core.checkpoint import Checkpoint
from pipeline.core.environment import record
from pipeline.core.errors import run_command
from pipeline.core.files import write_out
from pipeline.core.repository import CHECKPOINTS, main_root
from pipeline.params import Params, load_params
from pipeline.tracking import runs
from pipeline.tracking.progress import TrainingProgress

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

    checkpoint = Checkpoint(main_root() / CHECKPOINTS, training_hash(params), params.flat())
    with checkpoint.held():
        saved = checkpoint.load()
        stopped = unpack(saved.content) if saved else None
        continued = runs.Continued(saved.run, list(map(asdict, stopped.history))) if saved and stopped else None
        if stopped:
            print(f"resuming after epoch {len(stopped.history)} of {params.train.n_epochs}")
        with runs.training_run(params, params.train.device, continued) as run:
            first = len(stopped.history) + 1 if stopped else 1
            progress = TrainingProgress(params.train.n_epochs, len(train[1]), first)
            keeper = Keeper(checkpoint, run, params.train.n_epochs)
            state = fit(model, train, valid, params.train, [progress, keeper, run], stopped)
            write_results(model, state, n_parameters)
            outs = dvcfiles.md5s([str(path) for path in (MODEL_PATH, HISTORY_PATH, METRICS_PATH)])
            record(outs, environment(params.train.device))
            run.log_training_outputs(params)
        checkpoint.finish()


class Keeper:
    """A callback that keeps the state in the checkpoint."""

    def __init__(self, checkpoint: Checkpoint, run: runs.TrainingRun, n_epochs: int):
        self._checkpoint, self._run, self._n_epochs = checkpoint, run, n_epochs

    def on_batch(self, _n_rows: int) -> None:
        """Only whole epochs are kept."""

    def on_state(self, state: State) -> None:
        self._checkpoint.save(lambda: pack(state), self._run.id, len(state.history) == self._n_epochs)

    def on_epoch(self, _record: object, _seconds: float) -> None:
        """The state was kept before."""


def load_rows(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    table = load_table(path)
    return torch.from_numpy(table.features), torch.from_numpy(table.classes)


def training_hash(params: Params) -> str:
    """A hash of all that decides what the training writes."""
    decisive = {
        "params": {"model": params.model.model_dump(), "train": params.train.model_dump()},
        "files": dvcfiles.contents(dvcfiles.md5s(dvcfiles.declared("train")["deps"])),
        "environment": environment(params.train.device),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]


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
