"""Processes: which one wrote a row and whether it still lives, its end by SIGTERM, a server's port and start."""

import errno
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from pipeline.core.errors import PipelineError

# How long a server may take until it answers.
START_SECONDS = 120


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


def check_port(host: str, port: int, command: str) -> None:
    """Check, before MLflow starts, that it can listen there. The error names `command` with another port.

    Raises:
        PipelineError: the port is taken or no port, or the host is no address of this machine.
    """
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PipelineError(f"port {port} is in use; choose another: {command} PORT={port + 1}") from None
        raise PipelineError(f"cannot listen on {host}, port {port}: {error.strerror}") from None
    except OverflowError as error:
        raise PipelineError(f"cannot listen on {host}, port {port}: {error}") from None


def wait_until_up(server: subprocess.Popen[bytes], url: str) -> None:
    """Return once `url` answers.

    Raises:
        PipelineError: the server ended, or did not answer in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise PipelineError("the MLflow server ended; see the error above")
        try:
            urlopen(url, timeout=5).close()
            return
        except (URLError, OSError):
            time.sleep(0.3)
    raise PipelineError(f"the MLflow server did not answer within {START_SECONDS} s")
