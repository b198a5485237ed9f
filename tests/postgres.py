"""A temporary PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "hush-hush"
"""The database's password."""


def _programs() -> Path | None:
    """The folder of initdb and pg_ctl."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
    on_path = shutil.which("pg_ctl")
    folders = [*installed[::-1], *([Path(on_path).parent] if on_path else [])]
    return next((path for path in folders if (path / "initdb").exists() and (path / "pg_ctl").exists()), None)


@contextmanager
def postgres_database() -> Iterator[str]:
    """The address of an empty database, with `PASSWORD`. Skips the test if PostgreSQL is not installed."""
    pytest.importorskip("psycopg")
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        import pwd

        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="runner-pg-", dir="/tmp"))  # the path of a socket must be short
    password_file = folder / "secret"
    password_file.write_text(f"{PASSWORD}\n")
    if user:
        shutil.chown(folder, "postgres", "postgres")
        shutil.chown(password_file, "postgres", "postgres")

    def call(program: str, *arguments: str) -> None:
        process = subprocess.run(
            [str(programs / program), "-D", str(folder / "data"), *arguments],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **user,
        )
        assert process.returncode == 0, process.stderr

    try:
        call(
            *("initdb", "-U", "me", "-A", "scram-sha-256", "--no-sync"),
            *("--pwfile", str(password_file), "-E", "UTF8", "--locale", "C"),
        )
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        call("pg_ctl", "-l", str(folder / "log"), "-w", "-o", options, "start")
        try:
            yield f"postgresql://me:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
