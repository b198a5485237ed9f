"""Checks that nothing is lost through kills, outages and hostile files, and measures what that costs.

    ./launch.sh bench faults [--kills 30] [--outages 10] [--cases 1000] [--seed 0]

Uses a small experiment (support/small_run.py) in a temporary folder.

`kills`, `kills_identical`: runs that SIGKILL ended at a random moment, half of them in the middle of a write
(snapshot, checkpoint, journal, feature store, scan of the images, statistics); and how many of them, once resumed,
have exactly the metrics of an undisturbed run, each point once, and end FINISHED.
`outages`, `outages_lost`: times that a real MLflow server was out of reach of one run (connections refused, answers
lost, errors, silence, a restart); and metric points, params and artifacts that are missing or doubled.
`fuzz_cases`, `tracebacks`: hostile files read with the runner's own readers; and how many of them ended neither in
a correct result nor in one sentence.
`checkpoint_overhead`: share of a run's time that snapshots take at the default setting.
`resume_seconds`: from the start of the command to the first optimizer step of a resumed run with cached features;
median.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.support.kills import PRELOADED, measure_kills
from benchmarks.support.outages import measure_outages
from benchmarks.support.processes import ROOT
from benchmarks.support.snapshot_costs import measure_snapshot_costs
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal

OPTIONS = {
    "kills": (30, "runs to kill"),
    "outages": (10, "outages of the tracking server"),
    "cases": (1000, "hostile files per format"),
    "seed": (0, "seed of the moments at which runs are killed"),
}


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object as the last line."""
    parser = CommandLineParser(
        prog="runner bench faults",
        description="Check that nothing is lost through kills, outages and hostile files.",
    )
    for name, (default, meaning) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning}; default: {default}")
    options = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # before any process imports torch: equal runs need equal threads
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    terminal = Terminal()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        measurements: dict[str, Callable[[], dict[str, Any]]] = {
            "costs": lambda: measure_snapshot_costs(folder, terminal),
            "kills": lambda: measure_kills(options.kills, options.seed, folder, terminal),
            "outages": lambda: measure_outages(options.outages, folder, terminal),
            "hostile files": lambda: _measure_fuzzing(options.cases, folder, terminal),
        }
        figures: dict[str, Any] = {}
        for title, measure in measurements.items():
            start = time.monotonic()
            figures |= measure()
            terminal.line(f"{title}: {time.monotonic() - start:.0f} s, {figures}")
    print(json.dumps({**figures, "seed": options.seed}))
    return 0


def _measure_fuzzing(cases: int, folder: Path, terminal: Terminal) -> dict[str, Any]:
    """Read `cases` hostile files of every format; count those that end neither in a result nor in one sentence."""
    sys.path.insert(0, str(ROOT / "tests"))  # the tests make the files
    from fuzz import FORMATS, fuzz

    total = faults = 0
    with terminal.progress("hostile files", len(FORMATS), "formats") as advance:
        for name in FORMATS:
            report = fuzz(name, cases, folder)
            total += report.cases
            faults += len(report.faults)
            for fault in report.faults[:3]:
                terminal.warn(f"{name}: {fault}")
            advance(1)
    return {"fuzz_cases": total, "tracebacks": faults, "formats": len(FORMATS)}
