"""The state of a training as bytes and back, and the callback that keeps it after whole epochs."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load, save

from pipeline.autoencoder import environment
from pipeline.autoencoder.trainer import Callback, EpochRecord, FitResult, TrainingState
from pipeline.core import dvcfiles
from pipeline.core.checkpoint import Checkpoint
from pipeline.core.repository import CHECKPOINTS, main_root

if TYPE_CHECKING:
    from pipeline.params import Params

# The name under which what is no tensor is kept.
REST = "rest"


@dataclass(frozen=True)
class Stopped:
    """A training that was stopped: its state, and the run in which it may resume."""

    state: TrainingState
    run: str | None


class StateKeeper(Callback):
    """Keeps the state of one training in its checkpoint."""

    def __init__(self, params: "Params", device: str):
        self.run: str | None = None  # that the training is in
        self._checkpoint = Checkpoint(main_root() / CHECKPOINTS, training_hash(params, device), params.flat())
        self._n_epochs = params.train.n_epochs

    @contextmanager
    def resumed(self) -> Iterator[Stopped | None]:
        """Hold the checkpoint, with the state to resume from; after the block the outs are written."""
        with self._checkpoint.held():
            saved = self._checkpoint.load()
            stopped = None if saved is None else Stopped(unpack(saved.content), saved.run)
            if saved is not None and stopped is not None:
                what = "finished, but DVC was stopped before it recorded that" if saved.is_finished else "stopped"
                n_done = len(stopped.state.result.history)
                print(f"going on after epoch {n_done} of {self._n_epochs} of a training that was {what}")
            yield stopped
            self._checkpoint.finish()

    def on_state(self, state: TrainingState) -> None:
        is_last = len(state.result.history) == self._n_epochs
        self._checkpoint.save(lambda: pack(state), self.run, is_last)


def training_hash(params: "Params", device: str) -> str:
    """A hash of all that decides what a training writes: parameters, data, code, versions, hardware and threads."""
    decisive = {
        "params": {"model": params.model.model_dump(), "train": params.train.model_dump()},
        "files": dvcfiles.contents(dvcfiles.md5s(dvcfiles.declared("train")["deps"])),
        "environment": environment.fingerprint(device),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]


def pack(state: TrainingState) -> bytes:
    """A state as a safetensors file."""
    result = state.result
    tensors = {f"model/{name}": tensor for name, tensor in state.model.items()}
    if result.best_epoch != len(result.history):  # else they are the model's
        tensors |= {f"weights/{name}": tensor for name, tensor in result.weights.items()}
    for number, values in state.optimizer.items():
        tensors |= {f"optimizer/{number}/{name}": tensor for name, tensor in values.items()}
    # JSON brings every float back to the bit.
    rest = {"best_epoch": result.best_epoch, "history": [asdict(record) for record in result.history]}
    tensors[REST] = torch.frombuffer(bytearray(json.dumps(rest).encode()), dtype=torch.uint8)
    return save(tensors)


def unpack(content: bytes) -> TrainingState:
    """What `pack` packed, to the bit; tensors are on the CPU."""
    tensors = load(content)
    rest = json.loads(tensors.pop(REST).numpy().tobytes())
    groups: dict[str, dict[str, torch.Tensor]] = {"model": {}, "weights": {}}
    optimizer: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        if group == "optimizer":
            number, _, name = name.partition("/")
            optimizer.setdefault(int(number), {})[name] = tensor
        else:
            groups[group][name] = tensor
    history = [EpochRecord(**record) for record in rest["history"]]
    result = FitResult(groups["weights"] or groups["model"], rest["best_epoch"], history)
    return TrainingState(groups["model"], optimizer, result)
