"""HTTP servers that give every request the same answer, and addresses with a password in them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SECRET = "s3cret-token"
"""The password; no output and no file may hold it."""


@contextmanager
def answering(status: int, body: bytes = b"{}") -> Iterator[str]:
    """A server that answers with this status and body, and hangs up if the status is 0: its address, with `SECRET`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 (the base class looks it up by this name)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://user:{SECRET}@127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def unused_address() -> Iterator[str]:
    """An address with `SECRET` at which nobody answers."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://user:{SECRET}@127.0.0.1:{reserved.getsockname()[1]}"


def assert_holds_no_secret(folder: Path, secret: str = SECRET) -> None:
    """No file below a folder holds the secret, except owner.json, which only its user can read."""
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "owner.json":
            assert secret.encode() not in path.read_bytes(), path
