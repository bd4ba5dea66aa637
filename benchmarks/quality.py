"""How good the trained network is beside the original's training loop on the same images.

    python -m benchmarks.quality      (about 20 minutes, 45 without bfloat16 instructions)

At equal epochs: the test MSE of both for three bottleneck sizes and three seeds, each time with the weights of
the best validation epoch. Precision: the test MSE in bfloat16 beside that in float32, where the processor has no
bfloat16 instructions with products that are computed as they would. And the committed experiment with other seeds.
Trainings alternate. Needs data/prepared; writes reports/benchmarks/quality.json.
"""

import math
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import committed_params, load_pixels, machine, native_precisions, write_result
from benchmarks.seed import seed_epoch, seed_network
from pipeline.model import Architecture, AutoEncoder
from pipeline.params import Params
from pipeline.training import fit, reconstruction_mse

SEEDS = (0, 1, 2)
BOTTLENECK_SIZES = (2, 10, 32)
# The original's defaults.
DEFAULTS = {"n_layers": 5, "n_epochs": 10}
# With which both precisions are trained.
PRECISIONS_SIZE = 10


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
    fastest = native_precisions()[-1]
    result: dict[str, Any] = {"machine": machine(), "precision": fastest, "at_equal_epochs": []}
    for size in BOTTLENECK_SIZES:
        shape = {"bottleneck_size": size, **DEFAULTS}
        original, ours, other = [], [], []
        for seed in SEEDS:
            original.append(train_original(images, **shape, seed=seed))
            ours.append(train_ours(params, images, **shape, seed=seed, precision=fastest))
            if size == PRECISIONS_SIZE:
                precision = "bfloat16" if fastest == "float32" else "float32"
                other.append(train_ours(params, images, **shape, seed=seed, precision=precision))
        result["at_equal_epochs"].append(shape | comparison("original", original, "ours", ours))
        if other:
            in_float32, in_bfloat16 = (ours, other) if fastest == "float32" else (other, ours)
            result["precisions"] = shape | comparison("float32", in_float32, "bfloat16", in_bfloat16)
    assert params.model.n_layers is not None, "params.yaml has a number of layers"
    committed = {
        "bottleneck_size": params.model.bottleneck_size,
        "n_layers": params.model.n_layers,
        "n_epochs": params.train.n_epochs,
    }
    ours = [train_ours(params, images, **committed, seed=seed, precision=params.train.precision) for seed in SEEDS]
    result["committed_experiment"] = committed | {"test_mse": mean_and_deviation(ours)}
    write_result("quality", result)


class EmulatedBfloat16(TorchDispatchMode):
    """Inside, matrix products of bfloat16 are computed as by bfloat16 instructions: summed in float32, then rounded.

    For processors without such instructions, on which PyTorch's own take some hundred times as long.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_product = func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        if is_product and args[-1].dtype == torch.bfloat16:
            return func(*(tensor.float() for tensor in args), **(kwargs or {})).bfloat16()
        return func(*args, **(kwargs or {}))


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
    params: Params, images: Images, bottleneck_size: int, n_layers: int, n_epochs: int, seed: int, precision: str
) -> Outcome:
    shape = params.model.model_copy(update={"bottleneck_size": bottleneck_size, "n_layers": n_layers})
    torch.manual_seed(seed)
    model = AutoEncoder(Architecture.from_params(shape))
    started = time.perf_counter()
    changes = {"n_epochs": n_epochs, "seed": seed, "precision": precision}
    with nullcontext() if precision in native_precisions() else EmulatedBfloat16():
        result = fit(model, images.train, images.valid, params.train.model_copy(update=changes))
    best_mse = result.history[result.best_epoch - 1].valid_mse
    return finished(f"ours, {n_epochs} epochs, {precision}", model, result.weights, best_mse, started, images)


def finished(
    name: str, model: nn.Module, weights: dict[str, torch.Tensor], valid_mse: float, started: float, images: Images
) -> Outcome:
    seconds = time.perf_counter() - started
    model.load_state_dict(weights)
    outcome = Outcome(valid_mse, reconstruction_mse(model, images.test), seconds)
    print(f"{name}: {outcome}", flush=True)
    return outcome


def comparison(name: str, outcomes: list[Outcome], new_name: str, new_outcomes: list[Outcome]) -> dict[str, Any]:
    means = [statistics.mean(outcome.test_mse for outcome in each) for each in (outcomes, new_outcomes)]
    return {
        f"{name}_test_mse": mean_and_deviation(outcomes),
        f"{new_name}_test_mse": mean_and_deviation(new_outcomes),
        "change_percent": round(100 * (means[1] / means[0] - 1), 2),
    }


def mean_and_deviation(outcomes: list[Outcome]) -> dict[str, Any]:
    values = [outcome.test_mse for outcome in outcomes]
    return {
        "mean": round(statistics.mean(values), 6),
        "standard_deviation": round(statistics.stdev(values), 6),
        "all": [round(value, 6) for value in values],
    }


if __name__ == "__main__":
    main()
