"""The two references that this project is compared with, rewritten from the original's description.

- `original`, "the original as it is": the original's network, trained by the original's loop.
- `original_loop`, "the original's loop on our network": the same loop on the layers of this project's network. Like
  the original's network, and unlike this project's, it does not clip its outputs to 0…1 in evaluation.

Both are built from the same blocks, Linear → ReLU → BatchNorm1d. The loop uses plain Adam at its default rate, indexes
the whole split again in every epoch and calls `float(loss)` in every step. Nothing was added to slow it.
"""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.autoencoder.model import INPUT_SIZE, linear_widths

BATCH_SIZE = 256


def original_network(bottleneck_size: int, n_layers: int) -> nn.Sequential:
    """Return the original's network: images [n, 784] to reconstructions [n, 784].

    The encoder skips the first of the n_layers − 1 hidden widths. The decoder has only the first two, however many
    layers there are: 784-474-319-164-10-474-629-784 with 5 layers and bottleneck size 10. The description does not
    show how the widths are computed. Here they lie on a straight line, rounded down. `n_layers` is at least 3.
    """
    step = (INPUT_SIZE - bottleneck_size) / n_layers
    hidden = [int(INPUT_SIZE - step * layer) for layer in range(1, n_layers)]
    encoder = (INPUT_SIZE, *hidden[1:], bottleneck_size)
    decoder = (bottleneck_size, hidden[1], hidden[0], INPUT_SIZE)
    return nn.Sequential(*_half(encoder), *_half(decoder))


def our_layers(bottleneck_size: int, n_layers: int) -> nn.Sequential:
    """Return this project's layers as a network: images [n, 784] to reconstructions [n, 784]."""
    widths = (INPUT_SIZE, *linear_widths(bottleneck_size, n_layers), bottleneck_size)
    return nn.Sequential(*_half(widths), *_half(widths[::-1]))


REFERENCES: dict[str, Callable[[int, int], nn.Sequential]] = {
    "original": original_network,
    "original_loop": our_layers,
}


def _half(widths: tuple[int, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths[:-1]):
        layers += [nn.Linear(width_in, width_out), nn.ReLU(), nn.BatchNorm1d(width_out)]
    return [*layers, nn.Linear(widths[-2], widths[-1])]


def original_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, train: torch.Tensor) -> Iterator[float]:
    """Train one epoch with the original's loop and yield the loss of each step. `train` is [n, 784]."""
    model.train()
    shuffled = train[torch.randperm(len(train), device=train.device)]
    for batch in shuffled.split(BATCH_SIZE):
        optimizer.zero_grad()
        loss = F.mse_loss(model(batch), batch)
        loss.backward()
        optimizer.step()
        yield float(loss.detach())


def seconds_of_original_loop(model: nn.Module, train: torch.Tensor, n_epochs: int) -> float:
    """Train with the original's loop on the images' device and return the seconds. Each step waits for its loss."""
    model.to(train.device)
    optimizer = torch.optim.Adam(model.parameters())
    started = time.perf_counter()
    for _ in range(n_epochs):
        sum(original_epoch(model, optimizer, train))
    return time.perf_counter() - started
