"""Measure one epoch, compared with both references, other training loops, and only the matrix products.

    python -m benchmarks.throughput      (7 minutes)

Measures 5 layers, bottleneck size 10 and batches of 256. The references are those of `benchmarks.seed`. All other
loops train this project's network: a DataLoader as in PyTorch's examples, and PyTorch Lightning and pythae if they are
installed (`benchmarks.frameworks`). The loops alternate in ROUNDS rounds of one whole epoch each, because fewer images
would stay in the processor's cache. On a processor with bfloat16 instructions the project's loop is also measured in
bfloat16. Needs data/prepared and data/raw; writes reports/benchmarks/throughput.json.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from benchmarks.common import (
    committed_params,
    load_pixels,
    machine,
    native_precisions,
    spread,
    training_seconds,
    write_result,
)
from benchmarks.frameworks import EPOCH_SECONDS, installed
from benchmarks.seed import BATCH_SIZE, REFERENCES, our_layers, seconds_of_original_loop
from pipeline.autoencoder.model import Architecture, AutoEncoder, linear_widths
from pipeline.autoencoder.trainer import PRECISIONS
from pipeline.core.repository import main_root
from pipeline.params import TrainParams

ROUNDS = 9
BOTTLENECK_SIZE, N_LAYERS = 10, 5


def main() -> None:
    params = committed_params().train
    train = load_pixels("train")
    frameworks = installed()
    with tempfile.TemporaryDirectory() as folder:
        loader = usual_loader(Path(folder), len(train))
        variants: dict[str, Callable[[], float]] = {
            **{name: partial(seconds_of_reference, train, name) for name in REFERENCES},
            "dataloader": partial(seconds_of_loader_epoch, loader),
            **{name: partial(seconds_of_framework, train, name) for name in frameworks},
        }
        for precision in native_precisions():
            variants[precision] = partial(seconds_of_fit, train, params, precision)
            variants[f"floor_{precision}"] = partial(seconds_of_matrix_products, precision, len(train) // BATCH_SIZE)
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(ROUNDS):
            for name, measure in variants.items():
                seconds[name].append(measure())
                print(f"{name}: {seconds[name][-1]:.2f} s an epoch", flush=True)

    epoch_seconds = {name: spread(values) for name, values in seconds.items()}
    write_result("throughput", {"machine": machine(), "frameworks": frameworks, "epoch_seconds": epoch_seconds})


def our_network() -> AutoEncoder:
    return AutoEncoder(Architecture(BOTTLENECK_SIZE, linear_widths(BOTTLENECK_SIZE, N_LAYERS), "batch_norm", 0.0))


def seconds_of_reference(train: torch.Tensor, name: str) -> float:
    return seconds_of_original_loop(REFERENCES[name](BOTTLENECK_SIZE, N_LAYERS), train, n_epochs=1)


def seconds_of_framework(train: torch.Tensor, name: str) -> float:
    return EPOCH_SECONDS[name](our_network(), train)


def seconds_of_fit(train: torch.Tensor, params: TrainParams, precision: str) -> float:
    changes = {"n_epochs": 1, "batch_size": BATCH_SIZE, "precision": precision}
    return training_seconds(our_network(), train, params.model_copy(update=changes))


def usual_loader(folder: Path, n_images: int) -> DataLoader[tuple[torch.Tensor, int]]:
    """Return a loader that reads MNIST as PyTorch's own examples do: image by image, through PIL."""
    (folder / "MNIST").mkdir()
    (folder / "MNIST/raw").symlink_to(main_root().resolve() / "data/raw")
    dataset = MNIST(str(folder), train=True, transform=ToTensor())
    return DataLoader(Subset(dataset, range(n_images)), batch_size=BATCH_SIZE, shuffle=True)


def seconds_of_loader_epoch(loader: DataLoader[tuple[torch.Tensor, int]]) -> float:
    model = our_network()
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
    """Compute only the matrix products of n steps, forward and backward by weight and input, and return the seconds."""
    linear = [module for module in our_layers(BOTTLENECK_SIZE, N_LAYERS) if isinstance(module, nn.Linear)]
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
            if number > 0:  # the gradient of the images is not needed
                after @ weight
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
