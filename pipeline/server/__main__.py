"""Run a tracking server for a team: MLflow on PostgreSQL, which also serves the artifacts.

    python -m pipeline.server [--host 127.0.0.1] [--port 5000] [--folder .server] [--upgrade]

Everything is in one folder: the database, the artifacts and PostgreSQL's log. If the environment variable
MLFLOW_AUTH_ADMIN_PASSWORD is set, every client needs a user name and a password, and the variable's value is the
password of the user `admin`. Without it the server starts only on loopback. See docs/server.md.
"""

import argparse
import ipaddress
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from pipeline.core import processes
from pipeline.core.errors import PipelineError, run_command
from pipeline.core.processes import check_port, wait_until_up
from pipeline.core.repository import main_root
from pipeline.server import postgres
from pipeline.tracking import mlflow_app

PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"  # noqa: S105
ADMIN = "admin"
SHORTEST_PASSWORD = 12
# MLflow's former default, which everyone knows.
KNOWN_PASSWORD = "password1234"  # noqa: S105
# While one worker answers a request, the other one serves waiting trainings.
WORKERS = 2
RECORD = "mlflow.json"  # identifies MLflow's process
AUTH_CONFIG = """\
[mlflow]
# Whoever has a name may add to every experiment; only its creator and the admin may delete from it.
default_permission = EDIT
admin_username = {admin}
database_uri = {database_uri}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0 for all addresses")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--folder", type=Path, default=Path(".server"), help="under the repository, or absolute")
    parser.add_argument("--upgrade", action="store_true", help="first upgrade the tables to this MLflow's version")
    args = parser.parse_args()

    # Removed from the environment, so that no other process inherits it.
    password = os.environ.pop(PASSWORD, None)
    check_password(password, args.host)
    folder = (main_root() / args.folder).resolve()
    with suppress(KeyboardInterrupt), processes.sigterm_as_exit(), postgres.running(folder) as database:
        stop_leftover(folder / RECORD)
        check_port(args.host, args.port, "make server")
        if args.upgrade:
            upgrade(database.address(postgres.RUNS))
        if password is not None:
            set_admin_password(database.address(postgres.USERS), password)
        with mlflow_server(args.host, args.port, folder, database, password is not None) as server:
            wait_until_up(server, f"http://{to_connect_to(args.host)}:{args.port}/health")
            tell(args.host, args.port, password is not None)
            while database.process.poll() is None and server.poll() is None:
                time.sleep(0.5)
        which = "MLflow server" if database.process.poll() is None else "PostgreSQL"
        raise PipelineError(f"the {which} ended; see the error above, or {folder}/postgres.log")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_password(password: str | None, host: str) -> None:
    """Refuse to listen beyond loopback without a password, or with a bad one anywhere.

    Raises:
        PipelineError: the password is missing, too short, or MLflow's former default.
    """
    rule = f"{PASSWORD} needs at least {SHORTEST_PASSWORD} characters"
    if password is None and not is_loopback(host):
        raise PipelineError(f"{host} is reachable from outside, so the server needs a password: {rule}")
    if password is not None and (len(password) < SHORTEST_PASSWORD or password == KNOWN_PASSWORD):
        raise PipelineError(f"{rule}, and not MLflow's old default")


def upgrade(address: str) -> None:
    """Upgrade the tables of an older MLflow to the installed version; MLflow's authentication upgrades its own.

    Raises:
        PipelineError: the upgrade failed.
    """
    # A command line is visible to other users, but this address holds no password.
    if subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", address]).returncode != 0:
        raise PipelineError("the database could not be upgraded; see the error above")


def set_admin_password(address: str, password: str) -> None:
    """Create the user `admin` with this password, or change its password: whoever starts the server sets it.

    Raises:
        PipelineError: the packages for MLflow's authentication are missing.
    """
    try:
        from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
    except ImportError:
        raise PipelineError("MLflow's authentication is not installed: make setup-cluster") from None
    users = SqlAlchemyStore()
    users.init_db(address)
    if users.has_user(ADMIN):
        users.update_user(ADMIN, password=password)
    else:
        users.create_user(ADMIN, password, is_admin=True)


@contextmanager
def mlflow_server(
    host: str, port: int, folder: Path, database: postgres.Postgres, authentication: bool
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `mlflow server` inside the block."""
    artifacts, record = folder / "artifacts", folder / RECORD
    artifacts.mkdir(mode=0o700, exist_ok=True)
    settings = {
        "MLFLOW_BACKEND_STORE_URI": database.address(postgres.RUNS),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    options = ["--host", host, "--port", str(port), "--workers", str(WORKERS)]
    options += ["--artifacts-destination", str(artifacts)]
    if authentication:
        options += ["--app-name", "with-passwords"]
        config = folder / "auth.ini"
        config.write_text(AUTH_CONFIG.format(admin=ADMIN, database_uri=database.address(postgres.USERS)))
        settings |= {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN}
        settings["MLFLOW_FLASK_SERVER_SECRET_KEY"] = secrets.token_hex(32)
    else:
        options += ["--app-name", "without-passwords"]
    if not is_loopback(host):
        settings = names_of_this_machine(host, port) | settings
    with mlflow_app.python_path() as python_path:
        # In its own session, because Ctrl-C in a terminal would otherwise reach all processes at once.
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            env=os.environ | python_path | settings,
            start_new_session=True,
        )
        try:
            record.write_text(json.dumps(processes.identity(server.pid)))
            yield server
        finally:
            processes.stop_session(server)
            record.unlink(missing_ok=True)


def names_of_this_machine(host: str, port: int) -> dict[str, str]:
    """Return MLflow's settings that let clients and browsers use this machine's names and addresses.

    By default MLflow refuses host names other than loopback's and private addresses, and requests from pages under any
    other name. Variables that are already set, for example for a proxy's name, take precedence.
    """
    found = [address.address.partition("%")[0] for of in psutil.net_if_addrs().values() for address in of]
    names = [host, socket.gethostname(), socket.getfqdn(), "localhost", "127.0.0.1"]
    for name in found:
        with suppress(ValueError):  # the hardware address of a network card
            names.append(f"[{name}]" if ipaddress.ip_address(name).version == 6 else name)
    names = list(dict.fromkeys(names))
    settings = {
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join([*names, *(f"{name}:{port}" for name in names)]),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{name}:{port}" for name in names),
    }
    return {name: os.environ.get(name) or value for name, value in settings.items()}


def stop_leftover(record: Path) -> None:
    """Kill the MLflow server left by a command that was killed."""
    if not record.exists():
        return
    with suppress(ValueError, KeyError, psutil.NoSuchProcess):  # the record is half written, or the process just ended
        tags = json.loads(record.read_text())
        if processes.is_gone(tags):
            return
        leader = psutil.Process(int(tags["process.pid"]))
        left = {process: processes.identity(process.pid) for process in [leader, *leader.children(recursive=True)]}
        for process in left:
            process.kill()
        while not all(map(processes.is_gone, left.values())):
            time.sleep(0.05)  # they hold the port until they have ended


def to_connect_to(host: str) -> str:
    """Return an address at which this machine reaches a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{host}]" if ":" in host else host


def tell(host: str, port: int, authentication: bool) -> None:
    """Print how clients connect."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else to_connect_to(host)  # noqa: S104
    print(f"\nMLflow is at http://{name}:{port}\nClients: export MLFLOW_TRACKING_URI=http://{name}:{port}")
    if authentication:
        print("and MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; the user `admin` has the password you set")
    if not is_loopback(host):
        print("Passwords cross the network unencrypted: put a proxy with TLS in front (docs/server.md).")
    print("Ctrl-C ends it.", flush=True)


if __name__ == "__main__":
    run_command(main)
