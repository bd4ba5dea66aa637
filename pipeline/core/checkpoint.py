"""Files from which a stopped training resumes. They lie beside the outs and are never one of them.

A checkpoint is a file under `.checkpoints/` in the main repository, named after a hash of everything that
decides what the training writes, so that one of other parameters, data, code, versions or hardware is never
found. Its first 32 bytes are the SHA-256 of the rest: a line of JSON, then the state, in whatever format the experiment
packs it. It replaces the one before it by a rename, whole and on the disk.

    NAME.state      of a training that runs or was stopped
    NAME.finished   of one in the main repository whose outs are written, until dvc.lock has them
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

# At most so much work is lost, or one epoch where that takes longer.
SECONDS_BETWEEN = 10.0
# Another process's DVC has surely recorded a training that was finished so long ago.
SECONDS_OF_OTHERS = 3600.0
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Saved:
    """A packed state, and the MLflow run (`tracking.runs.TrainingRun.id`) in which it may resume."""

    content: bytes
    run: str | None
    is_finished: bool  # nothing is left to train: its outs are written again


class Checkpoint:
    """The checkpoint of one training. Saving never raises: the first trouble is told, and training goes on."""

    def __init__(self, folder: Path, name: str, params: dict[str, Any]):
        """`name` is the training's hash; `params` are all parameters, of which a row has one set only."""
        self._params = json.dumps(params, sort_keys=True)
        self._state = folder / f"{name}.state"
        self._finished = folder / f"{name}.finished"
        self._is_ours = False
        self._warned = False
        self._last_saved = self._last_epoch = time.monotonic()

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
        """The last state that was saved. A damaged file is reported and deleted."""
        for path in (self._state, self._finished) if self._is_ours else ():
            if path.is_file():
                content = path.read_bytes()
                digest, body = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
                if hashlib.sha256(body).digest() == digest:
                    head, _, state = body.partition(b"\n")
                    row = json.loads(head)
                    run = row["run"] if row["params"] == self._params else None
                    return Saved(state, run, is_finished=path == self._finished)
                print(f"warning: the checkpoint {path} is damaged and deleted; training starts anew", file=sys.stderr)
                path.unlink()
        return None

    def save(self, pack: Callable[[], bytes], run: str | None, is_last: bool) -> None:
        """Called after every epoch; writes what `pack` returns after the last one, or if the next might be too late."""
        now = time.monotonic()
        next_chance = now + (now - self._last_epoch)
        self._last_epoch = now
        if not self._is_ours or not (is_last or next_chance - self._last_saved > SECONDS_BETWEEN):
            return
        new = self._state.with_suffix(".new")
        try:
            body = json.dumps({"run": run, "params": self._params}).encode() + b"\n" + pack()
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


def _sync_folder(folder: Path) -> None:
    """So that not even a machine that goes down brings back what a rename replaced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
