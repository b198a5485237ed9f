"""Waits for a database that does not answer, as while it restarts, and repeats what it has not done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.redaction import redact
from runner.utils.text import one_line

T = TypeVar("T")
PATIENCE = 600.0
"""Seconds that a study waits for its database."""
FIRST_RETRY, LAST_RETRY = 0.2, 5.0
"""Seconds between two attempts; doubled after each."""
OUTAGES = (OperationalError, InterfaceError, PoolTimeout, PendingRollbackError, InternalError)
"""SQLAlchemy's errors of an outage. The last two come where Optuna goes on with a transaction that has failed."""
DRIVER_ERRORS = ("OperationalError", "InterfaceError")
"""Names that all drivers give to errors of a connection or a server, rather than of a statement."""


class DatabaseAwayError(UserError, ConnectionError):
    """The database did not answer, or another process kept the study locked, for longer than a study waits.

    It concerns all trials, as a full disk does.
    """


class Outage:
    """Whether a database is away, and how long to wait for it. Shared by all that use the database for a study.

    Args:
        storage: Address of the database, for messages.
        notify: Shows a line when the database goes away or is back.
    """

    def __init__(self, storage: str, notify: Callable[[str], None] | None = None) -> None:
        self.named = f"the database {redact(storage)}"
        self.notify = notify or Terminal().warn
        self.patience = PATIENCE
        self._away = False

    def retry(self, operation: Callable[[], T]) -> T:
        """Call a function until the database answers. What it does must bear repetition: an answer may get lost.

        Raises `DatabaseAwayError` after `patience` seconds without an answer.
        """
        start, pause = time.monotonic(), FIRST_RETRY
        while True:
            try:
                result = operation()
            except Exception as error:
                if not is_outage(error):
                    raise
                reason = reason_of(error)
            else:
                if self._away:
                    self._away = False
                    self.notify(f"{self.named} answers again")
                return result
            if time.monotonic() - start >= self.patience:
                raise DatabaseAwayError(
                    f"{self.named[0].upper()}{self.named[1:]} has not answered for {self.patience:.0f} s ({reason});"
                    " start it, and run the same command again: it continues the study."
                )
            if not self._away:
                self._away = True
                self.notify(
                    f"{self.named} does not answer ({reason}); waiting up to {self.patience:.0f} s for it"
                )
            time.sleep(pause)
            pause = min(2 * pause, LAST_RETRY)

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Wait only for some seconds within the block."""
        patience, self.patience = self.patience, min(seconds, self.patience)
        try:
            yield
        finally:
            self.patience = patience


def is_outage(error: BaseException) -> bool:
    """Whether an error is of the connection or the server, so that a later attempt may succeed."""
    current: BaseException | None = error
    while current is not None and not isinstance(current, UserError):
        if isinstance(current, OUTAGES):
            return True
        if isinstance(current, DBAPIError) and current.connection_invalidated:
            return True
        if any(base.__name__ in DRIVER_ERRORS for base in type(current).__mro__):  # of the driver itself
            return True
        current = current.__cause__
    return False


def reason_of(error: BaseException) -> str:
    """The driver's reason for a failure, in one line without passwords."""
    while (cause := error.__cause__) is not None:
        error = cause
    if isinstance(error, PendingRollbackError) and error.__context__ is not None:
        error = error.__context__  # what made the transaction fail
    text = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    return redact(one_line(text.splitlines()[0], 200))
