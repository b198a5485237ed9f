"""Claims on features that a run is about to compute, so that no other run computes them as well.

A claim is a file in the store's folder. It covers the images of a view whose digests begin with some bits. No locks are
needed, which network file systems may lack or keep to one host: a hard link cannot be made if its name exists.

The owner touches its claim every few seconds. A claim that was not touched for longer than the lease, by the clock of
the file server, may be removed by anybody: its owner is dead or cut off. If it comes back, some features are computed
twice, which costs time but changes nothing.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runner.tracking.process_identity import ProcessIdentity
from runner.utils.atomic_files import make_folder
from runner.utils.heartbeat import Heartbeat
from runner.utils.network_files import is_gone, server_time

LEASE = 30.0
"""Seconds without a sign of life after which a claim no longer counts."""
RENEWAL = 5.0
"""Seconds between two signs of life."""
LEFT_OVER = 600.0
"""Seconds after which a temporary file was left by a killed process: it is needed for milliseconds."""
NAME = re.compile(r"(-?[0-9]{1,18})\.([01]*)")
"""Name of a claim's file: view, and the bits that digests begin with."""
NO_HARD_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


@dataclass(frozen=True)
class Claim:
    """A claim as it was read."""

    view: int
    bits: str
    """It covers digests that begin with these; none: all."""
    owner: ProcessIdentity | None
    """None if its file is damaged."""
    token: str
    """Tells it from others of the same name."""
    touched: float
    """When its owner touched it last, by the clock of the file server."""

    @property
    def name(self) -> str:
        """Of its file."""
        return claim_name(self.view, self.bits)

    @property
    def host_name(self) -> str:
        """The owner's host, for people."""
        return self.owner.host.partition("/")[0] if self.owner else "an unknown host"

    def overlaps(self, view: int, bits: str) -> bool:
        """Whether it covers digests that another claim would cover."""
        return view == self.view and (bits.startswith(self.bits) or self.bits.startswith(bits))

    def has_ended(self, now: float) -> bool:
        """Whether its owner is known to be dead, or has given no sign of life for the time of the lease."""
        return now - self.touched > LEASE or (self.owner is not None and not self.owner.alive)


class Claims:
    """The claims on the features of one store, those of this object and those of others.

    Args:
        folder: For the claims' files; it is made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._own: dict[str, str] = {}
        """Token by name."""
        self._heartbeat = Heartbeat(self._renew, RENEWAL)

    def others(self, view: int) -> list[Claim]:
        """The claims of others on features of a view. Removes those that have ended. Raises OSError."""
        make_folder(self.folder)
        now = server_time(self.folder)
        claims = []
        for name in os.listdir(self.folder):
            if name.startswith("."):
                self._remove_left_over(name, now)
            elif (claim := self._read(name)) is not None and self._own.get(name) != claim.token:
                if claim.has_ended(now):
                    self._remove(claim)
                elif claim.view == view:
                    claims.append(claim)
        return claims

    def claim(self, view: int, parts: Iterable[str]) -> list[str]:
        """Claim the digests that begin with the bits of each part. Returns the parts that are claimed now.

        Another process has claimed the others, or a part of them. Call `others` first: it removes claims that have
        ended. Two processes that claim overlapping parts at the same moment may both go away empty-handed; they try
        again after random pauses. Raises OSError.
        """
        make_folder(self.folder)
        created = [bits for bits in parts if self._create(claim_name(view, bits))]
        self._heartbeat.start()
        # An overlapping claim of another length has another name, so that making ours could not fail.
        others = self.others(view) if created else []
        kept = [bits for bits in created if not any(other.overlaps(view, bits) for other in others)]
        self.release(claim_name(view, bits) for bits in created if bits not in kept)
        return kept

    def release(self, names: Iterable[str] | None = None) -> None:
        """Give up claims of this object: those with these names, or all."""
        for name in [*self._own] if names is None else names:
            token = self._own.pop(name)
            with suppress(OSError):
                if (claim := self._read(name)) is not None and claim.token == token:
                    (self.folder / name).unlink()
        if not self._own:
            self._heartbeat.stop()

    def _create(self, name: str) -> bool:
        token = secrets.token_hex(8)
        content = dataclasses.asdict(ProcessIdentity.current()) | {"token": token}
        temporary, path = self.folder / f".{token}.new", self.folder / name
        try:
            temporary.write_text(json.dumps(content))
            os.link(temporary, path)
        except FileExistsError:  # or it is ours: a network file system may send a request twice
            if (claim := self._read(name)) is None or claim.token != token:
                return False
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            try:
                with path.open("x") as file:
                    json.dump(content, file)
            except FileExistsError:
                return False
        finally:
            with suppress(OSError):
                temporary.unlink()
        self._own[name] = token
        return True

    def _renew(self) -> None:
        for name, token in [*self._own.items()]:
            with suppress(OSError):
                # After this process was stopped for longer than the lease, another may own a claim of this name.
                if (claim := self._read(name)) is not None and claim.token == token:
                    os.utime(self.folder / name)

    def _read(self, name: str, path: Path | None = None) -> Claim | None:
        """The claim of this name; None if it is gone. Opened, since `stat` may say what was true a minute ago."""
        if not (parts := NAME.fullmatch(name)):
            return None
        try:
            with (path or self.folder / name).open() as file:
                touched = os.fstat(file.fileno()).st_mtime
                content = file.read()
        except OSError as error:
            if not is_gone(error):
                raise
            return None
        try:
            values = json.loads(content)
            owner = ProcessIdentity(str(values["host"]), int(values["pid"]), float(values["started"]))
            token = str(values["token"])
        except (ValueError, KeyError, TypeError):
            owner, token = None, ""
        return Claim(int(parts[1]), parts[2], owner, token, touched)

    def _remove(self, claim: Claim) -> None:
        """Remove a claim that has ended, unless somebody has replaced it by a new one of the same name."""
        path, aside = self.folder / claim.name, self.folder / f".{secrets.token_hex(8)}.ended"
        try:
            path.rename(aside)
            moved = self._read(claim.name, aside)
            if moved is not None and moved.token != claim.token:
                os.link(aside, path)
        except OSError as error:  # others do the same; and what is lost here is computed twice, no more
            if not is_gone(error) and error.errno not in (*NO_HARD_LINKS, errno.EEXIST):
                raise
        with suppress(OSError):
            aside.unlink()

    def _remove_left_over(self, name: str, now: float) -> None:
        with suppress(OSError):
            if now - (self.folder / name).stat().st_mtime > LEFT_OVER:
                (self.folder / name).unlink()


def claim_name(view: int, bits: str) -> str:
    """Name of a claim's file."""
    return f"{view}.{bits}"
