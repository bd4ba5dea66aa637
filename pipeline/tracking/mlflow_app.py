"""MLflow's server as `make ui` and `make server` start it, without features that could run programs on this machine.

MLflow's assistant runs shell commands as the server's user for anyone who reaches the server from this machine. An
experiment may store its artifacts in any folder that this user can write. Other users of the machine can reach every
loopback port. Therefore `make ui` requires a token, `make server` refuses such folders, and both disable the assistant.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

TOKEN = "MLFLOW_UI_TOKEN"  # noqa: S105
ASSISTANT = "/ajax-api/3.0/mlflow/assistant"
# MLflow finds other applications through entry points of installed packages.
ENTRY_POINTS = """\
[mlflow.app]
with-token = pipeline.tracking.mlflow_app:with_token
without-passwords = pipeline.tracking.mlflow_app:without_passwords
with-passwords = pipeline.tracking.mlflow_app:with_passwords
"""


@contextmanager
def python_path() -> Iterator[dict[str, str]]:
    """Yield the environment variable that lets `mlflow server --app-name` find this module's applications."""
    with TemporaryDirectory(prefix="mlflow-app-") as folder:
        package = Path(folder, "mlflow_app-0.dist-info")
        package.mkdir()
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: mlflow-app\nVersion: 0\n")
        (package / "entry_points.txt").write_text(ENTRY_POINTS)
        paths = [folder, str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        yield {"PYTHONPATH": os.pathsep.join(paths)}


def with_token() -> "Guard":
    """The application for one user: it requires the token in the environment."""
    from mlflow.server.fastapi_app import create_fastapi_app

    return Guard(create_fastapi_app(), os.environ[TOKEN])


def without_passwords() -> "Guard":
    """The application for everybody who can reach it."""
    from mlflow.server.fastapi_app import create_fastapi_app

    _refuse_folders_of_this_machine()
    return Guard(create_fastapi_app())


def with_passwords() -> "Guard":
    """The application for users with a name and a password, checked by MLflow's own authentication."""
    from mlflow.server.auth import create_app

    _refuse_folders_of_this_machine()
    return Guard(create_app())


class Guard:
    """ASGI middleware in front of MLflow: blocks the assistant and, given a token, requires it except for `/health`.

    The first request has the token in its address (`?token=`), later ones in a cookie.
    """

    def __init__(self, app: "ASGIApp", token: str | None = None):
        self._app = app
        self._token = token

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        from starlette.requests import HTTPConnection
        from starlette.responses import PlainTextResponse, RedirectResponse, Response

        answer: Response | None = None
        if scope["type"] == "http":
            request = HTTPConnection(scope)
            # Browsers send a host's cookies to all its ports, so the name includes the port.
            cookie = f"mlflow-{request.url.port}"
            if request.url.path.startswith(ASSISTANT):
                answer = PlainTextResponse("the assistant is switched off", 404)
            elif self._is_token(request.query_params.get("token")):
                answer = RedirectResponse(request.url.path, 303)
                answer.set_cookie(cookie, str(self._token), httponly=True, samesite="lax")
            elif self._token and request.url.path != "/health" and not self._is_token(request.cookies.get(cookie)):
                answer = PlainTextResponse("open the address that `make ui` printed", 403)
        await (answer or self._app)(scope, receive, send)

    def _is_token(self, given: str | None) -> bool:
        return bool(self._token and given) and secrets.compare_digest(str(given).encode(), str(self._token).encode())


def _refuse_folders_of_this_machine() -> None:
    """Refuse to create experiments whose artifacts would be stored in a local folder chosen by the client."""
    from flask import Response, request
    from mlflow.protos.service_pb2 import CreateExperiment
    from mlflow.server import app
    from mlflow.server.handlers import _get_request_message

    @app.before_request
    def check() -> Response | None:
        if not request.path.endswith("/mlflow/experiments/create"):
            return None
        try:
            # Let MLflow parse the body, because it accepts several spellings of the field.
            location = _get_request_message(CreateExperiment()).artifact_location
        except Exception:  # MLflow parses it again and reports the error
            return None
        if location and urlsplit(location).scheme in ("", "file"):
            return Response("the server stores all artifacts: omit artifact_location", 403)
        return None
