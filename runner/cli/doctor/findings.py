"""What a check gets, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.tracking.mlflow_server import TrackingServer
from runner.utils.console import Terminal
from runner.utils.network_files import server_time

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Finding:
    """A problem that a check found."""

    where: str
    what: str
    done: str = ""
    """How it was repaired; empty if it was not."""


@dataclass(frozen=True)
class Examination:
    """What is checked, and whether problems are repaired.

    Args:
        server: The tracking store; its root holds journals and studies.
        client: Of that store; None if it does not answer or does not exist.
        cache: The experiments' cache, which holds cached features.
        repair: Repair what can be repaired; else only report it.
        terminal: Shows progress.
        lost_hosts: Names of other hosts that a user says are gone.
    """

    server: TrackingServer
    client: MlflowClient | None
    cache: Path
    repair: bool
    terminal: Terminal
    lost_hosts: Collection[str] = ()

    def resolve(self, where: str | Path, what: str, repair: Callable[[], object], done: str) -> Finding:
        """A finding, after calling `repair` if this examination repairs. `done` says what that did."""
        if not self.repair:
            return Finding(str(where), what)
        try:
            repair()
        except Exception as error:  # whatever it is, the user must know that the problem is still there
            return Finding(str(where), f"{what}; the repair failed: {' '.join(str(error).split())}")
        return Finding(str(where), what, done)


Check = Callable[[Examination], Iterator[Finding]]


def age(path: Path) -> float:
    """Seconds since a file or folder was modified, by the clock of its file system; 0 if it is gone or read-only."""
    with suppress(OSError):
        return server_time(path.parent) - path.stat().st_mtime
    return 0.0
