"""Access to MLflow through `make ui` and `make server`."""

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest

from pipeline.tracking.mlflow_app import ASSISTANT, Guard, python_path
from tests.helpers import environment


async def mlflow(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"MLflow"})


def ask(guard: Guard, path: str, query: str = "", cookie: str = "") -> tuple[int, dict[bytes, bytes]]:
    """Send a request; return the status and headers of the response."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "scheme": "http"}
    scope |= {"server": ("127.0.0.1", 5000), "headers": [(b"cookie", cookie.encode()), (b"host", b"127.0.0.1:5000")]}
    asyncio.run(guard(scope, None, send))  # type: ignore[arg-type]
    return sent[0]["status"], dict(sent[0]["headers"])


def test_only_the_token_opens_the_pages() -> None:
    """Only the right token opens the pages; in the address it sets a cookie. `/health` needs no token."""
    guard = Guard(mlflow, "right")
    assert [ask(guard, "/", query)[0] for query in ("", "token=", "token=wrong")] == [403, 403, 403]
    assert ask(guard, "/api/2.0/mlflow/runs/search", cookie="mlflow-5000=wrong")[0] == 403
    assert ask(guard, "/health")[0] == 200
    status, headers = ask(guard, "/", "token=right")
    assert (status, headers[b"location"]) == (303, b"/")
    cookie = headers[b"set-cookie"].decode()
    assert "HttpOnly" in cookie
    assert ask(guard, "/api/2.0/mlflow/runs/search", cookie=cookie.partition(";")[0])[0] == 200


@pytest.mark.parametrize("token", [None, "right"])
def test_nobody_reaches_the_assistant(token: str | None) -> None:
    """The assistant, which runs shell commands as the server's user, is blocked with and without a token."""
    guard = Guard(mlflow, token)
    for path in (ASSISTANT, f"{ASSISTANT}/config", f"{ASSISTANT}/message"):
        assert ask(guard, path, cookie="mlflow-5000=right")[0] == 404
    assert ask(guard, "/", cookie="mlflow-5000=right")[0] == 200


ON_THE_REAL_APPLICATION = """
import json
from pipeline.tracking.mlflow_app import without_passwords
without_passwords()
from mlflow.server import app
create, client = "/api/2.0/mlflow/experiments/create", app.test_client()
asked = [{"name": str(i), "artifact_location": place} for i, place in enumerate(["file:///x", "/x", "x", "", "s3://x"])]
asked += [{"name": "camel", "artifactLocation": "/x"}, json.dumps({"name": "twice", "artifact_location": "/x"})]
asked += [{"name": "both", "artifactLocation": "/x", "artifact_location": "s3://x"}, "{", 5]
print(json.dumps([client.post(create, json=body).status_code for body in asked]))
"""


def test_a_teams_experiments_keep_their_artifacts_with_the_server(store: str) -> None:
    """On MLflow's own application, a local artifact folder from a client is refused, because the server would write it.

    This holds for each spelling that MLflow accepts. MLflow itself answers malformed requests.
    """
    with python_path() as variable:
        settings = {"_MLFLOW_SERVER_FILE_STORE": store, "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/"}
        done = subprocess.run(
            [sys.executable, "-c", ON_THE_REAL_APPLICATION],
            env=environment(**settings, **variable),
            capture_output=True,
            text=True,
        )
    assert done.stdout.strip() == "[403, 403, 403, 200, 200, 403, 403, 400, 500, 500]", done.stderr


def test_mlflow_finds_the_applications() -> None:
    """MLflow finds the applications through entry points that only its process sees."""
    find = "from mlflow.server import _find_app; print(_find_app('with-token'))"
    with python_path() as variable:
        assert os.environ.get("PYTHONPATH", "") in variable["PYTHONPATH"]
        done = subprocess.run([sys.executable, "-c", find], env=environment(**variable), capture_output=True, text=True)
    assert done.stdout.strip() == "pipeline.tracking.mlflow_app:with_token", done.stderr
