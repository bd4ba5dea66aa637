"""An MNIST mirror: a real HTTP server on loopback that misbehaves on demand."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Mirror:
    """A server of `files` (name → bytes). `requests` lists the names that GET requests asked for.

    `fault` decides how every response fails: None, "404", "html", "cut" (half of the promised bytes, then the
    connection ends) or "silent" (the connection is accepted, but nothing is ever sent).
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fault: str | None = None
        self._stopping = threading.Event()

    def __enter__(self) -> "Mirror":
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.answer(self, with_body=True)

            def do_HEAD(self) -> None:
                mirror.answer(self, with_body=False)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, with_body: bool) -> None:
        name = handler.path.rsplit("/", 1)[-1]
        if with_body:
            self.requests.append(name)
        if self.fault == "silent":
            while not self._stopping.is_set():
                time.sleep(0.05)
            return
        if self.fault == "html":
            body = b"<html><body>Please sign in to this network.</body></html>"
        elif self.fault == "404" or name not in self.files:
            handler.send_error(404)
            return
        else:
            body = self.files[name]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if with_body:
            handler.wfile.write(body[: len(body) // 2] if self.fault == "cut" else body)
