"""Detecting whether a process still runs, and exiting cleanly on SIGTERM."""

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.core import processes
from tests.helpers import wait_until


def test_who_is_gone() -> None:
    """A process with another start, boot or pid is gone; this one, and any on another host, is not."""
    me = processes.identity()
    assert not processes.is_gone(me)
    assert processes.is_gone(me | {"process.started": "1"})
    assert processes.is_gone(me | {"process.boot": "another"})
    child = subprocess.Popen(["sleep", "60"])
    described = processes.identity(child.pid)
    assert not processes.is_gone(described)
    child.kill()
    wait_until(lambda: processes.is_gone(described))  # a zombie is gone too
    child.wait()
    assert processes.is_gone(described)
    assert not processes.is_gone(me | {"process.host": "elsewhere", "process.boot": "another"})
    assert not processes.is_gone(me | {"process.machine": "a clone of this host", "process.boot": "another"})
    assert not processes.is_gone(me | {"process.namespace": "pid:[1]", "process.pid": "999999"})
    assert not processes.is_gone({})


def test_a_process_with_a_thread_left_is_not_gone() -> None:
    """While one thread lives, the process's files and ports stay open, even if its first thread has ended."""
    code = """
import ctypes, socket, threading, time
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.PyDLL(None).pthread_exit(None)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    port = int(child.stdout.readline())
    described = processes.identity(child.pid)
    wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    assert not processes.is_gone(described)
    child.kill()
    wait_until(lambda: processes.is_gone(described))
    socket.create_server(("127.0.0.1", port)).close()
    child.wait()


def test_setting_the_clock_does_not_make_a_process_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting the clock does not change a process's recorded start, which counts from boot."""
    me = processes.identity()
    create_time = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: create_time(process) + 3600)
    assert not processes.is_gone(me)


def test_sigterm_handler_is_restored() -> None:
    """SIGTERM raises SystemExit(143) inside the block; afterwards the previous handler is restored."""
    before = signal.getsignal(signal.SIGTERM)

    def stopped() -> None:
        with processes.sigterm_as_exit():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(SystemExit) as ended:
        stopped()
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
