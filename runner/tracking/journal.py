"""The journal: what a run records, on local disk first, in order.

A journal is a folder: `owner.json` says whose run it is, `events.jsonl` holds one event a line, `files/` the
artifacts, `sent` how many bytes of the events have been delivered. It goes when all is delivered, unless the run
may go on some day: then `state/` holds what that takes, and the journal what was recorded already.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from runner.utils.atomic_files import make_folder, sync_folder, write_text

Event = dict[str, Any]
PULSE = 10.0
"""Seconds between two signs of life, for other hosts."""
SILENCE = 60.0
"""Seconds without one after which a process of another host is taken to be dead by who wants to go on with its run."""

LOCK = ".lock"
"""In a journal's folder: held by who delivers a dead process's records, or takes them over."""
GRIP = 60.0
"""Seconds that taking a journal over waits for who is delivering it."""
GONE = ".gone"
"""Ends the name of a journal's folder that is being removed."""


@dataclass(frozen=True)
class Owner:
    """The process that writes a journal, and the run it is of."""

    uri: str
    run_id: str
    host: str
    pid: int
    started: float
    """When the process began, in s after the host's start: process ids are used again, and clocks are set."""

    @property
    def sound(self) -> bool:
        """Whether a file's words can be an owner's."""
        texts = all(isinstance(each, str) for each in (self.uri, self.run_id, self.host))
        numbers = type(self.pid) is int and self.pid >= 0 and type(self.started) in (int, float)
        return texts and numbers and bool(self.run_id)

    @property
    def alive(self) -> bool:
        """Whether it still runs; a process of another host is taken to."""
        return self.host != this_host() or is_alive(self.pid, self.started)


def me(uri: str, run_id: str) -> Owner:
    """This process as the owner of a run."""
    return Owner(uri, run_id, this_host(), os.getpid(), birth(os.getpid()))


def this_host() -> str:
    """What process ids are of: a host by name and machine id, and in a container its own process namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text().strip()[:8])
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid").strip("pid:[]"))
    return "/".join(parts)


def birth(pid: int) -> float:
    """Seconds from the host's start to the process's. Raises psutil.NoSuchProcess."""
    return round(psutil.Process(pid).create_time() - psutil.boot_time(), 2)


def is_alive(pid: int, started: float) -> bool:
    """Whether the process `pid` that began `started` s after this host's start still runs."""
    try:
        return abs(birth(pid) - started) < 1 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Journal:
    """A journal on disk. `append` may be called from any thread."""

    def __init__(self, folder: Path, owner: Owner) -> None:
        self.folder = folder
        self.owner = owner
        self.said: list[str] = []
        """What a person should hear of its delivery."""
        self._lock = threading.Lock()
        self._time = 0

    @classmethod
    def create(cls, root: Path, owner: Owner) -> Journal:
        """A new journal under `root`."""
        folder = root / owner.run_id
        make_folder(folder / "files")
        write_text(folder / "owner.json", json.dumps(asdict(owner)), 0o600)  # an address may hold a password
        return cls(folder, owner)

    @classmethod
    def claim(cls, root: Path, owner: Owner) -> Journal:
        """The journal of an interrupted run, taken over from its dead owner; who has it may take it again.

        Raises FileExistsError where somebody works on that run, FileNotFoundError where it has ended for good.
        """
        folder = root / owner.run_id
        try:
            with cls.gripped(folder, GRIP) as known:
                if known is None or not known.stays:
                    raise FileNotFoundError(str(folder))
                if known.owner != owner and known.alive:
                    raise FileExistsError(str(folder))
                journal = cls.create(root, owner)
                journal.mend()
                journal._time = max((event.get("time", 0) for event in journal.events()), default=0)
        except Timeout:
            raise FileExistsError(str(folder)) from None
        return journal

    @classmethod
    @contextmanager
    def gripped(cls, folder: Path, patience: float = 0) -> Iterator[Journal | None]:
        """The journal in a folder, as it is once nobody else delivers it or takes it over; None: it is gone.

        Raises filelock.Timeout where somebody still does after `patience` s.
        """
        with FileLock(folder / LOCK, timeout=patience):
            try:
                yield cls.at(folder)
            finally:
                if not (folder / "owner.json").exists():  # the lock has made the folder anew
                    with suppress(OSError):
                        (folder / LOCK).unlink()
                        folder.rmdir()

    @classmethod
    def at(cls, folder: Path) -> Journal | None:
        """The journal in a folder; None: there is none, or it is not whole yet."""
        try:
            owner = Owner(**json.loads((folder / "owner.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return cls(folder, owner) if owner.sound else None

    @property
    def alive(self) -> bool:
        """Whether its owner lives, as far as can be told: one of another host by its pulse."""
        if self.owner.host == this_host():
            return self.owner.alive
        mark = self.folder / ".now"
        try:
            mark.touch()  # the file system's clock, not this host's
            age = mark.stat().st_mtime - (self.folder / "owner.json").stat().st_mtime
            mark.unlink(missing_ok=True)
        except OSError:
            return True
        return age < SILENCE

    def beat(self) -> None:
        """Give a sign of life."""
        with suppress(OSError):
            os.utime(self.folder / "owner.json")

    @property
    def stays(self) -> bool:
        """Whether its run was interrupted and may go on."""
        events = self.events()
        finished = bool(events) and events[-1]["kind"] == "end" and events[-1]["status"] == "FINISHED"
        return not finished and (self.folder / "state" / "run.json").exists()

    @classmethod
    def find(cls, root: Path) -> list[Journal]:
        """All journals under `root`; a folder that is not whole yet is passed over."""
        folders = sorted(path.parent for path in root.glob("*/owner.json"))
        found = [cls.at(folder) for folder in folders if not folder.name.endswith(GONE)]
        return [journal for journal in found if journal is not None]

    def now_ms(self) -> int:
        """The time as MLflow counts it, ms since 1970; it never goes back, whatever the clock does."""
        self._time = max(self._time, now_ms())
        return self._time

    def append(self, event: Event) -> None:
        """Write an event; it is on disk when this returns."""
        line = (json.dumps(event, allow_nan=False) + "\n").encode()
        path = self.folder / "events.jsonl"
        with self._lock, path.open("ab", buffering=0) as file:
            whole = file.tell()
            try:
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError as error:  # half a line would spoil the next one
                os.ftruncate(file.fileno(), whole)
                error.filename = str(self.folder)
                raise
            if not whole:
                sync_folder(self.folder)

    def stage(self, name: str) -> Path:
        """The path in the journal that the artifact `name` is written to and delivered from."""
        path = self.folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def pending(self) -> list[tuple[int, Event]]:
        """The events that are not delivered, each with the position behind it. A torn last line is no event."""
        sent = self._sent()
        try:
            content = (self.folder / "events.jsonl").read_bytes()[sent:]
        except FileNotFoundError:
            return []
        events = []
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            sent += len(line)
            if (event := _event(line)) is not None:
                events.append((sent, event))
        return events

    def mark_sent(self, position: int) -> None:
        """All events up to `position` are delivered."""
        write_text(self.folder / "sent", str(position))

    def mend(self) -> None:
        """Cut off a line that a dying process left half written. Only for a dead owner's journal."""
        events = self.folder / "events.jsonl"
        if events.exists():
            content = events.read_bytes()
            if (whole := content.rfind(b"\n") + 1) < len(content):
                os.truncate(events, whole)

    def unannounced(self) -> list[tuple[str, str]]:
        """Name and folder of whole files that no event speaks of: what a dying process had saved."""
        spoken = {event["file"] for event in self.events() if event["kind"] == "artifact"}
        names = [
            path.relative_to(self.folder / "files")
            for path in (self.folder / "files").rglob("*")
            if path.is_file() and not path.name.startswith(".")
        ]
        return [
            (name.as_posix(), name.parent.as_posix().removeprefix("."))
            for name in sorted(names)
            if name.as_posix() not in spoken
        ]

    @property
    def ended(self) -> bool:
        """Whether its run's end is written down, or already delivered."""
        events = self.events()
        return bool(events) and events[-1]["kind"] == "end"

    def remove(self) -> None:
        """All is delivered. It goes at once: what a dying process leaves of it is no journal, but rubbish."""
        gone = self.folder.with_name(f"{self.folder.name}{GONE}")
        with suppress(OSError):
            self.folder.rename(gone)
        for each in (gone, self.folder):
            shutil.rmtree(each, ignore_errors=True)

    def events(self) -> list[Event]:
        """All of them, delivered or not."""
        path = self.folder / "events.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [event for event in map(_event, lines) if event is not None]

    def _sent(self) -> int:
        """How much has been delivered: none, where what says so is damaged, since to deliver again does no harm."""
        try:
            sent = int((self.folder / "sent").read_text(encoding="utf-8"))
            with (self.folder / "events.jsonl").open("rb") as events:
                events.seek(sent - 1)
                return sent if events.read(1) == b"\n" else 0
        except (OSError, ValueError, OverflowError):
            return 0


SHAPES: dict[str, dict[str, type]] = {
    "metrics": {"step": int, "time": int, "values": dict},
    "params": {"values": dict},
    "tags": {"values": dict},
    "artifact": {"file": str, "folder": str},
    "input": {"name": str, "digest": str, "source": str, "profile": str},
    "model": {"folder": str, "told": dict},
    "begin": {},
    "end": {"status": str, "time": int},
}
"""What an event of each kind holds."""


def _event(line: bytes) -> Event | None:
    """The event of a line; None where a damaged disk, or somebody, has left something else."""
    try:
        event = json.loads(line)
        shape = SHAPES[event["kind"]]
        fits = all(isinstance(event[name], kind) for name, kind in shape.items())
        kind = (int, float) if event["kind"] == "metrics" else str
        fits = fits and all(isinstance(value, kind) for value in event.get("values", {}).values())
        names = [event.get(name, "") for name in ("file", "folder")]
        inside = all(not name.startswith("/") and ".." not in name.split("/") for name in names)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return event if fits and inside else None


def now_ms() -> int:
    """The time as MLflow counts it: ms since 1970."""
    return int(time.time() * 1000)
