"""torchvision's downloads wait for ever by default; ours give up."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT = 10.0
"""Seconds without an answer after which a download has failed."""


@contextmanager
def impatient() -> Iterator[None]:
    """Within the block a connection that is silent for `TIMEOUT` raises an OSError."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
