"""Checkpoints: files from which a stopped training resumes. They are never DVC outputs.

A checkpoint is a file under `.checkpoints/` in the main repository. Its name is a hash of everything that determines
what training writes, so a checkpoint of other parameters, data, code, versions or hardware is never found.
The first 32 bytes are the SHA-256 of the rest: one line of JSON, then the state in the format that the experiment
chooses. A new checkpoint is flushed to disk and replaces the previous one by a rename.

    NAME.state      training is running or was stopped
    NAME.finished   training in the main repository wrote its outputs; kept until dvc.lock records them
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

# A killed training loses at most this much work, or one epoch if an epoch takes longer.
SECONDS_BETWEEN = 10.0
# After this time another process's DVC has certainly recorded its finished training.
SECONDS_OF_OTHERS = 3600.0
DIGEST_BYTES = 32
# Part of the hash that names a checkpoint. Raise it when the format of the file or of the state changes.
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A packed state, and the id of the MLflow run to resume (`tracking.runs.TrainingRun.id`), or None."""

    content: bytes
    run: str | None
    is_finished: bool  # no epoch is left: only the outputs are written again


class Checkpointer:
    """Keeps the checkpoint of one training. Saving never raises an OSError: it warns once, and training continues."""

    def __init__(self, folder: Path, name: str, params: dict[str, Any]):
        """Take the training's hash (`name`) and all parameters: an MLflow run is resumed only if they are unchanged."""
        self._params = json.dumps(params, sort_keys=True)
        self._state = folder / f"{name}.state"
        self._finished = folder / f"{name}.finished"
        self._is_ours = False
        self._warned = False
        self._last_saved = self._last_epoch = time.monotonic()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the checkpoint. If another process holds it, `load` returns None and `save` does nothing."""
        lock = FileLock(self._state.with_suffix(".lock"))
        try:
            self._state.parent.mkdir(exist_ok=True)
            lock.acquire(timeout=0)
            self._is_ours = True
        except Timeout:
            self._warn("another process is running the same training; this one keeps no checkpoint")
        except OSError as error:
            self._warn_of(error)
        try:
            if self._is_ours:
                self._remove_what_is_recorded()
            yield
        finally:
            lock.release()

    def load(self) -> Checkpoint | None:
        """Return the last saved state, or None. A damaged file is reported and deleted."""
        for path in (self._state, self._finished) if self._is_ours else ():
            if path.is_file():
                try:
                    content = path.read_bytes()
                except OSError as error:
                    self._warn_of(error)
                    return None
                digest, body = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
                if hashlib.sha256(body).digest() == digest:
                    head, _, state = body.partition(b"\n")
                    row = json.loads(head)
                    run = row["run"] if row["params"] == self._params else None
                    return Checkpoint(state, run, is_finished=path == self._finished)
                problem = f"the checkpoint {path} is damaged and deleted; training starts from scratch"
                print(f"warning: {problem}", file=sys.stderr)
                path.unlink()
        return None

    def save(self, pack: Callable[[], bytes], run: str | None, is_last: bool) -> None:
        """Save what `pack` returns. Call it after every epoch.

        It writes after the last epoch, and when waiting for the next epoch would exceed SECONDS_BETWEEN.
        """
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
        """Release the checkpoint of a training that has written its outputs.

        Under DVC the state is kept until dvc.lock records the outputs, because they can be lost until then.
        In DVC's temporary folders it is deleted at once: the main repository's dvc.lock never records those outputs.
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
        """Delete `.finished` files: this training's if dvc.lock is newer, others older than SECONDS_OF_OTHERS."""
        lock = Path("dvc.lock")
        for path in self._finished.parent.glob("*.finished"):
            with suppress(OSError, Timeout):  # already deleted, or in use
                finished_at = path.stat().st_mtime
                if path == self._finished:
                    if lock.is_file() and lock.stat().st_mtime > finished_at:
                        path.unlink()
                elif finished_at < time.time() - SECONDS_OF_OTHERS:
                    with FileLock(path.with_suffix(".lock"), timeout=0):
                        path.unlink()

    def _warn_of(self, error: OSError) -> None:
        self._warn(f"no checkpoint can be kept: {error}; if this training stops, it starts from scratch")

    def _warn(self, text: str) -> None:
        if not self._warned:
            print(f"warning: {text}", file=sys.stderr)
        self._warned = True


def _sync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that a rename survives a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
