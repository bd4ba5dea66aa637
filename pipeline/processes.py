"""Which process wrote a row, and whether that very process still lives; and its end by SIGTERM."""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


def identity(pid: int | None = None) -> dict[str, str]:
    """MLflow tags that name a process (this one, unless `pid` says another) among all that this host has run."""
    process = psutil.Process(pid)
    return _place() | {
        "process.boot": _line("/proc/sys/kernel/random/boot_id"),
        "process.pid": str(process.pid),
        "process.started": _started(process),
    }


def is_gone(tags: dict[str, str]) -> bool:
    """Whether the process that `identity` described has ended.

    False for one of another host or container, of which nothing can be known, and where tags are missing.
    """
    if "process.started" not in tags or any(tags.get(name) != value for name, value in _place().items()):
        return False
    if tags["process.boot"] != _line("/proc/sys/kernel/random/boot_id"):
        return True
    try:
        process = psutil.Process(int(tags["process.pid"]))
        # A zombie has ended, only its parent has not asked how.
        return process.status() == psutil.STATUS_ZOMBIE or _started(process) != tags["process.started"]
    except psutil.NoSuchProcess:
        return True


def _place() -> dict[str, str]:
    """Where process ids mean the same: a machine, and on it the namespace of a container."""
    namespace = Path("/proc/self/ns/pid")
    return {
        "process.host": socket.gethostname(),
        "process.machine": _line("/etc/machine-id"),
        "process.namespace": str(namespace.readlink()) if namespace.is_symlink() else "",
    }


def _started(process: psutil.Process) -> str:
    """When a process started, since process ids are used again.

    Linux counts it from the start of the machine: psutil adds that to a clock which may be set meanwhile.
    """
    stat = _line(f"/proc/{process.pid}/stat")
    # The 22nd field; the second, a name in parentheses, may hold spaces.
    return stat.rpartition(")")[2].split()[19] if stat else str(process.create_time())


def _line(path: str) -> str:
    """The text of a system file; empty where there is none."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


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
