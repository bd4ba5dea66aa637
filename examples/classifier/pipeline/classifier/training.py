"""The training loop: it takes rows, and returns the best weights and a history."""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional as F

from pipeline.classifier.network import Classifier
from pipeline.core.environment import cpu_name

if TYPE_CHECKING:
    from pipeline.params import TrainParams


@dataclass(frozen=True)
class EpochRecord:
    """One line of the history; log-losses are means over rows, in nats."""

    epoch: int  # from 1
    train_log_loss: float
    valid_log_loss: float


@dataclass(frozen=True)
class State:
    """Everything that later epochs depend on besides parameters and data."""

    model: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    history: list[EpochRecord]


# The classes in a state, besides tensors and numbers.
STATE_TYPES = (State, EpochRecord)


class Callback(Protocol):
    """Methods that `fit` calls after each batch and epoch."""

    def on_batch(self, n_rows: int, /) -> None: ...

    def on_epoch(self, record: Any, seconds: float, state: Any, /) -> None: ...


Batch = tuple[torch.Tensor, torch.Tensor]  # features float32 [n, d], classes int64 [n]


def fit(
    model: Classifier,
    train: Batch,
    valid: Batch,
    params: "TrainParams",
    callbacks: Sequence[Callback] = (),
    state: State | None = None,
) -> State:
    """Minimise the log-loss with Adam, and return a state with the weights of the best validation epoch."""
    optimizer = torch.optim.Adam(model.parameters(), params.lr)
    history: list[EpochRecord] = []
    best = model.state_dict()
    if state is not None:
        model.load_state_dict(state.model)
        optimizer.load_state_dict(state.optimizer)
        history, best = list(state.history), state.best
    for epoch in range(len(history) + 1, params.n_epochs + 1):
        torch.manual_seed(1000 * params.seed + epoch)  # the order depends only on seed and epoch
        started, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(train[1])).split(params.batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(train[0][rows]), train[1][rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
            for callback in callbacks:
                callback.on_batch(len(rows))
        seconds = time.perf_counter() - started
        record = EpochRecord(epoch, total / len(train[1]), log_loss(model, valid))
        if all(record.valid_log_loss < earlier.valid_log_loss for earlier in history):
            best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        history.append(record)
        state = State(model.state_dict(), best, optimizer.state_dict(), list(history))
        for callback in callbacks:
            callback.on_epoch(record, seconds, state)
    assert state is not None
    return state


@torch.no_grad()
def log_loss(model: Classifier, rows: Batch) -> float:
    """Return the mean log-loss over rows, in nats."""
    return F.cross_entropy(model(rows[0]), rows[1]).item()


def environment(device: str) -> dict[str, str]:
    """Return what decides a training's last bits besides parameters, data and code."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "numpy", "scikit-learn")},
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "hardware": cpu_name(),
        "threads": str(torch.get_num_threads()),
    }
