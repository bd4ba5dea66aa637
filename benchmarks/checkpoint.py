"""What checkpoints cost a training: the seconds that saving one takes, beside those of an epoch.

    python -m benchmarks.checkpoint      (about a minute)

Trains the committed network for some epochs and saves the larger kind of checkpoint after each, that of a
training whose best epoch is not the last. Needs data/prepared; writes reports/benchmarks/checkpoint.json.
"""

import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from pipeline import environment
from pipeline.checkpoint import Checkpoint
from pipeline.data import load_split
from pipeline.model import Architecture, AutoEncoder
from pipeline.params import load_params
from pipeline.repository import main_root
from pipeline.train import TRAIN_PATH, VALID_PATH
from pipeline.training import TrainingState, fit, make_deterministic, resolve_device

RESULT_PATH = Path("reports/benchmarks/checkpoint.json")
N_EPOCHS = 5


def main() -> None:
    params = load_params()
    make_deterministic(None if params.train.threads == "auto" else params.train.threads)
    device = resolve_device(params.train.device)
    train, valid = (torch.from_numpy(load_split(path).pixels()).to(device) for path in (TRAIN_PATH, VALID_PATH))
    model = AutoEncoder(Architecture.from_params(params.model)).to(device)
    saving: list[float] = []
    # On the disk on which a training's checkpoints lie.
    with tempfile.TemporaryDirectory(dir=main_root(), prefix=".benchmark-") as folder:
        checkpoint = Checkpoint(Path(folder), "benchmark", params.flat())

        def on_state(state: TrainingState) -> None:
            larger = replace(state, result=replace(state.result, best_epoch=0))
            started = time.perf_counter()
            checkpoint.save(larger, None, is_last=True)  # the last one is saved whenever it comes
            saving.append(time.perf_counter() - started)

        with checkpoint.held():
            started = time.perf_counter()
            fit(model, train, valid, params.train.model_copy(update={"n_epochs": N_EPOCHS}), on_state=on_state)
            seconds = time.perf_counter() - started
        size = (Path(folder) / "benchmark.state").stat().st_size
    epoch_seconds = (seconds - sum(saving)) / N_EPOCHS
    result = {
        "machine": environment.fingerprint(str(device)) | {"cores": os.cpu_count()},
        "megabytes": round(size / 1e6, 1),
        "epoch_seconds": round(epoch_seconds, 3),
        "save_seconds": [round(value, 3) for value in saving],
        "median_save_seconds": round(statistics.median(saving), 3),
        "percent_of_training": round(100 * statistics.median(saving) / epoch_seconds, 2),
    }
    RESULT_PATH.parent.mkdir(parents=True, exist_ok=True)
    RESULT_PATH.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
