"""Measure what checkpoints cost a training: the seconds to save one, compared with those of an epoch.

    python -m benchmarks.checkpoint      (about a minute)

Trains the committed network for some epochs and saves a checkpoint after each. Needs data/prepared; writes
reports/benchmarks/checkpoint.json.
"""

import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import load_pixels, machine, write_result
from pipeline.autoencoder.model import Architecture, AutoEncoder
from pipeline.autoencoder.trainer import Callback, EpochRecord, TrainingState, fit, make_deterministic, resolve_device
from pipeline.core.checkpoint import Checkpointer
from pipeline.core.repository import main_root
from pipeline.params import load_params
from pipeline.tracking.training import pack

N_EPOCHS = 5


def main() -> None:
    params = load_params()
    make_deterministic(None if params.train.threads == "auto" else params.train.threads)
    device = resolve_device(params.train.device)
    train, valid = load_pixels("train", str(device)), load_pixels("valid", str(device))
    model = AutoEncoder(Architecture.from_params(params.model)).to(device)
    saving: list[float] = []
    epochs: list[dict[str, float]] = []
    # On the same disk as a training's checkpoints.
    with tempfile.TemporaryDirectory(dir=main_root(), prefix=".benchmark-") as folder:
        checkpoint = Checkpointer(Path(folder), "benchmark", params.flat())

        class Saving(Callback):
            def on_epoch(self, record: EpochRecord, _seconds: float, state: TrainingState) -> None:
                epochs.append(asdict(record))
                started = time.perf_counter()
                checkpoint.save(lambda: pack(state, epochs), None, is_last=True)  # only the last one is always saved
                saving.append(time.perf_counter() - started)

        with checkpoint.locked():
            started = time.perf_counter()
            fit(model, train, valid, params.train.model_copy(update={"n_epochs": N_EPOCHS}), [Saving()])
            seconds = time.perf_counter() - started
        size = (Path(folder) / "benchmark.state").stat().st_size
    epoch_seconds = (seconds - sum(saving)) / N_EPOCHS
    result = {
        "machine": machine(str(device)),
        "megabytes": round(size / 1e6, 1),
        "epoch_seconds": round(epoch_seconds, 3),
        "save_seconds": [round(value, 3) for value in saving],
        "median_save_seconds": round(statistics.median(saving), 3),
        "percent_of_training": round(100 * statistics.median(saving) / epoch_seconds, 2),
    }
    write_result("checkpoint", result)


if __name__ == "__main__":
    main()
