"""Measure whether a long training stays as fast and as small as a short one.

    python -m benchmarks.growth      (about 6 minutes)

Trains the network with 5 layers and bottleneck size 10 for 50 epochs, as `pipeline.train` runs it, without DVC and
MLflow. Needs data/prepared; writes reports/benchmarks/growth.json.
"""

import resource
import statistics

import psutil
import torch

from benchmarks.common import committed_params, load_pixels, machine, write_result
from pipeline.autoencoder.model import Architecture, AutoEncoder
from pipeline.autoencoder.trainer import Callback, EpochRecord, TrainingState, fit, steps_of_epoch

N_EPOCHS = 50
EACH_END = 10


def main() -> None:
    params = committed_params()
    train, valid = load_pixels("train"), load_pixels("valid")
    torch.manual_seed(params.train.seed)
    model = AutoEncoder(
        Architecture.from_params(params.model.model_copy(update={"bottleneck_size": 10, "n_layers": 5}))
    )
    n_steps, batch_size = steps_of_epoch(len(train), params.train.batch_size)
    speeds: list[float] = []
    resident: list[float] = []

    class Growth(Callback):
        def on_epoch(self, record: EpochRecord, seconds: float, _state: TrainingState) -> None:
            speeds.append(n_steps * batch_size / seconds)
            resident.append(psutil.Process().memory_info().rss / 1e6)
            print(f"epoch {record.epoch}: {speeds[-1]:,.0f} images/s, {resident[-1]:,.0f} MB", flush=True)

    fit(model, train, valid, params.train.model_copy(update={"n_epochs": N_EPOCHS}), [Growth()])
    first, last = statistics.median(speeds[:EACH_END]), statistics.median(speeds[-EACH_END:])
    write_result(
        "growth",
        {
            "machine": machine(),
            "n_epochs": N_EPOCHS,
            "images_per_second": [round(speed) for speed in speeds],
            f"median_of_first_{EACH_END}": round(first),
            f"median_of_last_{EACH_END}": round(last),
            "last_over_first": round(last / first, 3),
            "megabytes_after_epoch": [round(size) for size in resident],
            "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),  # KiB on Linux
        },
    )


if __name__ == "__main__":
    main()
