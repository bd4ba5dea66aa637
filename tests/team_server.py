"""The team's tracking server as its command starts it, on a real PostgreSQL in its own folder."""

import base64
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError

import psutil
import pytest

from pipeline.core.errors import PipelineError
from pipeline.server import postgres
from tests.helpers import PROJECT, environment, free_port, wait_until


@contextmanager
def server_folder() -> Iterator[Path]:
    """Create a folder that PostgreSQL's user may enter, unlike root's temporary ones. Skips without PostgreSQL."""
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed (make setup-cluster)")
    try:
        postgres._programs(Path("absent"))
    except PipelineError as error:
        pytest.skip(str(error))
    folder = Path(tempfile.mkdtemp(prefix="team-server-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class TeamServer:
    """`python -m pipeline.server` in a repository. Its output goes to `log`."""

    def __init__(self, repository: Path, folder: Path, *options: str, **variables: str):
        self.folder = folder
        self.log = folder / "printed.log"
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._repository = repository
        self._options = ["--port", str(self.port), "--folder", str(folder / "server"), *options]
        self._variables = variables
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.server", *self._options],
                cwd=self._repository,
                env=environment(PYTHONPATH=str(PROJECT), **self._variables),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        n_before = self.log.read_text().count("Ctrl-C ends it.")
        wait_until(lambda: self._has_ended() or self.log.read_text().count("Ctrl-C ends it.") > n_before, 120)
        assert not self._has_ended(), self.log.read_text()

    def _has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def processes(self) -> list[psutil.Process]:
        """Return the command's process and all that it has started."""
        assert self.process is not None
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(180)

    def kill(self) -> None:
        """Send SIGKILL to every process, as if the machine went down."""
        for process in self.processes():
            process.kill()
        assert self.process is not None
        self.process.wait()

    def status(self, user: str | None = None, password: str = "", **headers: str) -> int:
        """Return the HTTP status of a search for experiments, sent as the page sends it."""
        question = urllib.request.Request(
            f"{self.address}/api/2.0/mlflow/experiments/search",
            json.dumps({"max_results": 1}).encode(),
            {"Content-Type": "application/json"} | headers,
        )
        if user is not None:
            token = base64.b64encode(f"{user}:{password}".encode()).decode()
            question.add_header("Authorization", f"Basic {token}")
        try:
            with urllib.request.urlopen(question, timeout=20) as answer:
                return int(answer.status)
        except HTTPError as error:
            return error.code

    def dump(self) -> str:
        """Return every row of every table, as in the backup of docs/server.md."""
        program = postgres._programs(self.folder / "server/postgres") / "pg_dumpall"
        socket = os.path.realpath(self.folder / "server/socket")
        return subprocess.run(
            [program, "--host", socket, "--username", "postgres"], capture_output=True, text=True, check=True
        ).stdout
