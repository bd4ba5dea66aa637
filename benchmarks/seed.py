"""What this project is measured against: the original script's network and training loop, written anew.

The network has the original's blocks, Linear → ReLU → BatchNorm1d; its decoder mirrors the encoder, which the
original's did not quite. The loop does what the original's did and nothing more: plain Adam at its default
rate, the whole split re-indexed in every epoch, `float(loss)` in every step.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.model import INPUT_SIZE, linear_widths

BATCH_SIZE = 256


def seed_network(bottleneck_size: int, n_layers: int) -> nn.Sequential:
    """Images [n, 784] to reconstructions [n, 784], with the widths that this project's network has."""
    widths = (INPUT_SIZE, *linear_widths(bottleneck_size, n_layers), bottleneck_size)
    return nn.Sequential(*_half(widths), *_half(widths[::-1]))


def _half(widths: tuple[int, ...]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths[:-1]):
        layers += [nn.Linear(width_in, width_out), nn.ReLU(), nn.BatchNorm1d(width_out)]
    return [*layers, nn.Linear(widths[-2], widths[-1])]


def seed_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, train: torch.Tensor) -> Iterator[float]:
    """One epoch of the original's loop: yields the loss of each step as it is made. `train` is [n, 784]."""
    model.train()
    shuffled = train[torch.randperm(len(train), device=train.device)]
    for batch in shuffled.split(BATCH_SIZE):
        optimizer.zero_grad()
        loss = F.mse_loss(model(batch), batch)
        loss.backward()
        optimizer.step()
        yield float(loss.detach())
