"""A whole training at the committed parameters on a CUDA GPU, beside the original's loop there.

    python -m benchmarks.cuda      (2 minutes)

The training steps alone are timed, the recording of the CUDA graph and validation left out. The original's loop
trains its own network of the same widths for as many epochs. Trainings alternate, ROUNDS of each. Needs
data/prepared; writes reports/benchmarks/cuda.json, or nothing where there is no GPU.
"""

from typing import Any

import torch

from benchmarks.common import committed_params, load_pixels, machine, spread, write_result
from benchmarks.throughput import seconds_of_seed, training_seconds
from pipeline.model import Architecture, AutoEncoder
from pipeline.training import PRECISIONS

ROUNDS = 3


def main() -> None:
    if not torch.cuda.is_available():
        print("no CUDA GPU: not measured")
        return
    params = committed_params()
    assert params.model.n_layers is not None, "params.yaml has a number of layers"
    train = load_pixels("train", "cuda")
    seconds: dict[str, list[float]] = {name: [] for name in ("seed", *PRECISIONS)}
    for _ in range(ROUNDS):
        seconds["seed"].append(
            seconds_of_seed(train, params.model.bottleneck_size, params.model.n_layers, params.train.n_epochs)
        )
        for precision in PRECISIONS:
            model = AutoEncoder(Architecture.from_params(params.model)).to("cuda")
            changed = params.train.model_copy(update={"precision": precision})
            seconds[precision].append(training_seconds(model, train, changed))
            print(f"{precision}: {seconds[precision][-1]:.2f} s", flush=True)
    medians = {name: spread(values)["median"] for name, values in seconds.items()}
    fastest = min(PRECISIONS, key=lambda precision: medians[precision])
    result: dict[str, Any] = {
        "machine": machine("cuda:0"),
        "n_epochs": params.train.n_epochs,
        "training_seconds": {name: spread(values) for name, values in seconds.items()},
        "fastest_precision": fastest,
        "speedup_over_seed": round(medians["seed"] / medians[fastest], 1),
    }
    write_result("cuda", result)


if __name__ == "__main__":
    main()
