"""Measure how soon this project's training reaches the quality that each reference ends with.

    python -m benchmarks.time_to_quality      (25 minutes)

The quality is a reference's best validation MSE. The original as it is and its loop on our network (`benchmarks.seed`)
each have their own. This project reaches it if the mean of its trainings, over the seeds, is as low. The result is the
time of the whole training with validation, the reference's over this project's. Two clocks measure it: wall time, and
the processor time of all threads, which another program on the machine disturbs less. Both experiments of the original
are measured: its default network, and the one that it evaluated. Trainings alternate. Does not read the test set.
Needs data/prepared; writes reports/benchmarks/time_to_quality.json.
"""

from typing import Any

from benchmarks.common import committed_params, machine, native_precisions, spread, write_result
from benchmarks.quality import DEFAULTS, Images, Outcome, train_ours, train_reference
from benchmarks.recipe import changed
from benchmarks.seed import REFERENCES

# The original's default network and the experiment that it evaluated. Then the `train` parameters with which this
# project reached the quality of the original's loop on our network soonest. They were chosen with seeds 0, 1 and 2.
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
        ours_shape = shape | {"n_epochs": short.train.n_epochs}
        outcomes: dict[str, list[Outcome]] = {name: [] for name in (*REFERENCES, "ours")}
        for seed in seeds:
            for name in REFERENCES:
                outcomes[name].append(train_reference(name, images, **shape, seed=seed))
            outcomes["ours"].append(train_ours(short, images, **ours_shape, seed=seed, precision=precision))
        rows.append(shape | {"changes": changes} | {name: summary(each) for name, each in outcomes.items()})
    write_result("time_to_quality", {"machine": machine(), "precision": precision, "rows": rows})


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    return {
        "valid_mse": [round(outcome.valid_mse, 6) for outcome in outcomes],
        "seconds": spread([outcome.seconds for outcome in outcomes]),
        "processor_seconds": spread([outcome.processor_seconds for outcome in outcomes]),
    }


if __name__ == "__main__":
    main()
