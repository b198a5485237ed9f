"""Makes docs/results.md: figures that are published for Caltech-101, and ours in the same protocols.

    ./launch.sh bench results --data DATA --weights FILE [--cache DIR] [--only ROW …]
    ./launch.sh bench results --no-runs        # writes the document from the figures recorded before

Each of our rows is a command `runner train …`, with an expected range (benchmarks/results.yaml). The command is run,
its mean and sd are read from MLflow, and added to benchmarks/results.json, which has the figures of rows that are not
run this time. Rows that take hours are left out, unless --only names them. After each row the document is written
again.

Exit status 1 if a run fails or a figure is out of its range. The last line is a JSON object: `rows` with the mean and
sd of each figure, `out_of_range` and `failed`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.support.results_table import (
    FIGURES,
    PLACES,
    Measurement,
    Protocol,
    Row,
    describe,
    read_protocols,
    read_recorded,
    verdict,
    write_results,
)
from runner.config.parser import parse
from runner.config.validation import check_weights
from runner.data.datasets import locate
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.run_lookup import PARENT_TAG, search_runs
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.paths import cache_folder
from runner.utils.processes import cpu_count
from runner.utils.text import did_you_mean, one_line

URI = "MLFLOW_TRACKING_URI"
EXTRA = ("--smoke", "--tracking.model", "false", "--tracking.gallery", "0")
"""Of every run: what would take time, and changes no figure."""
OPTIONS = {"DATA": "--data", "FILE": "--weights"}
Run = Callable[[Row], Measurement]


class FailedRunError(Exception):
    """A command that did not end well; the message says why."""


def main(argv: Sequence[str]) -> int:
    """Run rows, write figures and document, and print one JSON object as the last line."""
    parser = CommandLineParser(
        prog="runner bench results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", help="folder that holds caltech101/101_ObjectCategories")
    parser.add_argument("--weights", help="file of VGG16's convolutions, as for caltech101-pooled")
    parser.add_argument(
        "--cache", default="auto", help="folder of scans and features; default: the usual one"
    )
    parser.add_argument("--only", action="append", metavar="ROW", help="run this row; may be repeated")
    parser.add_argument("--no-runs", action="store_true", help="run nothing: write the document only")
    options = parser.parse_args(argv)
    protocols = read_protocols()
    rows = [] if options.no_runs else chosen_rows(protocols, options.only)
    places = {"DATA": options.data, "FILE": options.weights}
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as folder:
        common = ["--cache", options.cache, *EXTRA]
        for row in rows:
            check_row(row, places, common)
        outcome = run_rows(
            rows,
            lambda row: run_row(row, row.words(places) + common, Path(folder) / row.name),
            lambda recorded: write_results(protocols, recorded),
            read_recorded(),
        )
    print(json.dumps(outcome))
    return 1 if outcome["failed"] or outcome["out_of_range"] else 0


def chosen_rows(protocols: Sequence[Protocol], only: Sequence[str] | None) -> list[Row]:
    """The rows to run. Raises `UserError` for a name that no row has."""
    rows = {row.name: row for each in protocols for row in each.ours}
    for name in only or ():
        if name not in rows:
            raise UserError(
                f"There is no row {name!r}{did_you_mean(name, rows)}; --only takes {', '.join(rows)}."
            )
    return [row for name, row in rows.items() if (name in only if only else not row.by_name)]


def check_row(row: Row, places: Mapping[str, str | None], common: Sequence[str]) -> None:
    """Raises `UserError` if a row cannot be run: images or weights are not there."""
    for place in PLACES:
        if place in row.needs and not places[place]:
            what = "the folder that holds caltech101/" if place == "DATA" else "the file of VGG16's weights"
            raise UserError(f"The row {row.name} needs real data: give {OPTIONS[place]} {place}, {what}.")
    _, *words = row.words({name: value for name, value in places.items() if value})
    experiment, _ = parse([*words, *common])
    check_weights(experiment.model)
    locate(experiment.data, cache_folder(experiment.cache), Terminal(enabled=False))


def run_rows(
    rows: Sequence[Row],
    run: Run,
    write: Callable[[Mapping[str, Measurement]], None],
    recorded: Mapping[str, Measurement],
) -> dict[str, Any]:
    """Run rows one after another; what goes wrong with one does not stop the others.

    Args:
        rows: To run.
        run: Runs one; raises `FailedRunError` if that fails.
        write: Takes all figures, those recorded before too, after each row.
        recorded: Figures of earlier runs.

    Returns what the benchmark prints at its end.
    """
    known = dict(recorded)
    outcome: dict[str, Any] = {"rows": {}, "out_of_range": [], "failed": []}
    for row in rows:
        _report(f"{row.name}: runner {row.command}")
        try:
            measured = run(row)
        except FailedRunError as error:
            outcome["failed"].append(row.name)
            _report(f"{row.name}: FAILED: {error}")
            continue
        known[row.name] = measured
        outcome["rows"][row.name] = measured.figures
        if measured.outside(row):
            outcome["out_of_range"].append(row.name)
        _report(
            f"{row.name}: {_figures(measured)}: {verdict(row, measured).strip('*')}; {describe(measured)}"
        )
        write(known)
    if not rows:
        write(known)  # the table of rows may have changed
    return outcome


def run_row(row: Row, words: Sequence[str], folder: Path) -> Measurement:
    """Run a row's command to its end, with records in a new folder. Raises `FailedRunError`."""
    folder.mkdir()
    child = [sys.executable, "-m", "runner.utils.child", str(os.getpid())]  # it ends with this process
    command = [*child, "runner.cli.main", *words, "--tracking.root", str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != URI}
    start = time.monotonic()
    completed = subprocess.run(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    seconds = time.monotonic() - start
    if completed.returncode:
        last = (completed.stderr.strip().splitlines() or ["no message"])[-1]
        raise FailedRunError(f"exit status {completed.returncode}: {one_line(last.removeprefix('runner: '))}")
    return read_measurement(row, folder, seconds)


def read_measurement(row: Row, folder: Path, seconds: float) -> Measurement:
    """What the run in a folder of records gave."""
    os.environ.pop(URI, None)  # these records are embedded ones
    runs = search_runs(tracking_server(str(folder)).connect())
    (parent,) = [run for run in runs if PARENT_TAG not in run.data.tags]
    children = [run for run in runs if run is not parent] or [parent]
    metrics = parent.data.metrics
    computed = [
        (
            run.data.metrics.get("system/features/misses", 0),
            run.data.metrics.get("system/features/images_per_second", 0),
        )
        for run in children
    ]
    return Measurement(
        command=row.command,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=machine(),
        runs=len(children),
        seconds=round(seconds, 1),
        figures={
            name: (
                round(100 * metrics[f"test/best/{name}"], 3),
                round(100 * metrics.get(f"test/best/{name}_sd", 0), 3),
            )
            for name in FIGURES
        },
        computed=int(sum(images for images, _ in computed)),
        feature_seconds=round(sum(images / rate for images, rate in computed if rate), 1),
    )


def machine() -> str:
    """The machine in words."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cpu_count()} CPU cores ({torch.backends.cpu.get_cpu_capability()})"


def _figures(measured: Measurement) -> str:
    return ", ".join(f"{name} {mean:.2f} ± {sd:.2f}" for name, (mean, sd) in measured.figures.items())


def _report(line: str) -> None:
    print(line, flush=True)
