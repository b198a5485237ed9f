"""`runner compare`: runs side by side: settings, metrics, curves, and whether the difference is more than luck.

./launch.sh compare RUN RUN… | --study NAME [--out FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.evaluation.comparison.data import as_json, figures_csv, settings_csv
from runner.evaluation.comparison.page import draw, explanation, page, same_settings
from runner.evaluation.comparison.runs import BEST_TRIALS, look, match, of_study, of_words, remarks
from runner.evaluation.comparison.tables import (
    about_rows,
    class_rows,
    clipped,
    figures_rows,
    match_rows,
    settings_rows,
    summary,
)
from runner.evaluation.comparison.values import Figure, Match, Seen, figures
from runner.tracking.mlflow_server import Server, server
from runner.utils.atomic_files import writable, write_text
from runner.utils.console import Terminal
from runner.utils.errors import Parser, UserError
from runner.utils.hashing import digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAMED = 8
"""Runs that a folder is named after; of more their number."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises `UserError`."""
    parser = Parser(
        prog="runner compare", description="Compare runs: settings, metrics, curves, predictions."
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", help="two or more: id, beginning of an id, name, or latest"
    )
    parser.add_argument(
        "--study",
        metavar="NAME",
        help=f"in place of runs: a study's baseline and its {BEST_TRIALS} best trials",
    )
    parser.add_argument("--out", metavar="FOLDER", help="default: comparisons/IDS under the tracking root")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on standard output, and nothing else"
    )
    parser.add_argument("--tracking.root", dest="tracking", default="mlruns", help="default: mlruns")
    asked = parser.parse_args(argv)
    if asked.study and asked.runs:
        raise UserError("Give runs or --study, not both.")
    if not asked.study and len(asked.runs) < 2:
        raise UserError(
            f"A comparison takes two runs or more, {len(asked.runs) or 'none'} given; name them, or a study with"
            " --study."
        )
    return asked


def main(argv: Sequence[str]) -> int:
    """Compare as the command line says. Raises `UserError` for what its user can mend."""
    asked = parse(argv)
    store = server(asked.tracking)
    store.check_exists()
    client = store.connect()
    terminal = Terminal(errors=asked.json)
    sign = 0
    if asked.study:
        chosen, sign, said = of_study(client, asked.study)
        terminal.line(said)
    else:
        chosen = of_words(client, asked.runs)
    seen = [look(client, run) for run in chosen]
    title = f"Study {asked.study}: its trials" if asked.study else f"Comparison of {len(seen)} runs"
    found = figures(seen, falling=("objective",) * (sign < 0), rising=("objective",) * (sign > 0))
    matches = match(client, chosen, seen)
    notes = remarks(seen, matches)
    folder = writable(asked.out or default_folder(store, seen))
    files = write(title, seen, found, matches, notes, folder)
    place = f"comparisons/{joined(seen[1:])}"
    logged = log(client, seen[0], files, place, terminal)
    if asked.json:
        print(json.dumps(as_json(seen, found, matches, notes, folder, place if logged else None)))
    else:
        say(title, seen, found, matches, notes, terminal)
    beside = f", and in run {seen[0].short} in MLflow under {place}" if logged else ""
    terminal.line(f"The comparison is in {folder / 'comparison.html'}{beside}.")
    return 0


def joined(runs: Sequence[Seen]) -> str:
    """A folder's name for some runs, the same each time and not too long for a file system."""
    named = "-".join(run.short for run in runs[:NAMED])
    rest = runs[NAMED:]
    return f"{named}-and-{len(rest)}-more-{digest([run.run_id for run in rest])[:8]}" if rest else named


def default_folder(store: Server, runs: Sequence[Seen]) -> Path:
    """Where a comparison goes if nothing is said."""
    return store.root / "comparisons" / joined(runs)


def write(
    title: str,
    runs: Sequence[Seen],
    found: Sequence[Figure],
    matches: Sequence[Match],
    notes: Sequence[str],
    folder: Path,
) -> list[Path]:
    """Write picture, tables and page: the files."""
    files = [folder / name for name in ("curves.png", "settings.csv", "metrics.csv", "comparison.html")]
    picture, settings, metrics, html = files
    draw(runs, title, picture)
    write_text(settings, settings_csv(runs))
    write_text(metrics, figures_csv(runs, found))
    page(title, runs, found, matches, notes, picture).write(html)
    return files


def log(client: MlflowClient, first: Seen, files: Sequence[Path], place: str, terminal: Terminal) -> bool:
    """Put the files into the first run, in place of those of the same comparison; whether that went well."""
    try:
        for file in files:
            client.log_artifact(first.run_id, str(file), place)
    except Exception as error:  # each kind of artifact store raises its own; the files are there all the same
        reason = clipped(str(error), 200)
        terminal.warn(f"the comparison could not be put into run {first.short} ({reason})")
        return False
    return True


def say(
    title: str,
    runs: Sequence[Seen],
    found: Sequence[Figure],
    matches: Sequence[Match],
    notes: Sequence[str],
    terminal: Terminal,
) -> None:
    """Say it on a terminal."""
    _, rows = about_rows(runs)
    terminal.facts(
        clipped(title), [(cells[0], f"{cells[-1]} ({', '.join(cells[1:-1])} epochs)") for cells in rows]
    )
    _wide("Settings that differ", *settings_rows(runs), terminal)
    terminal.line(same_settings(runs))
    _wide("Metrics (of curves the last point; * is the best)", *figures_rows(runs, found), terminal)
    if any(each.result for each in matches):
        _wide(f"The same test images, against {runs[0].short}", *match_rows(matches), terminal)
        class_header, classes = class_rows(runs[0], matches[0])
        if classes and len(matches) == 1:
            terminal.table("Where most was won or lost (images)", class_header, classes)
    terminal.line(explanation(matches))
    for note in notes:
        terminal.warn(note)
    if said := summary(runs[0], matches):
        terminal.line(said, style="bold")


def _wide(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], terminal: Terminal) -> None:
    """A table in as many pieces as its columns need: a terminal would cut what does not fit."""
    if not rows:
        return
    widths = [max(len(row[place]) for row in (header, *rows)) + 3 for place in range(len(header))]
    start = 1
    while start < len(header):
        end, room = start + 1, terminal.console.width - 1 - widths[0] - widths[start]
        while end < len(header) and widths[end] <= room:
            room -= widths[end]
            end += 1
        terminal.table(title, (header[0], *header[start:end]), [(row[0], *row[start:end]) for row in rows])
        start, title = end, ""
