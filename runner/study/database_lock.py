"""A lock of a study that all hosts share: PostgreSQL's advisory lock, which its connection holds."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType

import sqlalchemy
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from runner.study.database import client_settings, configure_sessions
from runner.study.outages import DatabaseAwayError, Outage, is_outage
from runner.utils.hashing import digest
from runner.utils.heartbeat import Heartbeat

PATIENCE = 600.0
"""Seconds that a process waits while the same other one holds the lock; many may have it in turn meanwhile."""
NOTE_AFTER = 15.0
"""Seconds after which it says so."""
LOCK_TIMEOUT_MS = 5000
"""The database ends a wait after this time; it is asked again, unless the lock has been waited for too long."""
KEEPALIVE_INTERVAL = 15.0
"""Seconds between two signs of life of a process that holds the lock."""
IDLE_TIMEOUT_MS = 60_000
"""After this time without one the database takes the lock from it: it is frozen."""
LOCK_NOT_AVAILABLE = "55P03"
HOLDER = sqlalchemy.text(
    "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND datname = current_database()"
    " AND (classid::bigint << 32) | objid::bigint = :key"
)


class DatabaseLock:
    """A lock of a study in PostgreSQL, to be used in a `with` statement, also nested. For one thread.

    The database releases it when the process ends or its host vanishes. A process that freezes, or is cut off, loses
    it after about a minute; `lost` says so afterwards.

    Args:
        address: Of the database, with its driver.
        study: Name of the study.
        outage: Waits while the database is away.
    """

    def __init__(self, address: str, study: str, outage: Outage) -> None:
        self.study = study
        self.outage = outage
        self.lost = False
        """Whether the lock was lost before the last block that held it had ended."""
        self._key = int(digest("lock of a study", study)[:15], 16)
        self._engine = sqlalchemy.create_engine(
            address, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=client_settings(address)
        )
        name = f"runner on {socket.gethostname()[:30]}, process {os.getpid()}"
        configure_sessions(
            self._engine,
            idle_session_timeout=str(IDLE_TIMEOUT_MS),
            lock_timeout=str(LOCK_TIMEOUT_MS),
            application_name=name,
        )
        self._depth = 0
        self._held: _HeldConnection | None = None

    def __enter__(self) -> DatabaseLock:
        self.acquire()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Wait for the lock as long as others have it in turn.

        Raises `DatabaseAwayError` if one of them keeps it, or the database is away, for too long; and if this process
        has little time, because it stops, after that.
        """
        if self._held is None:
            self.lost = False
            self.outage.retry(self._lock)
        self._depth += 1

    def release(self) -> None:
        """Release the lock."""
        self._depth -= 1
        if self._depth == 0 and self._held is not None:
            held, self._held = self._held, None
            self.lost = not held.unlock(self._key)

    def _lock(self) -> None:
        connection = self._engine.connect()
        try:
            start = since = time.monotonic()
            holder, noted = "", False
            while not self._take_turn(connection):
                if (current := self._holder(connection)) != holder:
                    since, holder = time.monotonic(), current
                waited, patience = time.monotonic() - since, self.outage.patience
                is_late = patience < PATIENCE and time.monotonic() - start > patience
                if is_late or waited > min(PATIENCE, patience):
                    raise DatabaseAwayError(
                        f"The study {self.study!r} has been locked for {waited:.0f} s by {holder}; end that process,"
                        " and run the same command again."
                    )
                if time.monotonic() - start > NOTE_AFTER and not noted:
                    self.outage.notify(f"waiting for {holder}, which locks the study {self.study}")
                    noted = True
            self._held = _HeldConnection(connection)
        except BaseException:  # the database may have given us the lock while a signal stopped the wait
            connection.invalidate()
            connection.close()
            raise

    def _take_turn(self, connection: sqlalchemy.Connection) -> bool:
        try:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": self._key})
        except DBAPIError as error:
            code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
            if code != LOCK_NOT_AVAILABLE:
                raise
            return False
        return True

    def _holder(self, connection: sqlalchemy.Connection) -> str:
        return connection.execute(HOLDER, {"key": self._key}).scalar() or "another process"


class _HeldConnection:
    """A connection that holds the lock, with a thread that shows the database that this process is not frozen."""

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self._connection = connection
        self._guard = threading.Lock()
        self._heartbeat = Heartbeat(self._show_life, KEEPALIVE_INTERVAL)
        self._heartbeat.start()

    def _show_life(self) -> None:
        with (
            self._guard,
            suppress(SQLAlchemyError),
        ):  # one that comes after the end finds the connection closed
            self._connection.execute(sqlalchemy.text("SELECT 1"))

    def unlock(self, key: int) -> bool:
        """Release the lock and close the connection. Returns whether it was held until now."""
        self._heartbeat.stop()
        with self._guard:
            try:
                words = sqlalchemy.text("SELECT pg_advisory_unlock(:key)")
                return bool(self._connection.execute(words, {"key": key}).scalar())
            except Exception as error:
                if not is_outage(error):
                    raise
                return False
            finally:
                self._connection.invalidate()
                self._connection.close()
