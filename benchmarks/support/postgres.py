"""A temporary PostgreSQL server, which can be stopped and started again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from benchmarks.support.requirements import MissingRequirementError

PASSWORD = "hush-hush"  # noqa: S105 (of a temporary server)
"""The database's password."""


def _programs() -> Path | None:
    """The folder of initdb and pg_ctl."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
    on_path = shutil.which("pg_ctl")
    folders = [*installed[::-1], *([Path(on_path).parent] if on_path else [])]
    return next((path for path in folders if (path / "initdb").exists() and (path / "pg_ctl").exists()), None)


class PostgresServer:
    """A PostgreSQL server with an empty database and `PASSWORD`.

    Raises `MissingRequirementError` if PostgreSQL is not installed.

    Args:
        host: The address that it listens on.
        prefix: Words before each command, as `nsenter … --`, to run it on another host of `hosts.py`.
    """

    def __init__(self, host: str = "127.0.0.1", prefix: Sequence[str] = ()) -> None:
        if find_spec("psycopg") is None:
            raise MissingRequirementError("psycopg is not installed")
        programs = _programs()
        if programs is None:
            raise MissingRequirementError("PostgreSQL is not installed")
        self._programs = programs
        self._host, self._prefix = host, prefix
        self._user: list[str] = []
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            import pwd

            try:
                account = pwd.getpwnam("postgres")
            except KeyError:
                raise MissingRequirementError(
                    "PostgreSQL does not run as root, and there is no user postgres"
                ) from None
            self._user = [
                "setpriv",
                f"--reuid={account.pw_uid}",
                f"--regid={account.pw_gid}",
                "--clear-groups",
            ]
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            self.port: int = reserved.getsockname()[1]
        self.folder = Path(tempfile.mkdtemp(prefix="runner-pg-", dir="/tmp"))  # sockets have short paths
        secret = self.folder / "secret"
        secret.write_text(f"{PASSWORD}\n")
        if self._user:
            shutil.chown(self.folder, "postgres", "postgres")
            shutil.chown(secret, "postgres", "postgres")
        self._call(
            *("initdb", "-U", "me", "-A", "scram-sha-256", "--no-sync"),
            *("--pwfile", str(secret), "-E", "UTF8", "--locale", "C"),
        )
        with (self.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 scram-sha-256\n")

    @property
    def address(self) -> str:
        """Of the database."""
        return f"postgresql://me:{PASSWORD}@{self._host}:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -k {self.folder} -c listen_addresses={self._host} -c fsync=off"
        self._call("pg_ctl", "-l", str(self.folder / "log"), "-w", "-o", options, "start")

    def stop(self) -> None:
        """Stop it at once, as a crash does."""
        self._call("pg_ctl", "-w", "-m", "immediate", "stop")

    def delete(self) -> None:
        """Stop it, if it runs, and remove its files."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self, program: str, *arguments: str) -> None:
        process = subprocess.run(
            [
                *(*self._prefix, *self._user, str(self._programs / program)),
                *("-D", str(self.folder / "data"), *arguments),
            ],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if process.returncode:
            raise RuntimeError(process.stderr)


@contextmanager
def postgres_server(host: str = "127.0.0.1", prefix: Sequence[str] = ()) -> Iterator[PostgresServer]:
    """A server that runs, and is deleted afterwards."""
    server = PostgresServer(host, prefix)
    try:
        server.start()
        yield server
    finally:
        server.delete()
