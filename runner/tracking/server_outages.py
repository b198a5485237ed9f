"""Waits for a tracking server that does not answer, as while it restarts, where nothing can go on without it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.refused import is_permanent, wants_login
from runner.tracking.uploader import NOT_ANSWERING, short_reason
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.file_systems import is_sqlite

T = TypeVar("T")
PATIENCE = 300.0
"""Seconds that the start or the end of a run waits for the server."""
FIRST_RETRY, LAST_RETRY = 0.5, 10.0
"""Seconds between two attempts; doubled after each."""


def wait_for_server(server: TrackingServer, request: Callable[[], T], patience: float | None = None) -> T:
    """Call a function that asks a server until that answers. A local database is asked once.

    Args:
        server: The server.
        request: The function. It must bear repetition: an answer may get lost.
        patience: Seconds to wait; None: `PATIENCE`.

    Raises `UserError` after these seconds without an answer, and at once what the server refuses.
    """
    patience = PATIENCE if patience is None else patience
    start, pause, noted = time.monotonic(), FIRST_RETRY, False
    while True:
        try:
            return request()
        except Exception as error:
            concerns_request = isinstance(error, UserError) or wants_login(error)
            if is_sqlite(server.uri) or concerns_request or is_permanent(error) is not False:
                raise
            reason = short_reason(error)
        if time.monotonic() - start >= patience:
            why = "" if reason == NOT_ANSWERING else f" ({reason})"
            raise UserError(
                f"The tracking server has not answered for {patience:.0f} s{why}; start it, and run the same command"
                " again."
            )
        if not noted:
            Terminal().warn(f"{reason}; waiting up to {patience:.0f} s for it")
            noted = True
        time.sleep(pause)
        pause = min(2 * pause, LAST_RETRY)
