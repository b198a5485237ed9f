"""Identifies a process across hosts, so that others can tell whether it still runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from runner.utils.hashing import digest

START_TOLERANCE = 1.0
"""Seconds by which two readings of one process's start time may differ."""


@dataclass(frozen=True)
class ProcessIdentity:
    """A process: its host, its id, and when it started, because process ids are reused."""

    host: str
    pid: int
    started: float
    """Seconds from the host's boot to the start of the process; unlike the time of day, nobody sets it back."""

    @classmethod
    def current(cls) -> ProcessIdentity:
        """This process."""
        return ProcessIdentity(this_host(), os.getpid(), process_start_time(os.getpid()))

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> ProcessIdentity | None:
        """The process that the tags of a run name; None if they name none, as after a person changed them."""
        try:
            host, pid, started = tags["runner.host"], int(tags["runner.pid"]), float(tags["runner.started"])
        except (KeyError, ValueError):
            return None
        return ProcessIdentity(host, pid, started) if pid >= 0 else None

    def tags(self) -> dict[str, str]:
        """The MLflow tags that name this process as the owner of a run."""
        return {"runner.host": self.host, "runner.pid": str(self.pid), "runner.started": str(self.started)}

    @property
    def alive(self) -> bool:
        """Whether it still runs. Always true for a process of another host, where we cannot look."""
        return self.host != this_host() or is_alive(self.pid, self.started)


def this_host() -> str:
    """The scope of a process id: host name, machine id and, in a container, its process namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text().strip()[:8])
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid").strip("pid:[]"))
    return "/".join(parts)


def this_boot() -> str:
    """A digest of `this_host()` and of its boot: two hosts of one launch may have one name and one machine id."""
    with suppress(OSError):
        return digest(this_host(), Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    return digest(this_host())


def process_start_time(pid: int) -> float:
    """Seconds from the host's boot to the start of a process. Raises psutil.NoSuchProcess."""
    return round(psutil.Process(pid).create_time() - psutil.boot_time(), 2)


def is_alive(pid: int, started: float) -> bool:
    """Whether the process `pid`, started `started` s after the boot of this host, still runs."""
    try:
        same = abs(process_start_time(pid) - started) < START_TOLERANCE
        return same and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
