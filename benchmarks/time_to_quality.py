"""How soon a training reaches the quality that the original's training loop ends with.

    python -m benchmarks.time_to_quality      (about 20 minutes)

The seconds, validation included, of this project's training that ends with a validation MSE as low as the
original's best (means over the seeds), for the original's default network and for the one that it evaluated.
Trainings alternate. Needs data/prepared; writes reports/benchmarks/time_to_quality.json.
"""

import statistics
from typing import Any

from benchmarks.common import committed_params, machine, native_precisions, spread, write_result
from benchmarks.quality import DEFAULTS, Images, Outcome, train_original, train_ours
from benchmarks.recipe import changed

# The original's default network and the experiment that it evaluated, and the `train` parameters with which this
# project reached their quality soonest. Those were chosen with seeds 0, 1 and 2.
EXPERIMENTS: list[tuple[dict[str, int], dict[str, Any], tuple[int, ...]]] = [
    ({"bottleneck_size": 10, **DEFAULTS}, {"n_epochs": 2, "batch_size": 192, "lr": 0.0125}, (3, 4, 5)),
    ({"bottleneck_size": 2, "n_layers": 10, "n_epochs": 20}, {"n_epochs": 5}, (3, 4, 5)),
]


def main() -> None:
    params = committed_params()
    images = Images()
    precision = native_precisions()[-1]
    rows = []
    for shape, changes, seeds in EXPERIMENTS:
        short = changed(params, {f"train.{name}": value for name, value in changes.items()})
        original, ours = [], []
        for seed in seeds:
            original.append(train_original(images, **shape, seed=seed))
            ours_shape = shape | {"n_epochs": short.train.n_epochs}
            ours.append(train_ours(short, images, **ours_shape, seed=seed, precision=precision))
        rows.append(shape | {"changes": changes} | comparison(original, ours))
    write_result("time_to_quality", {"machine": machine(), "precision": precision, "rows": rows})


def comparison(original: list[Outcome], ours: list[Outcome]) -> dict[str, Any]:
    pairs = list(zip(original, ours, strict=True))
    return {
        "original_valid_mse": [round(outcome.valid_mse, 6) for outcome in original],
        "original_seconds": spread([outcome.seconds for outcome in original]),
        "our_valid_mse": [round(outcome.valid_mse, 6) for outcome in ours],
        "our_seconds": spread([outcome.seconds for outcome in ours]),
        "reached": [our.valid_mse <= their.valid_mse for their, our in pairs],
        "median_speedup": round(statistics.median(their.seconds / our.seconds for their, our in pairs), 1),
    }


if __name__ == "__main__":
    main()
