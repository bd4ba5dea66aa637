"""A real MLflow server on loopback that tests start, kill and restart, and servers that misbehave."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.helpers import environment, free_port, wait_until


class TrackingServer:
    """`mlflow server` on its own folder. Its runs outlive it."""

    def __init__(self, folder: Path, empty_store: Path):
        folder.mkdir()
        self.database = f"sqlite:///{shutil.copy(empty_store, folder / 'mlflow.db')}"
        self.folder = folder
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        options += ["--backend-store-uri", self.database, "--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
                env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_DISABLE_TELEMETRY="true"),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, seconds=120)

    def _answers(self) -> bool:
        try:
            urlopen(f"{self.address}/api/2.0/mlflow/experiments/search?max_results=1", timeout=20).close()
        except (URLError, OSError):
            return False
        return True

    def kill(self) -> None:
        """Send SIGKILL to all of its processes, as in a crash."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def silent_server() -> Iterator[str]:
    """Yield the address of a server that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def failing_server() -> Iterator[str]:
    """Yield the address of a server that answers every request with 500."""

    class Fail(BaseHTTPRequestHandler):
        def fail(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_error(500)

        do_GET = do_POST = do_PUT = do_PATCH = fail

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Fail)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@contextmanager
def stuck_server() -> Iterator[str]:
    """Yield the address of a server that reports itself healthy but answers nothing else, as if its database hung."""
    closing = threading.Event()

    class Hang(BaseHTTPRequestHandler):
        def answer(self) -> None:
            if self.path != "/health":
                closing.wait(600)
            self.send_response(200)
            self.end_headers()

        do_GET = do_POST = do_PUT = do_PATCH = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hang)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    closing.set()
    server.shutdown()


@contextmanager
def absent_server() -> Iterator[str]:
    """Yield an address at which no server listens."""
    yield f"http://127.0.0.1:{free_port()}"
