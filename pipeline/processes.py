"""Which process wrote a row, and whether that very process still lives; and its end by SIGTERM."""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

# Process ids are used again, so a start time belongs to them; a clock that is set moves it a little.
START_TOLERANCE_SECONDS = 2.0


def identity(pid: int | None = None) -> dict[str, str]:
    """MLflow tags that name a process (this one, unless `pid` says another) among all that this host has run."""
    process = psutil.Process(pid)
    return {
        "process.host": socket.gethostname(),
        "process.boot": boot_id(),
        "process.pid": str(process.pid),
        "process.started": str(process.create_time()),
    }


def is_gone(tags: dict[str, str]) -> bool:
    """Whether the process that `identity` described has ended.

    False for one of another host, of which nothing can be known, and where tags are missing.
    """
    if tags.get("process.host") != socket.gethostname() or "process.started" not in tags:
        return False
    if tags["process.boot"] != boot_id():
        return True
    try:
        process = psutil.Process(int(tags["process.pid"]))
        started = process.create_time()
        if process.status() == psutil.STATUS_ZOMBIE:  # it has ended, only its parent has not asked how
            return True
    except psutil.NoSuchProcess:
        return True
    return abs(started - float(tags["process.started"])) > START_TOLERANCE_SECONDS


def boot_id() -> str:
    """What differs after every start of the machine; empty where the system does not tell."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else ""


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Inside the block SIGTERM raises SystemExit (143), so that what is open can be closed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
