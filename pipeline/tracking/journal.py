"""Journals: local records of a run's events, written before anything is sent to MLflow.

A journal is a folder under `.mlflow-journal/` in the main repository. `events.jsonl` has one JSON object per line, with
the time of the event, so that late delivery gives the same run. `files/` has copies of the files that the events name.
`state.json` records how much has been delivered. A completely delivered journal is deleted. This module does not
use MLflow.

Events, by `kind`:
    start     store, experiment, name, tags, params, owner;
              training adds `run`: the id of the run's first journal, which is this one unless training was resumed;
              evaluation adds `fingerprint` (its training) and `evaluation` (a hash of what it adds)
    metrics   values {name: value}, step
    tags      values {name: value}
    inputs    data_sets as [{name, digest, path, context}]
    artifact  file, folder (in the run's artifacts)
    end       status
    model     file: the weights, to be stored in MLflow's own format
An event with `replay` stands in for training's own event. It is sent only if delivery creates the run.
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
    """One journal. A stage appends to it, and one process at a time delivers it."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    @contextmanager
    def create(cls, root: Path) -> Iterator["Journal"]:
        """Create a journal. It becomes visible to others only when the block ends without an error."""
        # Names sort by time.
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:8]}"
        journal = cls(root / FOLDER / f".{name}")
        journal.folder.mkdir(parents=True)
        try:
            yield journal
            # So that a crash of the machine never leaves a journal without its first event.
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
        """The lock of delivery: only its holder may deliver the journal."""
        return FileLock(self.folder.with_name(f"{self.id}.lock"))

    def exists(self) -> bool:
        return self.folder.is_dir()

    def remove(self) -> None:
        """Delete the journal, with its lock held."""
        # Rename first: an interrupted deletion then leaves nothing that looks like a journal.
        shutil.rmtree(self.folder.rename(self.folder.with_name(f".{self.id}")))
        self.remove_lock()

    def remove_lock(self) -> None:
        self.folder.with_name(f"{self.id}.lock").unlink(missing_ok=True)

    def append(self, *events: Event) -> None:
        """Append events. An event without `time` (ms since 1970) gets the current time."""
        now = now_ms()
        lines = "".join(json.dumps({"time": now} | event) + "\n" for event in events)
        with (self.folder / "events.jsonl").open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # a kill or a full disk truncated the last line
                    lines = f"\n{lines}"
            file.write(lines.encode())

    def append_artifact(self, path: Path, folder: str, **more: Any) -> None:
        """Append an artifact event with a copy of the file as it is now."""
        self.append({"kind": "artifact", "file": self.keep(path), "folder": folder} | more)

    def keep(self, path: Path) -> str:
        """Copy a file into the journal. Return the path by which events refer to it."""
        copy = Path("files", uuid.uuid4().hex, path.name)
        (self.folder / copy).parent.mkdir(parents=True)
        shutil.copyfile(path, self.folder / copy)
        return str(copy)

    def events(self) -> list[Event]:
        """Return all events. Truncated lines are skipped."""
        found = []
        for line in (self.folder / "events.jsonl").read_bytes().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def first_event(self) -> Event:
        """Return the first event.

        Raises:
            ValueError: the journal is damaged.
            FileNotFoundError: it has been delivered.
        """
        with (self.folder / "events.jsonl").open("rb") as file:
            return json.loads(file.readline())

    def run_journal_id(self) -> str:
        """Return the id of the journal that started the run: this one, unless training was resumed.

        Raises:
            ValueError: the journal is damaged.
            FileNotFoundError: it has been delivered.
        """
        return self.first_event().get("run", self.id)

    def has_ended(self) -> bool:
        return any(event["kind"] == "end" for event in self.events())

    def fingerprint(self) -> str | None:
        """Return the fingerprint of the journal's training, or None if it has none yet."""
        try:
            events = self.events()
        except FileNotFoundError:  # delivered a moment ago
            return None
        tags = [event["values"] for event in events if event["kind"] == "tags"]
        return next((values["fingerprint"] for values in tags if "fingerprint" in values), None)

    def size(self) -> int:
        """Return the number of bytes written so far; 0 if the journal no longer exists."""
        try:
            return (self.folder / "events.jsonl").stat().st_size
        except FileNotFoundError:
            return 0

    def close_if_dead(self) -> None:
        """Close the run as KILLED if its process is gone."""
        # Check the process first: once it is gone, it cannot write an end itself.
        if processes.is_gone(self.first_event()["owner"]):
            self.close()

    def close(self) -> None:
        """Append the end KILLED, at the time of the last event, unless the run has ended.

        Call this only when its process is known to be gone.
        """
        if not self.has_ended():
            self.append({"kind": "end", "time": self.events()[-1]["time"], "status": "KILLED"})

    def state(self) -> dict[str, Any]:
        """Return the state of delivery.

        run_id: the MLflow run, or None before it exists.
        delivered: the number of events sent.
        last_step: the last epoch that the run already had when it was resumed, else 0.
        request_since: when the open request was sent (seconds since 1970), or None.
        """
        empty = {"run_id": None, "delivered": 0, "last_step": 0, "request_since": None}
        try:
            return empty | json.loads((self.folder / "state.json").read_text())
        except (FileNotFoundError, ValueError):  # nothing sent yet, or the state is lost: sending again is harmless
            return empty

    def set_state(self, **values: Any) -> None:
        """Change some values of the state. The caller holds the journal's lock."""
        new = self.folder / "state.json.new"
        new.write_text(json.dumps(self.state() | values))
        new.replace(self.folder / "state.json")

    @contextmanager
    def request_in_flight(self) -> Iterator[None]:
        """Record that a request is open, so that a waiting process can tell slow local work from a hanging store."""
        self.set_state(request_since=time.time())
        try:
            yield
        finally:
            self.set_state(request_since=None)

    def problem(self) -> tuple[str, float] | None:
        """Return why the last delivery failed and when (seconds since 1970), or None."""
        path = self.folder / "problem"
        try:
            return path.read_text(), path.stat().st_mtime
        except FileNotFoundError:
            return None

    def record_failure(self, error: Exception) -> None:
        (self.folder / "problem").write_text(one_line(error))

    def clear_problem(self) -> None:
        (self.folder / "problem").unlink(missing_ok=True)


def journals(root: Path, store: str | None = None) -> list[Journal]:
    """Return a repository's undelivered journals for `store` (None: for all stores), oldest first.

    Journals whose first event cannot be read are skipped.
    """
    found = []
    for path in sorted((root / FOLDER).glob("[!.]*/events.jsonl")):
        journal = Journal(path.parent)
        try:
            if store in (None, journal.first_event()["store"]):
                found.append(journal)
        except (FileNotFoundError, ValueError):  # delivered a moment ago, or damaged
            continue
    return found


def runs_waited_for(root: Path) -> set[str]:
    """Return `Journal.run_journal_id` of all undelivered journals."""
    waiting = set()
    for journal in journals(root):
        with suppress(FileNotFoundError):  # delivered a moment ago
            waiting.add(journal.run_journal_id())
    return waiting


def stores_waited_for(root: Path) -> set[str]:
    """Return the stores of all undelivered journals."""
    waiting = set()
    for journal in journals(root):
        with suppress(FileNotFoundError):  # delivered a moment ago
            waiting.add(journal.first_event()["store"])
    return waiting


def now_ms() -> int:
    return int(time.time() * 1000)


def one_line(error: BaseException) -> str:
    """Return an error as one line without secrets, of at most 300 characters. Name its type unless a PipelineError."""
    kind = "" if isinstance(error, PipelineError) else f"{type(error).__name__}: "
    return redact(kind + on_one_line(error))[:300]
