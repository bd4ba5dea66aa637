"""The tracking server's own PostgreSQL, in a folder.

It listens only on a Unix socket, in a folder that only its owner may enter, so that it needs no password that could
leak. If the user is root, for example in a container, its programs run as the user `postgres`, because they refuse
root.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from pipeline.core.errors import PipelineError

DEBIAN = Path("/usr/lib/postgresql")
START_SECONDS = 60
PORT = 5432  # part of the socket's name; nothing listens there
# The tracking server's role is not a superuser: no statement that it is made to run can read files or start programs.
ROLE = "mlflow"
RUNS = "mlflow"
USERS = "mlflow_users"


@dataclass(frozen=True)
class Postgres:
    """A running PostgreSQL, and the folder of its socket."""

    process: "subprocess.Popen[bytes]"
    socket: Path

    def address(self, database: str) -> str:
        """Return SQLAlchemy's address of a database; it holds no password."""
        return f"postgresql+psycopg2://{ROLE}@/{database}?host={self.socket}&port={PORT}"


@contextmanager
def running(folder: Path) -> Iterator[Postgres]:
    """Run PostgreSQL on `folder`/postgres inside the block; the first call creates it and the databases RUNS and USERS.

    Args:
        folder: an absolute path; one process at a time uses it.

    Raises:
        PipelineError: PostgreSQL or its driver is missing, it does not start, or another process uses the folder.
    """
    _require_the_driver()
    data, log = folder / "postgres", folder / "postgres.log"
    programs = _programs(data)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not data.is_dir():
            _initialize(programs, data, log)
        _stop_leftover(programs, data, log)
        with _socket_folder(folder) as socket:
            options = ["-k", str(socket), "-p", str(PORT), "-c", "listen_addresses="]
            server = _start([str(programs / "postgres"), "-D", str(data), *options], log)
            try:
                _wait_until_up(server, socket, log)
                _make_databases(socket)
                yield Postgres(server, socket)
            finally:
                server.send_signal(signal.SIGINT)  # its fast shutdown: connections are closed, nothing is lost
                server.wait()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise PipelineError(f"a tracking server is using {folder}; stop it first") from None


def _require_the_driver() -> None:
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        raise PipelineError("the tracking server needs the package psycopg2: make setup-cluster") from None


def _programs(data: Path) -> Path:
    """Return the folder of PostgreSQL's programs: the version that made `data`, else those on PATH, else the newest."""
    on_path = [Path(found).resolve().parent] if (found := shutil.which("initdb")) else []
    debian = sorted(DEBIAN.glob("*/bin"), key=lambda path: path.parent.name.zfill(3), reverse=True)
    folders = [path for path in [*on_path, *debian] if (path / "initdb").exists() and (path / "postgres").exists()]
    if not folders:
        raise PipelineError("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    if not (data / "PG_VERSION").exists():
        return folders[0]
    made_by = (data / "PG_VERSION").read_text().strip()
    for path in folders:
        said = subprocess.run([path / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
        if said.split()[2].split(".")[0] == made_by:
            return path
    raise PipelineError(f"{data} needs PostgreSQL {made_by}; install it: apt-get install postgresql-{made_by}")


def _start(command: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """Start a PostgreSQL program: as the user `postgres` if this process is root, otherwise as this user."""
    user = "postgres" if os.geteuid() == 0 else None
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            cwd="/",
            env={"LC_ALL": "C"},  # this process's environment may hold secrets, and the program may run as another user
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # otherwise Ctrl-C reaches it before MLflow has closed its connections
        )


def _give_to_its_owner(path: Path) -> None:
    path.chmod(0o700)
    if os.geteuid() == 0:
        shutil.chown(path, "postgres", "postgres")


def _initialize(programs: Path, data: Path, log: Path) -> None:
    """Run `initdb` in a folder that gets its final name only when it is complete."""
    partial = data.with_name(f"{data.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    _give_to_its_owner(partial)
    options = ["--username=postgres", "--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--locale=C"]
    command = [str(programs / "initdb"), "-D", str(partial), *options, "--data-checksums"]
    failed = _start(command, log).wait() != 0
    if failed and os.geteuid() == 0:
        raise PipelineError(
            f"initdb failed, see {log}; if the user postgres cannot enter that folder, choose another with --folder"
        )
    if failed:
        raise PipelineError(f"initdb failed, see {log}")
    partial.rename(data)


def _stop_leftover(programs: Path, data: Path, log: Path) -> None:
    """Stop the PostgreSQL left by a killed server; if it was killed too, repair its pid file so that it can start."""
    pid_file = data / "postmaster.pid"
    if not pid_file.exists():
        return
    pid, *lines = pid_file.read_text().splitlines() or [""]
    if not pid.strip().isdecimal():  # truncated by a full disk or a crash; PostgreSQL would not start
        pid_file.unlink()
        return
    try:
        is_ours = str(data) in psutil.Process(int(pid)).cmdline()
    except psutil.NoSuchProcess:  # or a zombie
        is_ours = False
    if is_ours:
        _start([str(programs / "pg_ctl"), "-D", str(data), "-m", "fast", "stop"], log).wait()
    else:
        # The id may now be another process's, for example after a container restart, and PostgreSQL would not start.
        # It accepts its parent's id. From the rest of the file it sees whether the shared memory is still in use.
        pid_file.write_text("\n".join([str(os.getpid()), *lines]) + "\n")


@contextmanager
def _socket_folder(folder: Path) -> Iterator[Path]:
    """Make a temporary folder for the socket, linked from `folder`/socket: a socket's path has at most 107 bytes."""
    link = folder / "socket"
    if link.is_symlink():
        shutil.rmtree(link.readlink(), ignore_errors=True)  # of a server that was killed
        link.unlink()
    socket = Path(tempfile.mkdtemp(prefix="mlflow-server-"))
    _give_to_its_owner(socket)
    link.symlink_to(socket)
    try:
        yield socket
    finally:
        shutil.rmtree(socket, ignore_errors=True)
        link.unlink(missing_ok=True)


def _wait_until_up(server: "subprocess.Popen[bytes]", socket: Path, log: Path) -> None:
    import psycopg2

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise PipelineError(f"PostgreSQL ended; see {log}")
        try:
            psycopg2.connect(host=str(socket), port=PORT, user="postgres", dbname="postgres").close()
            return
        except psycopg2.OperationalError:
            time.sleep(0.05)
    raise PipelineError(f"PostgreSQL did not answer within {START_SECONDS} s; see {log}")


def _make_databases(socket: Path) -> None:
    import psycopg2

    connection = psycopg2.connect(host=str(socket), port=PORT, user="postgres", dbname="postgres")
    connection.autocommit = True  # databases cannot be created inside a transaction
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE])
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE ROLE {ROLE} LOGIN")
            for database in (RUNS, USERS):
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database])
                if cursor.fetchone() is None:
                    cursor.execute(f"CREATE DATABASE {database} OWNER {ROLE}")
    finally:
        connection.close()
