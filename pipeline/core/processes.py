"""Identify processes and check whether they still run, handle SIGTERM, check a server's port and wait for its start."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from pipeline.core.errors import PipelineError

# How long a server may take to answer for the first time.
START_SECONDS = 120
# How long its open requests may take when it ends.
STOP_SECONDS = 30


def identity(pid: int | None = None) -> dict[str, str]:
    """Return MLflow tags that identify a process (default: this one) among all that ever ran on this host."""
    process = psutil.Process(pid)
    return _place() | {
        "process.boot": _line("/proc/sys/kernel/random/boot_id"),
        "process.pid": str(process.pid),
        "process.started": _started(process),
    }


def is_gone(tags: dict[str, str]) -> bool:
    """Return whether the process that `identity` described has ended.

    False if it ran on another host or in another container, which cannot be checked, or if tags are missing.
    """
    if "process.started" not in tags or any(tags.get(name) != value for name, value in _place().items()):
        return False
    if tags["process.boot"] != _line("/proc/sys/kernel/random/boot_id"):
        return True
    try:
        process = psutil.Process(int(tags["process.pid"]))
        return _has_ended(process) or _started(process) != tags["process.started"]
    except psutil.NoSuchProcess:
        return True


def _has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended and its parent has not read its exit status yet.

    If other threads are left when the first one ends, the process is a zombie too, but its files and ports are open.
    """
    return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1


def _place() -> dict[str, str]:
    """Return the scope in which a process id is valid: the machine and the container's PID namespace."""
    namespace = Path("/proc/self/ns/pid")
    return {
        "process.host": socket.gethostname(),
        "process.machine": _line("/etc/machine-id"),
        "process.namespace": str(namespace.readlink()) if namespace.is_symlink() else "",
    }


def _started(process: psutil.Process) -> str:
    """Return when a process started, because process ids are reused.

    Linux counts from boot. psutil converts that to clock time, which changes when the clock is set.
    """
    stat = _line(f"/proc/{process.pid}/stat")
    # The 22nd field; the second, a name in parentheses, may hold spaces.
    return stat.rpartition(")")[2].split()[19] if stat else str(process.create_time())


def _line(path: str) -> str:
    """Return the text of a system file; empty if it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Make SIGTERM raise SystemExit(143) inside the block, so that open resources are closed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set signal handlers
        return

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def sighup_as_exit() -> None:
    """From now on a closed terminal raises SystemExit(129), except under nohup, which ignores it."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(128 + signal.SIGHUP))


def stop_session(server: subprocess.Popen[bytes]) -> None:
    """Stop a process that leads its own session, and kill what is left of the session after STOP_SECONDS."""
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def check_port(host: str, port: int, command: str) -> None:
    """Check that MLflow will be able to listen on a port. The error suggests `command` with another port.

    Raises:
        PipelineError: the port is in use or out of range, or the host is not an address of this machine.
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
    """Wait until `url` answers.

    Raises:
        PipelineError: the server ended, or did not answer within START_SECONDS.
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
