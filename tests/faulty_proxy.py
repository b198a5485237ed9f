"""A real MLflow server that can be restarted, and a proxy before it that refuses, hangs, fails or loses answers."""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from helpers import listening
from stores import copy_store

SLOW = 0.3
"""Seconds that a slow server takes for each answer."""
FAULTS = ("refuse", "hang", "500", "lose the answer", "slow")
LOCALHOST = "127.0.0.1"
SERVER_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops"


class FaultyProxy:
    """Passes requests on to a server as `mode` says: "pass" or one of `FAULTS`.

    Every connection takes one request and is closed after the answer, so that a new mode applies to the next request.
    """

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.mode = "pass"
        self.met: list[str] = []
        """The mode that each request met."""
        self._closed = threading.Event()
        self._listener: socket.socket | None = None
        with socket.socket() as free:
            free.bind((LOCALHOST, 0))
            self.port = free.getsockname()[1]
        self._listen()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://{LOCALHOST}:{self.port}"

    def set(self, mode: str) -> None:
        """Change the mode for the connections to come."""
        self.mode = mode
        if mode == "refuse":
            if self._listener is not None:
                self._listener.close()
            self._listener = None
        elif self._listener is None:
            self._listen()

    def close(self) -> None:
        self._closed.set()
        self.set("refuse")

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOCALHOST, self.port))
        listener.listen(50)
        listener.settimeout(
            0.05
        )  # not select(), which takes no descriptor above 1023: a test session has more
        self._listener = listener

    def _serve(self) -> None:
        while not self._closed.is_set():
            listener = self._listener
            try:
                if listener is None:
                    time.sleep(0.01)
                    continue
                connection, _ = listener.accept()
            except OSError:  # nobody came, or it was closed in the meantime
                continue
            threading.Thread(target=self._answer, args=(connection, self.mode), daemon=True).start()

    def _answer(self, connection: socket.socket, mode: str) -> None:
        with connection, suppress(OSError):
            request = _read_request(connection)
            if not request:
                return
            self.met.append(mode)
            if mode == "hang":
                while self.mode == "hang" and not self._closed.is_set():
                    time.sleep(0.05)
                return
            if mode == "500":
                connection.sendall(SERVER_ERROR)
                return
            if mode == "slow":
                time.sleep(SLOW)
            answer = self._ask_server(request)
            if mode != "lose the answer":
                connection.sendall(answer)

    def _ask_server(self, request: bytes) -> bytes:
        """The server's complete answer."""
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        answer = b""
        with socket.create_connection((LOCALHOST, self.server_port), timeout=60) as server:
            server.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
            while part := server.recv(1 << 16):
                answer += part
        return answer


def _read_request(connection: socket.socket) -> bytes:
    """A complete request, with its body."""
    content = b""
    connection.settimeout(60)
    while b"\r\n\r\n" not in content:
        if not (part := connection.recv(1 << 16)):
            return b""
        content += part
    head, _, body = content.partition(b"\r\n\r\n")
    fields = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        while not body.endswith(b"0\r\n\r\n"):
            body += connection.recv(1 << 16)
    while len(body) < int(headers.get(b"content-length", 0)):
        body += connection.recv(1 << 16)
    return head + b"\r\n\r\n" + body


class MlflowServer:
    """An MLflow server as a process of its own, on a database in a folder; it can be stopped and started again."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        self.database = copy_store(template, folder) / "mlflow.db"
        self.port = 0
        self._stack = ExitStack()

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", LOCALHOST, "--port", "{port}"),
            *("--backend-store-uri", f"sqlite:///{self.database}", "--workers", "1"),
            *("--artifacts-destination", str(self.folder / "artifacts"), "--serve-artifacts"),
        ]
        # A server is ready once it answers from its database: /health answers before that is loaded.
        ready = "/api/2.0/mlflow/experiments/search?max_results=1"
        address = self._stack.enter_context(listening(command, ready, self.folder / "server.txt"))
        self.port = int(address.rpartition(":")[2])

    def stop(self) -> None:
        self._stack.close()
        self._stack = ExitStack()
