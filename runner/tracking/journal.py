"""The journal: everything that a run logs, written to local disk first, in order.

A journal is a folder. `owner.json` names the run and the process that writes it, `events.jsonl` has one event per
line, `files/` holds the artifacts, and `sent` the number of bytes of events that MLflow has received. The folder is
removed once everything is delivered, unless the run was interrupted and can be resumed: then `state/` holds what
resuming needs, and the events say what was logged already.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from runner.tracking.process_identity import ProcessIdentity, this_host
from runner.utils.atomic_files import make_folder, sync_folder, write_text
from runner.utils.network_files import modified_at, server_time

Event = dict[str, Any]
HEARTBEAT_INTERVAL = 10.0
"""Seconds between two heartbeats, by which other hosts see that a run's process lives."""
HEARTBEAT_TIMEOUT = 60.0
"""Seconds without a heartbeat after which a process of another host counts as dead."""
LAST_LINES = 1 << 14
"""Bytes at the end of the events in which the last one is looked for first."""
LOCK_NAME = ".lock"
"""Lock file in a journal's folder; held while the journal of a dead process is delivered or taken over."""
TAKEOVER_TIMEOUT = 60.0
"""Seconds that a takeover waits for another process that delivers the same journal."""
RELEASED = "released"
"""File in a journal's folder: its owner is done with it, although it may still run."""
REMOVED_SUFFIX = ".gone"
"""Ends the name of a journal's folder that is being removed."""


@dataclass(frozen=True)
class Owner(ProcessIdentity):
    """The process that writes a journal, the run it is of, and the tracking store of the run."""

    uri: str
    run_id: str

    @classmethod
    def this_process(cls, uri: str, run_id: str) -> Owner:
        """This process, as the owner of a run."""
        return cls(**asdict(ProcessIdentity.current()), uri=uri, run_id=run_id)

    @property
    def valid(self) -> bool:
        """Whether all fields have the right types; a file may hold anything."""
        texts = all(isinstance(each, str) for each in (self.uri, self.run_id, self.host))
        numbers = type(self.pid) is int and self.pid >= 0 and type(self.started) in (int, float)
        return texts and numbers and bool(self.run_id)


class Journal:
    """A journal on disk. `append` may be called from any thread."""

    def __init__(self, folder: Path, owner: Owner) -> None:
        self.folder = folder
        self.owner = owner
        self.messages: list[str] = []
        """What the delivery has to tell the user, as which model became the champion."""
        self.run_deleted = False
        """Whether the delivery found that the run was deleted in MLflow: then its records go nowhere."""
        self._lock = threading.Lock()
        self._time = 0

    @classmethod
    def create(cls, root: Path, owner: Owner) -> Journal:
        """A new journal under `root`."""
        folder = root / owner.run_id
        make_folder(folder / "files")
        write_text(folder / "owner.json", json.dumps(asdict(owner)), 0o600)  # the address may hold a password
        (folder / RELEASED).unlink(missing_ok=True)
        return cls(folder, owner)

    @classmethod
    def take_over(cls, root: Path, owner: Owner) -> Journal:
        """The journal of an interrupted run, taken over from its dead owner. Its present owner may call it again.

        Raises FileExistsError if another process works on the run, FileNotFoundError if it cannot be resumed.
        """
        folder = root / owner.run_id
        try:
            with cls.locked(folder, TAKEOVER_TIMEOUT) as known:
                if known is None or not known.resumable:
                    raise FileNotFoundError(str(folder))
                if known.owner != owner and known.alive:
                    raise FileExistsError(str(folder))
                journal = cls.create(root, owner)
                journal.repair()
                journal._time = max((event.get("time", 0) for event in journal.events()), default=0)
        except Timeout:
            raise FileExistsError(str(folder)) from None
        return journal

    @classmethod
    @contextmanager
    def locked(cls, folder: Path, timeout: float = 0) -> Iterator[Journal | None]:
        """The journal in a folder, locked against delivery and takeover by others; None if it is gone.

        Raises filelock.Timeout if another process still holds the lock after `timeout` s.
        """
        with FileLock(folder / LOCK_NAME, timeout=timeout):
            try:
                yield cls.load(folder)
            finally:
                if not (folder / "owner.json").exists():  # taking the lock created the folder again
                    with suppress(OSError):
                        (folder / LOCK_NAME).unlink()
                        folder.rmdir()

    @classmethod
    def load(cls, folder: Path) -> Journal | None:
        """The journal in a folder; None if there is none, or if it is not complete yet."""
        try:
            owner = Owner(**json.loads((folder / "owner.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return cls(folder, owner) if owner.valid else None

    @classmethod
    def find_all(cls, root: Path) -> list[Journal]:
        """All journals under `root`, by run id; incomplete ones are left out."""
        folders = sorted(path.parent for path in root.glob("*/owner.json"))
        found = [cls.load(folder) for folder in folders if not folder.name.endswith(REMOVED_SUFFIX)]
        return [journal for journal in found if journal is not None]

    @property
    def alive(self) -> bool:
        """Whether the owner still runs; for a process of another host, whether its last heartbeat is recent.

        False from when the owner has released the journal.
        """
        if (self.folder / RELEASED).exists():
            return False
        if self.owner.host == this_host():
            return self.owner.alive
        try:
            return server_time(self.folder) - modified_at(self.folder / "owner.json") < HEARTBEAT_TIMEOUT
        except OSError:
            return True

    def last_heartbeat(self) -> float:
        """When the owner last showed that it is alive, by the file server's clock; 0 if the journal is gone."""
        try:
            return modified_at(self.folder / "owner.json")
        except OSError:
            return 0.0

    def release(self) -> None:
        """Let others take the journal over at once, on any host: its owner will not write to it again."""
        with suppress(OSError):
            write_text(self.folder / RELEASED, "")

    def heartbeat(self) -> None:
        """Show other hosts that the owner is alive."""
        with suppress(OSError):
            os.utime(self.folder / "owner.json")

    @property
    def resumable(self) -> bool:
        """Whether the run was interrupted and has saved what resuming needs."""
        last = self._last_event()
        finished = last is not None and last["kind"] == "end" and last["status"] == "FINISHED"
        return not finished and (self.folder / "state" / "run.json").exists()

    @property
    def ended(self) -> bool:
        """Whether the last event is the run's end, delivered or not."""
        last = self._last_event()
        return last is not None and last["kind"] == "end"

    def now_ms(self) -> int:
        """The time in ms since 1970, as MLflow counts it; it never goes back, whatever the clock does."""
        self._time = max(self._time, now_ms())
        return self._time

    def append(self, event: Event) -> None:
        """Write an event; it is on disk when this returns. Raises OSError and leaves no partial line."""
        line = (json.dumps(event, allow_nan=False) + "\n").encode()
        path = self.folder / "events.jsonl"
        with self._lock, path.open("ab", buffering=0) as file:
            whole = file.tell()
            try:
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError as error:  # a partial line would corrupt the next event
                os.ftruncate(file.fileno(), whole)
                error.filename = str(self.folder)
                raise
            if not whole:
                sync_folder(self.folder)

    def artifact_path(self, name: str) -> Path:
        """Where the artifact `name` lies from when it is written until it is delivered."""
        path = self.folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def events(self) -> list[Event]:
        """All events, delivered or not."""
        path = self.folder / "events.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [event for event in map(_parse, lines) if event is not None]

    def _last_event(self) -> Event | None:
        """The last event; None if there is none. A long run has many, so that only the last lines are read."""
        path = self.folder / "events.jsonl"
        if not path.exists():
            return None
        with path.open("rb") as file:
            size, read = file.seek(0, os.SEEK_END), LAST_LINES
            while True:
                file.seek(max(0, size - read))
                lines = file.read().splitlines()[read < size :]  # the first may be the end of a line
                events = [event for event in map(_parse, lines) if event is not None]
                if events or read >= size:
                    return events[-1] if events else None
                read *= 16

    def pending(self) -> list[tuple[int, Event]]:
        """The events to deliver, each with the byte position after it. A partial last line is not an event."""
        sent = self._sent()
        try:
            with (self.folder / "events.jsonl").open("rb") as file:
                file.seek(sent)
                content = file.read()
        except FileNotFoundError:
            return []
        events = []
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            sent += len(line)
            if (event := _parse(line)) is not None:
                events.append((sent, event))
        return events

    def mark_sent(self, position: int) -> None:
        """Note that all events up to a byte position are delivered."""
        write_text(self.folder / "sent", str(position))

    def repair(self) -> None:
        """Cut off a last line that a dying process left incomplete. Only for the journal of a dead process."""
        events = self.folder / "events.jsonl"
        if events.exists():
            content = events.read_bytes()
            if (whole := content.rfind(b"\n") + 1) < len(content):
                os.truncate(events, whole)

    def unlogged_files(self) -> list[tuple[str, str]]:
        """Name and artifact folder of complete files without an event: saved by a process that then died."""
        logged = {event["file"] for event in self.events() if event["kind"] == "artifact"}
        names = [
            path.relative_to(self.folder / "files")
            for path in (self.folder / "files").rglob("*")
            if path.is_file() and not path.name.startswith(".")
        ]
        return [
            (name.as_posix(), name.parent.as_posix().removeprefix("."))
            for name in sorted(names)
            if name.as_posix() not in logged
        ]

    def remove(self) -> None:
        """Remove the folder. It is renamed first, so that a process that dies here leaves no partial journal."""
        removed = self.folder.with_name(f"{self.folder.name}{REMOVED_SUFFIX}")
        with suppress(OSError):
            self.folder.rename(removed)
        for folder in (removed, self.folder):
            shutil.rmtree(folder, ignore_errors=True)

    def _sent(self) -> int:
        """Bytes delivered. 0 if the file is damaged: delivering events twice is harmless."""
        try:
            sent = int((self.folder / "sent").read_text(encoding="utf-8"))
            with (self.folder / "events.jsonl").open("rb") as events:
                events.seek(sent - 1)
                return sent if events.read(1) == b"\n" else 0
        except (OSError, ValueError, OverflowError):
            return 0


EVENT_FIELDS: dict[str, dict[str, type]] = {
    "metrics": {"step": int, "time": int, "values": dict},
    "params": {"values": dict},
    "tags": {"values": dict},
    "artifact": {"file": str, "folder": str},
    "input": {"name": str, "digest": str, "source": str, "profile": str},
    "model": {"folder": str, "info": dict},
    "begin": {},
    "end": {"status": str, "time": int},
}
"""The fields of an event of each kind. `begin` follows an `end` when a run is resumed; times are ms since 1970."""


def _parse(line: bytes) -> Event | None:
    """The event on a line; None if the line is damaged or has been edited."""
    try:
        event = json.loads(line)
        if "told" in event:  # the name of `info` in journals of earlier versions
            event["info"] = event.pop("told")
        fields = EVENT_FIELDS[event["kind"]]
        valid = all(isinstance(event[name], kind) for name, kind in fields.items())
        kind = (int, float) if event["kind"] == "metrics" else str
        valid = valid and all(isinstance(value, kind) for value in event.get("values", {}).values())
        paths = [event.get(name, "") for name in ("file", "folder")]
        inside = all(not path.startswith("/") and ".." not in path.split("/") for path in paths)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return event if valid and inside else None


def now_ms() -> int:
    """The time in ms since 1970, as MLflow counts it."""
    return int(time.time() * 1000)
