"""TODO."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from runner.features.eviction import StoreInfo, feature_root, list_stores, remove_store
from runner.utils.atomic_files import free_bytes
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal, format_bytes, format_duration
from runner.utils.errors import UserError

DAY = 86400.0


def main(argv: Sequence[str]) -> int:
    """`runner store list|remove`. Raises `UserError`."""
    parser = CommandLineParser(prog="runner store", description="The features that are kept for later runs.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=CommandLineParser)
    listing = actions.add_parser("list", help="what is kept, how large it is, and when it was used last")
    listing.add_argument("--json", action="store_true", help="one JSON array on standard output")
    removal = actions.add_parser("remove", help="remove stores; those in use stay")
    removal.add_argument("names", metavar="NAME", nargs="*", help="as list shows them, or their beginnings")
    removal.add_argument("--all", action="store_true", help="every store")
    removal.add_argument("--unused", metavar="DAYS", type=float, help="those not used for so many days")
    for each in (listing, removal):
        each.add_argument("--cache", default="~/.cache/vgg-runner", help="default: %(default)s")
    asked = parser.parse_args(argv)
    present = list_stores(feature_root(asked.cache))
    if asked.action == "list":
        _list(present, feature_root(asked.cache), asked.json)
    else:
        _remove(_chosen(present, asked.names, asked.all, asked.unused))
    return 0


def _list(present: Sequence[StoreInfo], root: Path, as_json: bool) -> None:
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
            format_bytes(store.bytes),
            f"{format_duration(max(0.0, time.time() - store.used))} ago",
        )
        for store in present
    ]
    terminal.table(str(root), ("store", "rows behind", "of views", "computed in", "size", "last used"), rows)
    terminal.line(f"{format_bytes(sum(store.bytes for store in present))} in all; {format_bytes(free_bytes(root))} free")


def _chosen(
    present: Sequence[StoreInfo], names: Sequence[str], everything: bool, unused: float | None
) -> list[StoreInfo]:
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


def _remove(chosen: Sequence[StoreInfo]) -> None:
    terminal = Terminal()
    busy = []
    for store in chosen:
        if remove_store(store):
            terminal.line(f"removed {store.name}: {format_bytes(store.bytes)}")
        else:
            busy.append(store.name)
    if busy:
        raise UserError(
            f"In use, and kept: {', '.join(busy)}; try again when the runs that use them have ended."
        )
    if not chosen:
        terminal.line("nothing to remove")
