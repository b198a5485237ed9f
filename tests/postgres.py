"""A temporary PostgreSQL server, which can be stopped and started again; tests are skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from requirements import or_skip

from benchmarks.support import postgres
from benchmarks.support.postgres import PASSWORD as PASSWORD


def postgres_server(
    host: str = "127.0.0.1", prefix: Sequence[str] = ()
) -> AbstractContextManager[postgres.PostgresServer]:
    """A server that runs, and is deleted afterwards."""
    return or_skip(postgres.postgres_server(host, prefix))


@contextmanager
def postgres_database() -> Iterator[str]:
    """The address of an empty database, with `PASSWORD`."""
    with postgres_server() as server:
        yield server.address
