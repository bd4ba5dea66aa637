"""What lets a stopped training go on: its state after a whole epoch, kept beside the outs, never one of them.

A checkpoint is a file under `.checkpoints/` in the main repository, named after a hash of everything that
decides what the training writes, so that one of other parameters, data, code, versions or hardware is never
found. Its first 32 bytes are the SHA-256 of the rest, which is a safetensors file. It replaces the one before
it by a rename, whole and on the disk.

    NAME.state      of a training that goes on or was stopped
    NAME.finished   of one in the main repository whose outs are written, until dvc.lock has them
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load, save

from pipeline.autoencoder import environment
from pipeline.autoencoder.trainer import Callback, EpochRecord, FitResult, TrainingState
from pipeline.core import dvcfiles
from pipeline.core.repository import CHECKPOINTS, main_root

if TYPE_CHECKING:
    from pipeline.params import Params

# At most so much work is lost, or one epoch where that takes longer.
SECONDS_BETWEEN = 10.0
# Another process's DVC has surely recorded a training that was finished so long ago.
SECONDS_OF_OTHERS = 3600.0
DIGEST_BYTES = 32
# The name under which what is no tensor is kept.
REST = "rest"


@dataclass(frozen=True)
class Saved:
    """A state, and the MLflow row (`tracking.runs.TrainingRun.id`) that it may go on in."""

    state: TrainingState
    run: str | None
    is_finished: bool  # nothing is left to train: its outs are written again


class Checkpoint(Callback):
    """The checkpoint of one training. Saving never raises: the first trouble is told, and training goes on."""

    def __init__(self, folder: Path, name: str, params: dict[str, Any]):
        """`name` is the training's hash; `params` are all parameters, of which a row has one set only."""
        self.run: str | None = None  # the row that the training is in
        self._n_epochs = params["train.n_epochs"]
        self._params = json.dumps(params, sort_keys=True)
        self._state = folder / f"{name}.state"
        self._finished = folder / f"{name}.finished"
        self._is_ours = False
        self._warned = False
        self._last_saved = self._last_epoch = time.monotonic()

    @classmethod
    def of(cls, params: "Params", device: str) -> "Checkpoint":
        """That of a training with these parameters, of the stage in the working folder."""
        return cls(main_root() / CHECKPOINTS, training_hash(params, device), params.flat())

    @contextmanager
    def resumed(self) -> Iterator[Saved | None]:
        """`held`, with the last state to go on from; after the block the outs are written."""
        with self.held():
            saved = self.load()
            if saved is not None:
                what = "finished, but DVC was stopped before it recorded that" if saved.is_finished else "stopped"
                n_done = len(saved.state.result.history)
                print(f"going on after epoch {n_done} of {self._n_epochs} of a training that was {what}")
            yield saved
            self.finish()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block the checkpoint is this process's; if it is another's, nothing is found and nothing saved."""
        lock = FileLock(self._state.with_suffix(".lock"))
        try:
            self._state.parent.mkdir(exist_ok=True)
            lock.acquire(timeout=0)
            self._is_ours = True
        except Timeout:
            self._warn("another process trains exactly this at present: no checkpoint is kept of this training")
        except OSError as error:
            self._warn_of(error)
        try:
            if self._is_ours:
                self._remove_what_is_recorded()
            yield
        finally:
            lock.release()

    def load(self) -> Saved | None:
        """The last state that was saved. A damaged file is told and deleted.

        Tensors are on the CPU.
        """
        for path in (self._state, self._finished) if self._is_ours else ():
            if path.is_file():
                content = path.read_bytes()
                digest, body = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
                if hashlib.sha256(body).digest() == digest:
                    state, row = _unpack(body)
                    run = row["run"] if row["params"] == self._params else None
                    return Saved(state, run, is_finished=path == self._finished)
                print(f"warning: the checkpoint {path} is damaged and deleted; training starts anew", file=sys.stderr)
                path.unlink()
        return None

    def on_state(self, state: TrainingState) -> None:
        self.save(state, self.run, is_last=len(state.result.history) == self._n_epochs)

    def save(self, state: TrainingState, run: str | None, is_last: bool) -> None:
        """Called after every epoch; writes the state if the next epoch might be too late, and after the last one."""
        now = time.monotonic()
        next_chance = now + (now - self._last_epoch)
        self._last_epoch = now
        if not self._is_ours or not (is_last or next_chance - self._last_saved > SECONDS_BETWEEN):
            return
        new = self._state.with_suffix(".new")
        try:
            body = _pack(state, {"run": run, "params": self._params})
            with new.open("wb") as file:
                file.write(hashlib.sha256(body).digest())
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._state)
            _sync_folder(self._state.parent)
            self._last_saved = time.monotonic()
        except OSError as error:
            self._warn_of(error)
            with suppress(OSError):
                new.unlink()

    def finish(self) -> None:
        """The outs are written. Under DVC the state stays until dvc.lock has them: until then they can be lost.

        In one of DVC's temporary folders it goes at once: the main repository's dvc.lock never gets those outs.
        """
        if not self._is_ours:
            return
        with suppress(OSError):
            if os.environ.get("DVC_STAGE") and self._state.parent.parent.samefile(Path()):
                self._state.replace(self._finished)
            else:
                self._state.unlink(missing_ok=True)
                self._finished.unlink(missing_ok=True)

    def _remove_what_is_recorded(self) -> None:
        """Finished trainings: this one unless DVC was stopped before it wrote dvc.lock, others when they are old."""
        lock = Path("dvc.lock")
        for path in self._finished.parent.glob("*.finished"):
            with suppress(OSError, Timeout):  # gone meanwhile, or in use
                finished_at = path.stat().st_mtime
                if path == self._finished:
                    if lock.is_file() and lock.stat().st_mtime > finished_at:
                        path.unlink()
                elif finished_at < time.time() - SECONDS_OF_OTHERS:
                    with FileLock(path.with_suffix(".lock"), timeout=0):
                        path.unlink()

    def _warn_of(self, error: OSError) -> None:
        self._warn(f"no checkpoint can be kept, {error}; a stopped training will start anew")

    def _warn(self, text: str) -> None:
        if not self._warned:
            print(f"warning: {text}", file=sys.stderr)
        self._warned = True


def training_hash(params: "Params", device: str) -> str:
    """A hash of all that decides what a training writes: parameters, data, code, versions, hardware and threads."""
    decisive = {
        "params": {"model": params.model.model_dump(), "train": params.train.model_dump()},
        "files": dvcfiles.contents(dvcfiles.md5s(dvcfiles.declared("train")["deps"])),
        "environment": environment.fingerprint(device),
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]


def _pack(state: TrainingState, row: dict[str, str | None]) -> bytes:
    result = state.result
    tensors = {f"model/{name}": tensor for name, tensor in state.model.items()}
    if result.best_epoch != len(result.history):  # else they are the model's
        tensors |= {f"weights/{name}": tensor for name, tensor in result.weights.items()}
    for number, values in state.optimizer.items():
        tensors |= {f"optimizer/{number}/{name}": tensor for name, tensor in values.items()}
    # JSON brings every float back to the bit.
    rest = {"best_epoch": result.best_epoch, "history": [asdict(record) for record in result.history], "row": row}
    tensors[REST] = torch.frombuffer(bytearray(json.dumps(rest).encode()), dtype=torch.uint8)
    return save(tensors)


def _unpack(body: bytes) -> tuple[TrainingState, dict[str, str | None]]:
    tensors = load(body)
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
    return TrainingState(groups["model"], optimizer, result), rest["row"]


def _sync_folder(folder: Path) -> None:
    """So that not even a machine that goes down brings back what a rename replaced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
