"""How soon a training reaches the quality that the original's training loop ends with.

    python -m benchmarks.time_to_quality      (about 6 minutes)

The seconds, validation included, of this project's training that ends with a validation MSE as low as the
original's best, for the original's default network and for the one that it evaluated. Trainings alternate. Needs
data/prepared; writes reports/benchmarks/time_to_quality.json.
"""

import statistics
from typing import Any

from benchmarks.common import committed_params, machine, native_precisions, spread, write_result
from benchmarks.quality import DEFAULTS, SEEDS, Images, Outcome, train_original, train_ours

# The original's default network and the experiment that it evaluated, the epochs in which this project reached
# their quality when the recipe was chosen, seeds.
EXPERIMENTS: list[tuple[dict[str, int], int, tuple[int, ...]]] = [
    ({"bottleneck_size": 10, **DEFAULTS}, 3, SEEDS),
    ({"bottleneck_size": 2, "n_layers": 10, "n_epochs": 20}, 4, SEEDS[:1]),
]


def main() -> None:
    params = committed_params()
    images = Images()
    precision = native_precisions()[-1]
    rows = []
    for shape, our_epochs, seeds in EXPERIMENTS:
        original, ours = [], []
        for seed in seeds:
            original.append(train_original(images, **shape, seed=seed))
            ours.append(train_ours(params, images, **shape | {"n_epochs": our_epochs}, seed=seed, precision=precision))
        rows.append(shape | {"our_epochs": our_epochs} | comparison(original, ours))
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
