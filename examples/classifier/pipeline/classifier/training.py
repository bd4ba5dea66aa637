"""The training loop, and its state as bytes and back."""

import copy
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import torch
from pipeline.classifier.network import Classifier
from safetensors.torch import load, save
from torch.nn import functional as F

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
    """All that the epochs to come depend on, parameters and data aside."""

    model: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    history: list[EpochRecord]


class Callback(Protocol):
    """What `fit` tells after each batch and epoch."""

    def on_batch(self, n_rows: int, /) -> None: ...

    def on_state(self, state: Any, /) -> None: ...

    def on_epoch(self, record: Any, seconds: float, /) -> None: ...


Batch = tuple[torch.Tensor, torch.Tensor]  # features float32 [n, d], classes int64 [n]


def fit(
    model: Classifier,
    train: Batch,
    valid: Batch,
    params: "TrainParams",
    callbacks: Sequence[Callback] = (),
    state: State | None = None,
) -> State:
    """Minimise the log-loss by Adam; the returned state has the weights of the best validation epoch."""
    import time

    optimizer = torch.optim.Adam(model.parameters(), params.lr)
    history: list[EpochRecord] = []
    best = model.state_dict()
    if state is not None:
        model.load_state_dict(state.model)
        optimizer.load_state_dict(state.optimizer)
        history, best = list(state.history), state.best
    for epoch in range(len(history) + 1, params.n_epochs + 1):
        torch.manual_seed(1000 * params.seed + epoch)  # the order depends on seed and epoch alone
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
        state = State(model.state_dict(), best, copy.deepcopy(optimizer.state_dict()), list(history))
        for callback in callbacks:
            callback.on_state(state)
        for callback in callbacks:
            callback.on_epoch(record, seconds)
    assert state is not None
    return state


@torch.no_grad()
def log_loss(model: Classifier, rows: Batch) -> float:
    """Mean over rows, in nats."""
    return F.cross_entropy(model(rows[0]), rows[1]).item()


def pack(state: State) -> bytes:
    """A state as a safetensors file."""
    tensors = {f"model/{name}": tensor for name, tensor in state.model.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in state.best.items()}
    for number, values in state.optimizer["state"].items():
        tensors |= {f"optimizer/{number}/{name}": tensor for name, tensor in values.items()}
    rest = {"history": list(map(asdict, state.history)), "groups": state.optimizer["param_groups"]}
    return save(tensors, {"rest": json.dumps(rest)})


def unpack(content: bytes) -> State:
    """What `pack` packed, to the bit."""
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    rest = json.loads(head["__metadata__"]["rest"])
    groups: dict[str, dict[str, torch.Tensor]] = {"model": {}, "best": {}}
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load(content).items():
        group, _, name = key.partition("/")
        if group == "optimizer":
            number, _, name = name.partition("/")
            moments.setdefault(int(number), {})[name] = tensor
        else:
            groups[group][name] = tensor
    optimizer = {"state": moments, "param_groups": rest["groups"]}
    return State(groups["model"], groups["best"], optimizer, [EpochRecord(**record) for record in rest["history"]])


def environment(device: str) -> dict[str, str]:
    """What decides a training's last bits beside parameters, data and code."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "numpy", "scikit-learn")},
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "hardware": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
    }
