"""What a run does, written down on this machine before any of it is sent to MLflow.

A journal is a folder under `.mlflow-journal/` in the main repository. `events.jsonl` has one JSON
object a line, each with the time at which it happened, so that what is delivered late is as if it had
been delivered at once; `files/` has copies of the files that the events name; `state.json` says how much
has been delivered. A journal that is delivered to its end is deleted. This module knows no MLflow.

Events, by `kind`:
    start     store, experiment, name, tags, params, owner; for a training also `run`, the journal with
              which its row began, itself or that of the process which it goes on from; for an evaluation
              also `fingerprint`, the training that it belongs to, and `evaluation`, a hash of what it adds
    metrics   values {name: value}, step
    tags      values {name: value}
    inputs    data sets as {name, digest, path, context}
    artifact  file, folder (in the run's artifacts)
    end       status
    model     file: the weights, to be stored in MLflow's own format
An event with `replay` is what training would have said; it is for a run that did not exist yet.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.core import processes
from pipeline.core.errors import PipelineError, on_one_line
from pipeline.tracking.redaction import redact

FOLDER = ".mlflow-journal"
Event = dict[str, Any]


class Journal:
    """One journal. A stage appends to it, one process at a time delivers it."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    @contextmanager
    def create(cls, root: Path) -> Iterator["Journal"]:
        """A new journal, filled inside the block: until the block ends well nobody else sees it."""
        # Names sort by time.
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:8]}"
        journal = cls(root / FOLDER / f".{name}")
        journal.folder.mkdir(parents=True)
        try:
            yield journal
            # So that not even a machine that goes down leaves a journal without its beginning.
            with (journal.folder / "events.jsonl").open("rb") as file:
                os.fsync(file.fileno())
        except BaseException:
            shutil.rmtree(journal.folder)
            raise
        journal.folder = journal.folder.rename(root / FOLDER / name)

    @property
    def id(self) -> str:
        return self.folder.name.removeprefix(".")

    @property
    def lock(self) -> FileLock:
        """Who holds it may deliver the journal."""
        return FileLock(self.folder.with_name(f"{self.id}.lock"))

    def exists(self) -> bool:
        return self.folder.is_dir()

    def remove(self) -> None:
        """Delete the journal, with its lock held."""
        # A new name first: a deletion that is cut off leaves nothing that looks like a journal.
        shutil.rmtree(self.folder.rename(self.folder.with_name(f".{self.id}")))
        self.remove_lock()

    def remove_lock(self) -> None:
        self.folder.with_name(f"{self.id}.lock").unlink(missing_ok=True)

    def append(self, *events: Event) -> None:
        """Write events down, with the present time unless they carry another (`time`, in ms since 1970)."""
        now = now_ms()
        lines = "".join(json.dumps({"time": now} | event) + "\n" for event in events)
        with (self.folder / "events.jsonl").open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # a kill or a full disk cut the last line off
                    lines = f"\n{lines}"
            file.write(lines.encode())

    def append_artifact(self, path: Path, folder: str, **more: Any) -> None:
        """An artifact: the file as it is now."""
        self.append({"kind": "artifact", "file": self.keep(path), "folder": folder} | more)

    def keep(self, path: Path) -> str:
        """Copy a file into the journal; the name under which events refer to it."""
        copy = Path("files", uuid.uuid4().hex, path.name)
        (self.folder / copy).parent.mkdir(parents=True)
        shutil.copyfile(path, self.folder / copy)
        return str(copy)

    def events(self) -> list[Event]:
        """All events. A line that a kill cut off is passed over."""
        found = []
        for line in (self.folder / "events.jsonl").read_bytes().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def start(self) -> Event:
        """The first event.

        Raises:
            ValueError: the journal is damaged.
        """
        with (self.folder / "events.jsonl").open("rb") as file:
            return json.loads(file.readline())

    def run(self) -> str:
        """The journal with which its row began.

        Raises:
            ValueError: the journal is damaged.
            FileNotFoundError: it has been delivered.
        """
        return self.start().get("run", self.id)

    def has_ended(self) -> bool:
        return any(event["kind"] == "end" for event in self.events())

    def fingerprint(self) -> str | None:
        """The fingerprint of the training that it is of or belongs to, as soon as there is one."""
        try:
            events = self.events()
        except FileNotFoundError:  # delivered a moment ago
            return None
        tags = [event["values"] for event in events if event["kind"] == "tags"]
        return next((values["fingerprint"] for values in tags if "fingerprint" in values), None)

    def size(self) -> int:
        """The number of bytes written so far; 0 once the journal is gone."""
        try:
            return (self.folder / "events.jsonl").stat().st_size
        except FileNotFoundError:
            return 0

    def settle(self) -> None:
        """Write down the end of a run whose process is gone: KILLED, when it was last heard of."""
        # In this order: once it is gone it can write no other end.
        if processes.is_gone(self.start()["owner"]):
            self.close()

    def close(self) -> None:
        """`settle`, for one who knows that the process is gone."""
        if not self.has_ended():
            self.append({"kind": "end", "time": self.events()[-1]["time"], "status": "KILLED"})

    def state(self) -> dict[str, Any]:
        """How far delivery is.

        run_id, None before there is a run; delivered, a number of events; last_step, the last epoch that
        the run already had where it goes on; asking_since, when the request that is out was sent (seconds
        since 1970), or None.
        """
        empty = {"run_id": None, "delivered": 0, "last_step": 0, "asking_since": None}
        try:
            return empty | json.loads((self.folder / "state.json").read_text())
        except (FileNotFoundError, ValueError):  # nothing sent yet, or lost: to send it again does no harm
            return empty

    def set_state(self, **values: Any) -> None:
        """Change some values of the state, with the journal's lock held."""
        new = self.folder / "state.json.new"
        new.write_text(json.dumps(self.state() | values))
        new.replace(self.folder / "state.json")

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Note that the store is being asked, so that whoever waits can tell slow work from a store that hangs."""
        self.set_state(asking_since=time.time())
        try:
            yield
        finally:
            self.set_state(asking_since=None)

    def problem(self) -> tuple[str, float] | None:
        """Why the last delivery failed, and when (seconds since 1970)."""
        path = self.folder / "problem"
        try:
            return path.read_text(), path.stat().st_mtime
        except FileNotFoundError:
            return None

    def note_problem(self, error: Exception) -> None:
        (self.folder / "problem").write_text(one_line(error))

    def clear_problem(self) -> None:
        (self.folder / "problem").unlink(missing_ok=True)


def journals(root: Path, store: str | None = None) -> list[Journal]:
    """The journals of a repository, of `store` or of all, that are not wholly delivered, the oldest first.

    A damaged one, which tells nothing, is left out.
    """
    found = []
    for path in sorted((root / FOLDER).glob("[!.]*/events.jsonl")):
        journal = Journal(path.parent)
        try:
            if store in (None, journal.start()["store"]):
                found.append(journal)
        except (FileNotFoundError, ValueError):  # delivered a moment ago, or damaged
            continue
    return found


def runs_waited_for(root: Path) -> set[str]:
    """`Journal.run` of all journals."""
    waiting = set()
    for journal in journals(root):
        with suppress(FileNotFoundError):  # delivered a moment ago
            waiting.add(journal.run())
    return waiting


def stores_waited_for(root: Path) -> set[str]:
    """The stores for which there are journals."""
    waiting = set()
    for journal in journals(root):
        with suppress(FileNotFoundError):  # delivered a moment ago
            waiting.add(journal.start()["store"])
    return waiting


def now_ms() -> int:
    return int(time.time() * 1000)


def one_line(error: BaseException) -> str:
    """An error for a message: its kind (where it is not this project's own) and text, not too long, without secrets."""
    kind = "" if isinstance(error, PipelineError) else f"{type(error).__name__}: "
    return redact(kind + on_one_line(error))[:300]
