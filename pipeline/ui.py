"""Show the runs: start MLflow's UI on the project's store and open it on the table of runs.

    python -m pipeline.ui [--port 5000]

Prints that address, and for each sweep the one of MLflow's comparison of its runs.
"""

import argparse
import errno
import json
import os
import socket
import subprocess
import sys
import time
import webbrowser
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

from pipeline.errors import PipelineError, run_command
from pipeline.processes import sigterm_as_exit
from pipeline.redaction import redact
from pipeline.repository import main_root
from pipeline.store import is_server, open_store, search_all, tracking_uri
from pipeline.sweep import sweeps_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

HOST = "127.0.0.1"
START_SECONDS = 120
# More make the address longer than browsers take.
MOST_COMPARED = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=5000)
    port = parser.parse_args().port

    uri = tracking_uri(main_root())
    client, experiment_id = open_store()
    # Without the query MLflow 3 opens an experiment in its view for language models, which is empty here.
    page = f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    sweeps = comparisons(client, experiment_id)
    if is_server(uri):
        address = redact(uri).rstrip("/")
        print(f"The runs are on the tracking server: {address}{page}")
        for name, link in sweeps.items():
            print(f"Sweep {name!r}, compared: {address}{link}")
        return
    check_port(HOST, port, "make ui")
    options = ["--host", HOST, "--port", str(port), "--workers", "1"]
    # One worker and no job runner: 2 processes instead of 13, and a third of the time to start.
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *options],
        # The address may hold a password, which a command line would show to everyone on the machine.
        env=os.environ | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
    try:
        with sigterm_as_exit():
            wait_until_up(server, f"http://{HOST}:{port}/health")
            print(f"\nMLflow is at http://{HOST}:{port}{page}")
            for name, link in sweeps.items():
                print(f"Sweep {name!r}, compared: http://{HOST}:{port}{link}")
            print("Ctrl-C ends it.", flush=True)
            if sys.stdout.isatty():
                webbrowser.open(f"http://{HOST}:{port}{page}")
            if server.wait() != 0:
                raise PipelineError("the MLflow server ended; what went wrong stands above")
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()


def comparisons(client: "MlflowClient", experiment_id: str) -> dict[str, str]:
    """{sweep: the path of MLflow's compare view on its finished runs}, the newest sweep first."""
    ids: dict[str, list[str]] = {}
    for run in search_all(client, experiment_id, "tags.sweep LIKE '%' AND attributes.status = 'FINISHED'"):
        for name in sweeps_of(run.data.tags):
            ids.setdefault(name, []).append(run.info.run_id)
    experiments = quote(json.dumps([experiment_id]))
    return {
        name: f"/#/compare-runs?runs={quote(json.dumps(found[:MOST_COMPARED]))}&experiments={experiments}"
        for name, found in ids.items()
    }


def check_port(host: str, port: int, command: str) -> None:
    """Find out before MLflow has started; `command` takes another port.

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
            raise PipelineError("the MLflow server ended; what went wrong stands above")
        try:
            urlopen(url, timeout=5).close()
            return
        except (URLError, OSError):
            time.sleep(0.3)
    raise PipelineError(f"the MLflow server did not answer within {START_SECONDS} s")


if __name__ == "__main__":
    run_command(main)
