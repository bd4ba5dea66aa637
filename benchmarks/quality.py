"""How good the trained network is, and how soon, beside the original's training loop on the same images.

    python -m benchmarks.quality      (about 40 minutes)

At equal epochs: the test MSE of both for three bottleneck sizes and three seeds, each time with the weights of
the best validation epoch. Time to the original's quality: how long this project's training takes that ends with
a validation MSE as low as the original's best. Trainings alternate. Needs data/prepared; writes
reports/benchmarks/quality.json.
"""

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.common import committed_params, load_pixels, machine, native_precisions, spread, write_result
from benchmarks.seed import seed_epoch, seed_network
from pipeline.model import Architecture, AutoEncoder
from pipeline.params import Params
from pipeline.training import fit, reconstruction_mse

SEEDS = (0, 1, 2)
BOTTLENECK_SIZES = (2, 10, 32)
# The original's defaults, and the experiment that it evaluated.
DEFAULTS = {"n_layers": 5, "n_epochs": 10}
EVALUATED = {"bottleneck_size": 2, "n_layers": 10, "n_epochs": 20}
# In which this project reached the original's quality when the recipe was chosen, by bottleneck size.
EPOCHS_TO_QUALITY = {10: 4, 2: 3}


@dataclass(frozen=True)
class Outcome:
    """Of one training: the lowest validation MSE, the test MSE with those weights, seconds with validation."""

    valid_mse: float
    test_mse: float
    seconds: float


class Images:
    """The three splits, float32 [n, 784]."""

    def __init__(self) -> None:
        self.train, self.valid, self.test = (load_pixels(name) for name in ("train", "valid", "test"))


def main() -> None:
    params = committed_params()
    images = Images()
    at_equal_epochs: list[dict[str, Any]] = []
    to_quality: list[dict[str, Any]] = []
    for size in BOTTLENECK_SIZES:
        original, ours, quick = [], [], []
        for seed in SEEDS:
            original.append(train_original(images, size, DEFAULTS["n_layers"], DEFAULTS["n_epochs"], seed))
            ours.append(train_ours(params, images, size, DEFAULTS["n_layers"], DEFAULTS["n_epochs"], seed))
            if size == 10:
                quick.append(train_ours(params, images, size, DEFAULTS["n_layers"], EPOCHS_TO_QUALITY[size], seed))
        at_equal_epochs.append({"bottleneck_size": size, **DEFAULTS, **comparison(original, ours)})
        if quick:
            to_quality.append(
                {"bottleneck_size": size, **DEFAULTS, **time_to_quality(original, quick, EPOCHS_TO_QUALITY[size])}
            )
    size, n_layers, n_epochs = EVALUATED.values()
    original = [train_original(images, size, n_layers, n_epochs, SEEDS[0])]
    quick = [train_ours(params, images, size, n_layers, EPOCHS_TO_QUALITY[size], SEEDS[0])]
    to_quality.append({**EVALUATED, **time_to_quality(original, quick, EPOCHS_TO_QUALITY[size])})
    write_result(
        "quality",
        {
            "machine": machine(),
            "precision": native_precisions()[-1],
            "at_equal_epochs": at_equal_epochs,
            "time_to_quality": to_quality,
        },
    )


def train_original(images: Images, bottleneck_size: int, n_layers: int, n_epochs: int, seed: int) -> Outcome:
    torch.manual_seed(seed)
    model = seed_network(bottleneck_size, n_layers)
    optimizer = torch.optim.Adam(model.parameters())
    best_mse, weights = math.inf, {}
    started = time.perf_counter()
    for _ in range(n_epochs):
        sum(seed_epoch(model, optimizer, images.train))
        valid_mse = reconstruction_mse(model, images.valid)
        if valid_mse < best_mse:
            best_mse, weights = valid_mse, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return finished("original", model, weights, best_mse, started, images)


def train_ours(
    params: Params, images: Images, bottleneck_size: int, n_layers: int, n_epochs: int, seed: int
) -> Outcome:
    shape = params.model.model_copy(update={"bottleneck_size": bottleneck_size, "n_layers": n_layers})
    torch.manual_seed(seed)
    model = AutoEncoder(Architecture.from_params(shape))
    started = time.perf_counter()
    changes = {"n_epochs": n_epochs, "seed": seed, "precision": native_precisions()[-1]}
    result = fit(model, images.train, images.valid, params.train.model_copy(update=changes))
    best_mse = result.history[result.best_epoch - 1].valid_mse
    return finished(f"ours, {n_epochs} epochs", model, result.weights, best_mse, started, images)


def finished(
    name: str, model: nn.Module, weights: dict[str, torch.Tensor], valid_mse: float, started: float, images: Images
) -> Outcome:
    seconds = time.perf_counter() - started
    model.load_state_dict(weights)
    outcome = Outcome(valid_mse, reconstruction_mse(model, images.test), seconds)
    print(f"{name}: {outcome}", flush=True)
    return outcome


def comparison(original: list[Outcome], ours: list[Outcome]) -> dict[str, Any]:
    means = [statistics.mean(outcome.test_mse for outcome in outcomes) for outcomes in (original, ours)]
    return {
        "original_test_mse": mean_and_deviation(original),
        "ours_test_mse": mean_and_deviation(ours),
        "change_percent": round(100 * (means[1] / means[0] - 1), 1),
    }


def mean_and_deviation(outcomes: list[Outcome]) -> dict[str, Any]:
    values = [outcome.test_mse for outcome in outcomes]
    return {
        "mean": round(statistics.mean(values), 6),
        "standard_deviation": round(statistics.stdev(values), 6),
        "all": [round(value, 6) for value in values],
    }


def time_to_quality(original: list[Outcome], quick: list[Outcome], n_epochs: int) -> dict[str, Any]:
    reached = [ours.valid_mse <= theirs.valid_mse for theirs, ours in zip(original, quick, strict=True)]
    ratios = [theirs.seconds / ours.seconds for theirs, ours in zip(original, quick, strict=True)]
    return {
        "original_valid_mse": [round(outcome.valid_mse, 6) for outcome in original],
        "original_seconds": spread([outcome.seconds for outcome in original]),
        "our_epochs": n_epochs,
        "our_valid_mse": [round(outcome.valid_mse, 6) for outcome in quick],
        "our_seconds": spread([outcome.seconds for outcome in quick]),
        "reached": reached,
        "median_speedup": round(statistics.median(ratios), 1),
    }


if __name__ == "__main__":
    main()
