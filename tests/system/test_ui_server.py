"""`runner ui` serves this machine only, and refuses requests from other sites."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import runner, user_environment
from helpers import listening
from stores import copy_store

pytestmark = pytest.mark.slow
CREATE = "/api/2.0/mlflow/experiments/create"
SEARCH = "/api/2.0/mlflow/experiments/search"
Server = tuple[str, int]
"""Host and port."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Server]:
    """`runner ui` on a free port. Variables of the environment that would open it to others have no effect."""
    folder = tmp_path_factory.mktemp("ui")
    root = copy_store(mlflow_template, folder / "mlruns")
    command = runner("ui", "--tracking.root", str(root), "--port", "{port}")
    environment = user_environment(MLFLOW_HOST="0.0.0.0", MLFLOW_DISABLE_TELEMETRY="false")  # noqa: S104
    with listening(command, "/health", folder / "output.txt", environment) as address:
        yield "127.0.0.1", int(address.rpartition(":")[2])


def status(server: Server, method: str, path: str, body: str = "", **headers: str) -> int:
    """The status of the server's answer to a request."""
    connection = http.client.HTTPConnection(*server, timeout=60)
    connection.request(method, path, body or None, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse().status
    connection.close()
    return answer


def test_the_server_is_reachable_from_this_machine_only(server: Server) -> None:
    listening_on = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == server[1]
    }
    assert listening_on == {"127.0.0.1"}
    interfaces = itertools.chain.from_iterable(psutil.net_if_addrs().values())
    for host in {each.address for each in interfaces if each.family == socket.AF_INET}:
        if not host.startswith("127."):
            with socket.socket() as probe:
                probe.settimeout(5)
                assert probe.connect_ex((host, server[1])), host


def test_requests_with_foreign_hosts_or_origins_are_refused(server: Server) -> None:
    """Another site can neither read the records (DNS rebinding) nor change them (cross-site requests)."""
    own = f"127.0.0.1:{server[1]}"
    assert status(server, "POST", SEARCH, '{"max_results": 1}', Host=own) == 200
    assert status(server, "GET", "/", Host=own) == 200
    for host in ("evil.example", f"evil.example:{server[1]}", "127.0.0.1.evil.example"):
        assert status(server, "POST", SEARCH, '{"max_results": 1}', Host=host) == 403
        assert status(server, "GET", "/", Host=host) == 403
        assert status(server, "GET", "/get-artifact?path=x&run_uuid=y", Host=host) == 403
    for origin in ("http://evil.example", "https://localhost.evil.example", "null"):
        name = json.dumps({"name": f"by {origin}"})
        assert status(server, "POST", CREATE, name, Host=own, Origin=origin) == 403
    assert status(server, "POST", CREATE, '{"name": "mine"}', Host=own, Origin=f"http://{own}") == 200
