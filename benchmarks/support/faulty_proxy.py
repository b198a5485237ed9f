"""An HTTP proxy in front of a tracking server that can be made to fail."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from typing import Any

FAULTS = ("refused", "lost", "errors", "silent")
"""refused: the connection is closed at once; lost: the request arrives, its answer does not; errors: status 500;
silent: closed without an answer after a second."""


class FaultyProxy(http.server.ThreadingHTTPServer):
    """Forwards requests to a server on this host.

    `fault` is one of `FAULTS`, or None to forward requests and answers; it counts from the next request on.

    Args:
        server_port: Port of the server.
    """

    daemon_threads = True

    def __init__(self, server_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target_port = server_port
        self.fault: str | None = None
        self.sizes: list[int] = []
        """Bytes of the body of each request that was forwarded."""
        self.seconds: list[float] = []
        """That the server took for each."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Address of the proxy."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: broken connections are intended."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def _handle(self) -> None:
        fault = self.server.fault
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.close_connection = True
        if fault == "silent":
            time.sleep(1)
        if fault in ("refused", "silent"):
            return
        if fault == "errors":
            self.send_error(500)
            return
        start = time.perf_counter()
        try:
            response, content = self._forward(body)
        except OSError:  # the server itself is down
            return
        self.server.sizes.append(len(body))
        self.server.seconds.append(time.perf_counter() - start)
        if fault != "lost":
            self._answer(response, content)

    def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        port = self.server.target_port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            headers = {**self.headers, "Host": f"127.0.0.1:{port}", "Connection": "close"}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def _answer(self, response: http.client.HTTPResponse, content: bytes) -> None:
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815 (names of the base class)
