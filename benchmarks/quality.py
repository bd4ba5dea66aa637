"""Measure how good the trained network is, compared with both references on the same images.

    python -m benchmarks.quality      (about 30 minutes, 60 without bfloat16 instructions)

- Equal epochs: the test MSE of this project and of both references (`benchmarks.seed`) for three bottleneck sizes and
  three seeds, each time with the weights of the best validation epoch.
- Precision: the test MSE in bfloat16 and in float32. On a processor without bfloat16 instructions their products are
  emulated.
- The committed experiment with other seeds.

Trainings alternate. Needs data/prepared; writes reports/benchmarks/quality.json.
"""

import math
import statistics
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import clocks, committed_params, load_pixels, machine, native_precisions, write_result
from benchmarks.seed import REFERENCES, original_epoch
from pipeline.autoencoder.model import Architecture, AutoEncoder
from pipeline.autoencoder.trainer import fit, reconstruction_mse
from pipeline.params import Params

SEEDS = (0, 1, 2)
BOTTLENECK_SIZES = (2, 10, 32)
# The original's defaults.
DEFAULTS = {"n_layers": 5, "n_epochs": 10}
# The bottleneck size at which both precisions are trained.
PRECISIONS_SIZE = 10


@dataclass(frozen=True)
class Outcome:
    """The result of one training: lowest validation MSE, the network with those weights, seconds with validation."""

    valid_mse: float
    model: nn.Module
    seconds: float
    processor_seconds: float  # of all threads


class Images:
    """The images that a training sees, float32 [n, 784]."""

    def __init__(self) -> None:
        self.train, self.valid = load_pixels("train"), load_pixels("valid")


def main() -> None:
    params = committed_params()
    images, test = Images(), load_pixels("test")
    fastest = native_precisions()[-1]
    result: dict[str, Any] = {"machine": machine(), "precision": fastest, "at_equal_epochs": []}
    for size in BOTTLENECK_SIZES:
        shape = {"bottleneck_size": size, **DEFAULTS}
        outcomes: dict[str, list[Outcome]] = {name: [] for name in (*REFERENCES, "ours", "other")}
        for seed in SEEDS:
            for name in REFERENCES:
                outcomes[name].append(train_reference(name, images, **shape, seed=seed))
            outcomes["ours"].append(train_ours(params, images, **shape, seed=seed, precision=fastest))
            if size == PRECISIONS_SIZE:
                precision = "bfloat16" if fastest == "float32" else "float32"
                outcomes["other"].append(train_ours(params, images, **shape, seed=seed, precision=precision))
        other, ours = outcomes.pop("other"), outcomes["ours"]
        result["at_equal_epochs"].append(shape | test_mses(outcomes, test))
        if other:
            in_float32, in_bfloat16 = (ours, other) if fastest == "float32" else (other, ours)
            result["precisions"] = shape | test_mses({"float32": in_float32, "bfloat16": in_bfloat16}, test)
    assert params.model.n_layers is not None, "params.yaml has a number of layers"
    committed = {
        "bottleneck_size": params.model.bottleneck_size,
        "n_layers": params.model.n_layers,
        "n_epochs": params.train.n_epochs,
    }
    ours = [train_ours(params, images, **committed, seed=seed, precision=params.train.precision) for seed in SEEDS]
    result["committed_experiment"] = committed | test_mses({"ours": ours}, test)
    write_result("quality", result)


class EmulatedBfloat16(TorchDispatchMode):
    """Computes bfloat16 matrix products as bfloat16 instructions do: summed in float32, then rounded.

    For processors without such instructions, on which PyTorch's own products take some hundred times as long.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_product = func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        if is_product and args[-1].dtype == torch.bfloat16:
            return func(*(tensor.float() for tensor in args), **(kwargs or {})).bfloat16()
        return func(*args, **(kwargs or {}))


def train_reference(
    name: str, images: Images, bottleneck_size: int, n_layers: int, n_epochs: int, seed: int
) -> Outcome:
    """Train one of REFERENCES and keep the weights of its best validation epoch."""
    torch.manual_seed(seed)
    model = REFERENCES[name](bottleneck_size, n_layers)
    optimizer = torch.optim.Adam(model.parameters())
    best_mse, weights = math.inf, {}
    started = clocks()
    for _ in range(n_epochs):
        sum(original_epoch(model, optimizer, images.train))
        valid_mse = reconstruction_mse(model, images.valid)
        if valid_mse < best_mse:
            best_mse, weights = valid_mse, {key: tensor.clone() for key, tensor in model.state_dict().items()}
    return finished(name, model, weights, best_mse, started)


def train_ours(
    params: Params, images: Images, bottleneck_size: int, n_layers: int, n_epochs: int, seed: int, precision: str
) -> Outcome:
    shape = params.model.model_copy(update={"bottleneck_size": bottleneck_size, "n_layers": n_layers})
    torch.manual_seed(seed)
    model = AutoEncoder(Architecture.from_params(shape))
    started = clocks()
    changes = {"n_epochs": n_epochs, "seed": seed, "precision": precision}
    with nullcontext() if precision in native_precisions() else EmulatedBfloat16():
        result = fit(model, images.train, images.valid, params.train.model_copy(update=changes))
    best_mse = result.history[result.best_epoch - 1].valid_mse
    return finished(f"ours, {n_epochs} epochs, {precision}", model, result.weights, best_mse, started)


def finished(
    name: str, model: nn.Module, weights: dict[str, torch.Tensor], valid_mse: float, started: tuple[float, float]
) -> Outcome:
    seconds, processor_seconds = (now - then for now, then in zip(clocks(), started, strict=True))
    model.load_state_dict(weights)
    print(
        f"{name}: validation MSE {valid_mse:.5f}, {seconds:.1f} s, {processor_seconds:.1f} s of processors", flush=True
    )
    return Outcome(valid_mse, model, seconds, processor_seconds)


def test_mses(outcomes: dict[str, list[Outcome]], test: torch.Tensor) -> dict[str, Any]:
    """Return {'original_test_mse': …} with mean, standard deviation and all values over the seeds."""
    result = {}
    for name, each in outcomes.items():
        values = [reconstruction_mse(outcome.model, test) for outcome in each]
        result[f"{name}_test_mse"] = {
            "mean": round(statistics.mean(values), 6),
            "standard_deviation": round(statistics.stdev(values), 6),
            "all": [round(value, 6) for value in values],
        }
    return result


if __name__ == "__main__":
    main()
