"""A timeout for torchvision's downloads, which have none by default."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT = 10.0
"""Seconds without an answer."""


@contextmanager
def download_timeout() -> Iterator[None]:
    """Within the block, a connection that is silent for `TIMEOUT` seconds raises an OSError."""
    default = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(default)
