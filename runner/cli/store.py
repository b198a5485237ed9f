"""`runner store list|remove`: cached features, which later runs use again."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from runner.config.schema import Experiment
from runner.features.eviction import StoreInfo, feature_root, list_stores, remove_store
from runner.utils.atomic_files import free_bytes
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal, format_bytes, format_duration
from runner.utils.errors import UserError

SECONDS_PER_DAY = 86400.0


def main(argv: Sequence[str]) -> int:
    """List or remove cached features. Raises `UserError` for an unknown name or a store in use."""
    parser = CommandLineParser(prog="runner store", description="List or remove cached features.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=CommandLineParser)
    listing = actions.add_parser("list", help="show all stores of features: content, size, last use")
    listing.add_argument("--json", action="store_true", help="print a JSON array")
    removal = actions.add_parser("remove", help="remove stores that are not in use")
    removal.add_argument("names", metavar="NAME", nargs="*", help="name in the list, or the start of one")
    removal.add_argument("--all", action="store_true", help="remove every store")
    removal.add_argument("--unused", metavar="DAYS", type=float, help="remove stores not used for this long")
    for action in (listing, removal):
        action.add_argument(
            "--cache",
            default=Experiment.cache,
            help="the cache folder; default: as the setting `cache`",
        )
    args = parser.parse_args(argv)
    root = feature_root(args.cache)
    stores = list_stores(root)
    if args.action == "remove":
        _remove(_selected(stores, args.names, args.all, args.unused))
    elif args.json:
        facts = ("name", "bytes", "last_used", "folder")
        rows = [store.description | {fact: getattr(store, fact) for fact in facts} for store in stores]
        print(json.dumps(rows, default=str))
    else:
        _print_table(stores, root)
    return 0


def _print_table(stores: Sequence[StoreInfo], root: Path) -> None:
    terminal = Terminal()
    if not stores:
        terminal.line(f"No cached features in {root}.")
        return
    rows = [
        (
            store.name,
            store.description.get("layer", "unknown (another version)"),
            store.description.get("view", ""),
            store.description.get("computed", ""),
            format_bytes(store.bytes),
            f"{format_duration(max(0.0, time.time() - store.last_used))} ago",
        )
        for store in stores
    ]
    terminal.table(str(root), ("store", "output of", "images", "computed with", "size", "last used"), rows)
    total = sum(store.bytes for store in stores)
    terminal.line(f"{format_bytes(total)} in total; {format_bytes(free_bytes(root))} free on the disk")


def _selected(
    stores: Sequence[StoreInfo], names: Sequence[str], all_stores: bool, unused_days: float | None
) -> list[StoreInfo]:
    if not (names or all_stores or unused_days is not None):
        raise UserError(
            "./launch.sh store remove needs names (./launch.sh store list shows them), --all, or --unused DAYS."
        )
    selected = [
        store
        for store in stores
        if all_stores
        or (unused_days is not None and time.time() - store.last_used >= unused_days * SECONDS_PER_DAY)
    ]
    for name in names:
        matches = [store for store in stores if store.folder.name.startswith(name)]
        if len(matches) != 1:
            count = "Several stores have names that start" if matches else "No store has a name that starts"
            raise UserError(f"{count} with {name!r}; ./launch.sh store list shows the names.")
        selected += [store for store in matches if store not in selected]
    return selected


def _remove(stores: Sequence[StoreInfo]) -> None:
    terminal = Terminal()
    in_use = []
    for store in stores:
        if remove_store(store):
            terminal.line(f"removed {store.name}: {format_bytes(store.bytes)}")
        else:
            in_use.append(store.name)
    if in_use:
        raise UserError(
            f"Not removed, because runs use them, or used them a few minutes ago on a network file system:"
            f" {', '.join(in_use)}; try again 10 minutes after these runs."
        )
    if not stores:
        terminal.line("nothing to remove")
