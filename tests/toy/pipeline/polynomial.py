"""A polynomial as a torch module, and its training by gradient descent."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from pipeline.core.files import reading, write_out

if TYPE_CHECKING:
    from pipeline.params import TrainParams


class Polynomial(nn.Module):
    """Map x [n, 1] to y [n, 1]."""

    def __init__(self, degree: int):
        super().__init__()
        self.coefficients = nn.Parameter(0.1 * torch.randn(degree + 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x ** torch.arange(len(self.coefficients)) @ self.coefficients)[:, None]


@dataclass(frozen=True)
class EpochRecord:
    epoch: int
    train_mse: float
    valid_mse: float


@dataclass(frozen=True)
class State:
    coefficients: torch.Tensor
    best: torch.Tensor
    history: list[EpochRecord]


STATE_TYPES = (State, EpochRecord)


def fit(
    model: Polynomial,
    train: torch.Tensor,
    valid: torch.Tensor,
    params: "TrainParams",
    callbacks: Sequence[Any],
    state: State | None,
) -> State:
    """Fit points [n, 2], in batches of ten in an order that depends on seed and epoch."""
    if state is not None:
        model.coefficients.data = state.coefficients.clone()
    history = [] if state is None else list(state.history)
    best = model.coefficients.detach() if state is None else state.best
    for epoch in range(len(history) + 1, params.n_epochs + 1):
        started, total = time.perf_counter(), 0.0
        torch.manual_seed(1000 * params.seed + epoch)
        for points in train[torch.randperm(len(train))].split(10):
            loss = mse(model, points)
            model.zero_grad()
            loss.backward()
            assert model.coefficients.grad is not None
            model.coefficients.data -= params.lr * model.coefficients.grad
            total += loss.item() * len(points)
            for callback in callbacks:
                callback.on_batch(len(points))
        seconds = time.perf_counter() - started
        time.sleep(params.pause)
        record = EpochRecord(epoch, total / len(train), mse(model, valid).item())
        if all(record.valid_mse < earlier.valid_mse for earlier in history):
            best = model.coefficients.detach().clone()
        history.append(record)
        state = State(model.coefficients.detach().clone(), best, list(history))
        for callback in callbacks:
            callback.on_epoch(record, seconds, state)
    assert state is not None
    return state


def mse(model: Polynomial, points: torch.Tensor) -> torch.Tensor:
    return ((model(points[:, :1]) - points[:, 1:]) ** 2).mean()


def save_model(model: Polynomial, path: Path) -> None:
    write_out(path, save(model.state_dict()))


def load_model(path: Path) -> Polynomial:
    with reading(path, "train"):
        tensors = load_file(path)
    model = Polynomial(len(tensors["coefficients"]) - 1)
    model.load_state_dict(tensors)
    return model
