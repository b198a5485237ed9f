"""Identifies a process across hosts, so that others can tell whether it still runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

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
    """The scope of a process id: host name, machine id, process namespace (a container has its own), and boot.

    Copies of a virtual machine have one name and one machine id, but each was booted by itself.
    """
    return "/".join([_this_machine(), _file_text("/proc/sys/kernel/random/boot_id")[:8]])


def _this_machine() -> str:
    """What `this_host()` begins with, also after the next boot."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return "/".join([socket.gethostname(), _file_text("/etc/machine-id")[:8], namespace])


def _file_text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8").strip()
    return ""


def is_earlier_boot(host: str) -> bool:
    """Whether a process's host is this machine before it was booted, as far as names tell: it may be a copy of it."""
    # Records of earlier versions do not name the boot.
    return host != this_host() and f"{host}/".startswith(f"{_this_machine()}/")


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
