"""How fast the training loop is: beside the original's loop, a DataLoader's, and the matrix products alone.

    python -m benchmarks.throughput      (about 5 minutes)

All loops train the original's network with 5 layers and bottleneck size 10 in batches of 256, one after another
in ROUNDS rounds of an epoch each: with fewer images they would stay in the processor's cache. Where the processor
computes bfloat16 itself, the project's loop is measured in it too. Needs data/prepared and data/raw; writes
reports/benchmarks/throughput.json.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from benchmarks.common import committed_params, load_pixels, machine, native_precisions, spread, write_result
from benchmarks.seed import BATCH_SIZE, seed_epoch, seed_network
from pipeline.params import TrainParams, load_params
from pipeline.repository import main_root
from pipeline.training import PRECISIONS, EpochRecord, fit

ROUNDS = 11
BOTTLENECK_SIZE, N_LAYERS = 10, 5


def main() -> None:
    committed_params()
    train = load_pixels("train")
    with tempfile.TemporaryDirectory() as folder:
        loader = usual_loader(Path(folder), len(train))
        variants: dict[str, Callable[[], float]] = {
            "seed": partial(seconds_of_seed, train, BOTTLENECK_SIZE, N_LAYERS, n_epochs=1),
            "dataloader": partial(seconds_of_loader_epoch, loader),
        }
        for precision in native_precisions():
            variants[precision] = partial(seconds_of_fit, train, precision)
            variants[f"floor_{precision}"] = partial(seconds_of_matrix_products, precision, len(train) // BATCH_SIZE)
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(ROUNDS):
            for name, measure in variants.items():
                seconds[name].append(measure())
                print(f"{name}: {seconds[name][-1]:.2f} s an epoch", flush=True)

    medians = {name: spread(values)["median"] for name, values in seconds.items()}
    fastest = min(native_precisions(), key=lambda precision: medians[precision])
    result: dict[str, Any] = {
        "machine": machine(),
        "epoch_seconds": {name: spread(values) for name, values in seconds.items()},
        "fastest_precision": fastest,
        "speedup_over_seed": round(medians["seed"] / medians[fastest], 2),
        "speedup_over_seed_float32": round(medians["seed"] / medians["float32"], 2),
        "speedup_over_dataloader": round(medians["dataloader"] / medians[fastest], 2),
        "share_of_floor": {p: round(medians[f"floor_{p}"] / medians[p], 3) for p in native_precisions()},
    }
    write_result("throughput", result)


def seconds_of_seed(train: torch.Tensor, bottleneck_size: int, n_layers: int, n_epochs: int) -> float:
    """Of the original's loop on the images' device; each of its steps waits for its loss."""
    model = seed_network(bottleneck_size, n_layers).to(train.device)
    optimizer = torch.optim.Adam(model.parameters())
    started = time.perf_counter()
    for _ in range(n_epochs):
        sum(seed_epoch(model, optimizer, train))
    return time.perf_counter() - started


def seconds_of_fit(train: torch.Tensor, precision: str) -> float:
    model = seed_network(BOTTLENECK_SIZE, N_LAYERS)
    changes = {"n_epochs": 1, "batch_size": BATCH_SIZE, "precision": precision}
    return training_seconds(model, train, load_params().train.model_copy(update=changes))


def training_seconds(model: nn.Module, train: torch.Tensor, params: TrainParams) -> float:
    """Of all training steps, the validation left out."""
    seconds: list[float] = []

    def on_epoch(_: EpochRecord, epoch_seconds: float) -> None:
        seconds.append(epoch_seconds)

    fit(model, train, train[:1], params, on_epoch=on_epoch)
    return sum(seconds)


def usual_loader(folder: Path, n_images: int) -> DataLoader[tuple[torch.Tensor, int]]:
    """MNIST as PyTorch's own examples read it: image by image, through PIL."""
    (folder / "MNIST").mkdir()
    (folder / "MNIST/raw").symlink_to(main_root().resolve() / "data/raw")
    dataset = MNIST(str(folder), train=True, transform=ToTensor())
    return DataLoader(Subset(dataset, range(n_images)), batch_size=BATCH_SIZE, shuffle=True)


def seconds_of_loader_epoch(loader: DataLoader[tuple[torch.Tensor, int]]) -> float:
    model = seed_network(BOTTLENECK_SIZE, N_LAYERS)
    optimizer = torch.optim.Adam(model.parameters())
    model.train()
    started = time.perf_counter()
    for images, _ in loader:
        pixels = images.flatten(1)
        optimizer.zero_grad()
        F.mse_loss(model(pixels), pixels).backward()
        optimizer.step()
    return time.perf_counter() - started


def seconds_of_matrix_products(precision: str, n_steps: int) -> float:
    """What the matrix products of so many steps take alone: forward, and backward by weight and input."""
    linear = [module for module in seed_network(BOTTLENECK_SIZE, N_LAYERS) if isinstance(module, nn.Linear)]
    widths = [linear[0].in_features, *(layer.out_features for layer in linear)]
    dtype = PRECISIONS[precision]
    activations = [torch.randn(BATCH_SIZE, width, dtype=dtype) for width in widths]
    weights = [torch.randn(after, before, dtype=dtype) for before, after in pairwise(widths)]
    started = time.perf_counter()
    for _ in range(n_steps):
        for number, weight in enumerate(weights):
            before, after = activations[number], activations[number + 1]
            before @ weight.T
            after.T @ before
            if number > 0:  # nobody asks for the gradient of the images
                after @ weight
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
