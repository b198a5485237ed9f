"""All feature stores of a cache: what there is, what goes when it is too much, and `runner store list|remove`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from runner.errors import Parser, UserError
from runner.files import free_bytes
from runner.images import shown
from runner.terminal import Terminal, duration, size

RECIPE = "recipe.json"
"""Says what computes a store's rows; its time stamp is that of the store's last use."""
IN_USE = "in-use"
"""Locked, shared, by whoever uses the store."""
REMOVED = ".removed-"
"""Begins the name of what is being removed."""
HOUR, DAY = 3600.0, 86400.0
LONGEST = 200
"""Characters of what a recipe says of itself that are shown."""


@dataclass(frozen=True)
class Found:
    """A store on disk."""

    folder: Path
    about: dict[str, str]
    bytes: int
    used: float
    """When last, in seconds since the epoch."""

    @property
    def name(self) -> str:
        """What a user calls it by."""
        return self.folder.name[:10]


def root_of(cache: str | Path) -> Path:
    """The folder of a cache's feature stores."""
    return Path(cache).expanduser() / "features"


def stores(root: Path, tidy: bool = True) -> list[Found]:
    """Every store under a root, the one that was used last first.

    Args:
        root: Of a cache.
        tidy: Clear away what killed processes have left.
    """
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.name.startswith(REMOVED):
            if tidy:
                shutil.rmtree(folder, ignore_errors=True)
        elif folder.is_dir():
            with suppress(FileNotFoundError):  # gone meanwhile
                found.append(_look(folder, tidy))
    return sorted(found, key=lambda each: -each.used)


def remove(store: Found) -> bool:
    """Remove a store, unless a process uses it or it may only be read. Whether it is gone."""
    try:
        with _alone(store):
            aside = store.folder.with_name(f"{REMOVED}{uuid.uuid4().hex}")
            store.folder.rename(aside)  # at once: nobody finds half a store
            shutil.rmtree(aside, ignore_errors=True)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def removable(store: Found) -> bool:
    """Whether no process uses a store."""
    try:
        with _alone(store):
            return True
    except OSError:
        return False


@contextmanager
def _alone(store: Found) -> Iterator[None]:
    """Within the block nobody uses the store. Raises OSError where somebody does, or it may only be read."""
    handle = os.open(store.folder / IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def make_room(root: Path, needed: int, cap: float, terminal: Terminal) -> None:
    """See that `needed` more bytes of rows fit the disk and the cap; to fit the cap, remove what was unused longest.

    Args:
        cap: Bytes that all stores together may take.

    Raises `UserError` where they do not fit.
    """
    if not needed:
        return
    present = stores(root)
    taken, free = sum(store.bytes for store in present), free_bytes(root)
    leaving = []
    for store in reversed(present):
        if taken + needed > cap and removable(store):
            leaving.append(store)
            taken, free = taken - store.bytes, free + store.bytes
    if taken + needed > cap:
        raise UserError(
            f"This run's features need {size(needed)} beside {size(taken)} in use, and features.cap is {size(cap)};"
            " raise it, take fewer views (views.train), or set features.store=false."
        )
    if needed > free:
        raise UserError(
            f"This run's features need {size(needed)}, but {root} has {size(free)} left; free some space (runner store"
            " list shows what is kept), set cache to another disk, take fewer views, or set features.store=false."
        )
    for store in leaving:
        if remove(store):
            terminal.warn(
                f"removed the features {store.name} ({size(store.bytes)}, unused for"
                f" {duration(time.time() - store.used)}): features.cap is {size(cap)}"
            )


def _look(folder: Path, tidy: bool) -> Found:
    recipe = folder / RECIPE
    for path in folder.glob(".*.partial") if tidy else ():  # of a killed process; a living one takes seconds
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > HOUR:
                path.unlink()
    try:
        told = json.loads(recipe.read_text(encoding="utf-8"))["about"].items()
        about = {name: shown(words)[:LONGEST] for name, words in told if isinstance(words, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        about = {}  # of another version, or damaged
    stamp = (recipe if recipe.exists() else folder).stat().st_mtime
    return Found(folder, about, sum(_bytes(path) for path in folder.iterdir()), stamp)


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def main(argv: Sequence[str]) -> int:
    """`runner store list|remove`. Raises `UserError`."""
    parser = Parser(prog="runner store", description="The features that are kept for later runs.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=Parser)
    listing = actions.add_parser("list", help="what is kept, how large it is, and when it was used last")
    listing.add_argument("--json", action="store_true", help="one JSON array on standard output")
    removal = actions.add_parser("remove", help="remove stores; those in use stay")
    removal.add_argument("names", metavar="NAME", nargs="*", help="as list shows them, or their beginnings")
    removal.add_argument("--all", action="store_true", help="every store")
    removal.add_argument("--unused", metavar="DAYS", type=float, help="those not used for so many days")
    for each in (listing, removal):
        each.add_argument("--cache", default="~/.cache/vgg-runner", help="default: %(default)s")
    asked = parser.parse_args(argv)
    present = stores(root_of(asked.cache))
    if asked.action == "list":
        _list(present, root_of(asked.cache), asked.json)
    else:
        _remove(_chosen(present, asked.names, asked.all, asked.unused))
    return 0


def _list(present: Sequence[Found], root: Path, as_json: bool) -> None:
    if as_json:
        facts = [
            {**s.about, "name": s.name, "bytes": s.bytes, "used": s.used, "folder": str(s.folder)}
            for s in present
        ]
        print(json.dumps(facts))
        return
    terminal = Terminal()
    if not present:
        terminal.line(f"No features are kept in {root}.")
        return
    rows = [
        (
            store.name,
            str(store.about.get("layer", "of another version")),
            str(store.about.get("view", "")),
            str(store.about.get("computed", "")),
            size(store.bytes),
            f"{duration(max(0.0, time.time() - store.used))} ago",
        )
        for store in present
    ]
    terminal.table(str(root), ("store", "rows behind", "of views", "computed in", "size", "last used"), rows)
    terminal.line(f"{size(sum(store.bytes for store in present))} in all; {size(free_bytes(root))} free")


def _chosen(
    present: Sequence[Found], names: Sequence[str], everything: bool, unused: float | None
) -> list[Found]:
    if not (names or everything or unused is not None):
        raise UserError(
            "Which stores? Name them (runner store list shows names), or say --all or --unused DAYS."
        )
    chosen = [
        store
        for store in present
        if everything or (unused is not None and time.time() - store.used >= unused * DAY)
    ]
    for name in names:
        matching = [store for store in present if store.folder.name.startswith(name)]
        if len(matching) != 1:
            what = "Several stores' names begin" if matching else "No store's name begins"
            raise UserError(f"{what} with {name!r}; runner store list shows them.")
        chosen += [store for store in matching if store not in chosen]
    return chosen


def _remove(chosen: Sequence[Found]) -> None:
    terminal = Terminal()
    busy = []
    for store in chosen:
        if remove(store):
            terminal.line(f"removed {store.name}: {size(store.bytes)}")
        else:
            busy.append(store.name)
    if busy:
        raise UserError(
            f"In use, and kept: {', '.join(busy)}; try again when the runs that use them have ended."
        )
    if not chosen:
        terminal.line("nothing to remove")
