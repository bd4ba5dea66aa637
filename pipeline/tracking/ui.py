"""Start MLflow's UI on the project's store and open the table of runs.

    python -m pipeline.tracking.ui [--port 5000]

It prints one address per sweep, with charts of the sweep's runs, and last the address of the table. Each address
contains a token. Without it the pages do not open, because other users of the machine can reach the port too.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import webbrowser
import zlib
from base64 import b64encode
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipeline.core.errors import PipelineError, run_command
from pipeline.core.metrics import in_mlflow, load_metrics, with_role
from pipeline.core.processes import check_port, sighup_as_exit, sigterm_as_exit, stop_session, wait_until_up
from pipeline.core.repository import main_root
from pipeline.experiment import EXPERIMENT
from pipeline.tracking import mlflow_app
from pipeline.tracking.store import is_server, open_store, search_all, store_name, tracking_uri
from pipeline.tracking.tags import sweeps_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

HOST = "127.0.0.1"
# The view of the table of runs that the last link opens.
VIEW, VIEW_KEY = "Results", "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=5000)
    port = parser.parse_args().port

    root = main_root()
    uri = tracking_uri(root)
    client, experiment_id = open_store()
    pages = links(client, experiment_id)
    if is_server(uri):
        print_addresses(pages, store_name(uri, root) + "/")
        return
    check_port(HOST, port, "make ui")
    token = secrets.token_urlsafe(12)
    # One worker and no job runner: 2 processes instead of 13, and a third of the time to start.
    options = ["--host", HOST, "--port", str(port), "--workers", "1", "--app-name", "with-token"]
    options += ["--uvicorn-opts", "--log-level warning"]  # a line for each request would hide the addresses
    with mlflow_app.python_path() as python_path, private_folder(root) as private:
        # In its own session, because Ctrl-C would otherwise reach it too, and it would print a traceback.
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            start_new_session=True,
            # The address may contain a password, and every user of the machine can read command lines.
            env=os.environ
            | python_path
            | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", mlflow_app.TOKEN: token}
            | {"PYTHONWARNINGS": "ignore"},  # MLflow's own; they would hide the addresses
        )
        try:
            sighup_as_exit()
            with sigterm_as_exit():
                wait_until_up(server, f"http://{HOST}:{port}/health")
                address = f"http://{HOST}:{port}/?token={token}"
                print()
                print_addresses(pages, address)
                print("Ctrl-C ends it.", flush=True)
                if sys.stdout.isatty():
                    # Every user of the machine can read the browser's command line, so the token goes into a file.
                    page = Path(private, "open.html")
                    page.write_text(f'<meta http-equiv="refresh" content="0; url={address}{pages["MLflow"]}">')
                    webbrowser.open(page.as_uri())
                if server.wait() != 0:
                    raise PipelineError("the MLflow server ended; see the error above")
        except KeyboardInterrupt:
            pass
        finally:
            stop_session(server)


def private_folder(root: Path) -> TemporaryDirectory[str]:
    """Create a folder that only this user can enter, in the repository because a snap's browser cannot see /tmp."""
    parent = root / ".dvc/tmp"
    parent.mkdir(parents=True, exist_ok=True)
    return TemporaryDirectory(prefix="mlflow-ui-", dir=parent)


def links(client: "MlflowClient", experiment_id: str) -> dict[str, str]:
    """Return {title: address fragment}: charts of each sweep's runs, oldest first, then the table of runs."""
    # Without workflowType MLflow 3 opens its view for language models, which is empty here.
    runs = f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    names: dict[str, None] = {}
    for run in search_all(client, experiment_id, "tags.sweep LIKE '%' AND attributes.status = 'FINISHED'"):
        names |= dict.fromkeys(sweeps_of(run.data.tags))
    charts = {
        f"Sweep {name!r}": f"{runs}&compareRunsMode=CHART&searchFilter={quote(condition(name))}"
        for name in reversed(names)
    }
    view = f"viewStateShareKey={VIEW_KEY}" if save_view(client, experiment_id) else "searchFilter="
    return charts | {"MLflow": f"{runs}&{view}"}


def save_view(client: "MlflowClient", experiment_id: str) -> bool:
    """Save the columns of the table of runs in MLflow's menu of views. Return False if that is not possible.

    The user may have no permission, and metrics.yaml, which names the columns, may be damaged.
    """
    from mlflow.exceptions import MlflowException

    try:
        metrics = load_metrics()
        columns = [f"metrics.`{in_mlflow(with_role(role, metrics)[0])}`" for role in ("report", "select")]
        columns += [f"params.`{name}`" for name in dict.fromkeys([EXPERIMENT.default_axis, "train.seed"])]
        # The empty filter replaces a sweep's filter, which the page remembers.
        state = {"selectedColumns": columns, "searchFilter": "", "orderByKey": "attributes.start_time"}
        packed = b64encode(zlib.compress(json.dumps(state | {"orderByAsc": False}).encode())).decode()
        view = {"name": VIEW, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"}
        client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{VIEW_KEY}", json.dumps(view))
    except (MlflowException, PipelineError):
        return False
    return True


def condition(sweep: str) -> str:
    """Return MLflow's filter for a sweep's runs: their tag contains its name, possibly next to others."""
    quotation = '"' if "'" in sweep else "'"
    return f"tags.sweep LIKE {quotation}%{sweep}%{quotation}"


def print_addresses(pages: dict[str, str], address: str) -> None:
    for what, page in pages.items():
        print(f"{what} is at {address}{page}")


if __name__ == "__main__":
    run_command(main)
