"""How long the processes of a launch wait for each other: minutes, but hours where one of them may work for hours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed

LONG = timedelta(hours=6)
"""While one process scans or downloads a large dataset, or computes features, or waits for another run that does."""
DEFAULT = timedelta(minutes=30)
"""Until an experiment says how long (train.timeout)."""
_timeout = DEFAULT


def set_timeout(timeout: timedelta) -> None:
    """Let each following collective operation fail after `timeout`."""
    global _timeout
    _timeout = timeout
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if hasattr(torch.distributed, "set_timeout"):
            torch.distributed.set_timeout(timeout)
        else:  # torch 2.11
            torch.distributed.distributed_c10d._set_pg_timeout(timeout)


@contextmanager
def long_wait() -> Iterator[None]:
    """Within the block, the processes wait hours for each other. All of them enter it together."""
    usual = _timeout
    set_timeout(max(LONG, usual))
    try:
        yield
    finally:
        set_timeout(usual)
