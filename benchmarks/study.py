"""Measures what a study costs besides training, whether workers scale, and whether records are lost.

    ./launch.sh bench study [settings of an experiment]

Three studies, each one or more commands `runner search`, with all features cached before:
`seconds`, `overhead`: TRIALS trials of EPOCHS epochs without pruning, on as many single-threaded workers as there are
cores; the share of workers × wall time that was not spent in training (start-up, MLflow, Optuna, report).
`worker_scaling`: trials per minute of two single-threaded workers ÷ those of one, in turns, on a search space that
changes no cost; from the start of the first trial to the end of the last.
`lost_trials`, `lost_metrics`: 4 workers × 50 trials of one epoch of the quickstart, into one SQLite MLflow and one
Optuna journal; trials and metric points that are missing.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from runner.config.parser import parse
from runner.study.storage import connect, default_storage
from runner.tracking.mlflow_server import tracking_server
from runner.utils.processes import cpu_count

TRIALS, EPOCHS = 50, 16
PAIRS, SCALING_TRIALS, SCALING_EPOCHS = 2, 8, 8
SHORT_WORKERS, SHORT_TRIALS = 4, 200
SCHEDULE = ("--schedule.kind", "cosine")
"""Ends at the last epoch; reduce_on_drop would stop trials early, each in another epoch."""
CHEAP_SPACE = """\
optim.lr: {low: 1.0e-5, high: 1.0, log: true}
model.dropout: {low: 0.0, high: 0.9}
"""
METRICS = (
    *("train/loss", "train/top1", "val/loss", "val/top1", "val/top5", "val/balanced_accuracy"),
    *("lr", "objective"),
)
"""Metrics that a trial of one epoch logs one point of."""


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object as the last line."""
    parse(argv, prog="runner bench study")
    experiment = [*argv, *SCHEDULE]
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as name:
        folder = Path(name)
        (folder / "cheap.yaml").write_text(CHEAP_SPACE)
        _report("computing the features that are not cached yet")
        run_study(folder / "warm-up", [*experiment, "--train.epochs", "1"], trials=1, workers=1)
        result = {
            **_measure_overhead(folder, experiment),
            **_measure_scaling(folder, experiment),
            **_measure_losses(folder),
        }
    print(json.dumps({**result, "trials": TRIALS, "epochs": EPOCHS, "workers": cpu_count()}))
    return 0


def _measure_overhead(folder: Path, experiment: Sequence[str]) -> dict[str, float]:
    """Wall time of a study, and the share of it that is not training."""
    workers = cpu_count()
    _report(f"{TRIALS} trials of {EPOCHS} epochs on {workers} single-threaded workers")
    argv = [*experiment, "--train.epochs", str(EPOCHS)]
    start = time.monotonic()
    trials = run_study(folder / "long", argv, TRIALS, workers, space="around-baseline")
    seconds = time.monotonic() - start
    training = sum(trial.user_attrs["training_seconds"] for trial in trials)
    overhead = 1 - training / (workers * seconds)
    _report(f"{seconds:.0f} s, overhead {overhead:.3f}")
    return {"seconds": round(seconds, 1), "overhead": round(overhead, 4)}


def _measure_scaling(folder: Path, experiment: Sequence[str]) -> dict[str, float]:
    """Trials per minute of two workers ÷ those of one, in turns."""
    argv = [*experiment, "--train.epochs", str(SCALING_EPOCHS)]
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(PAIRS):
        for workers in (1, 2):
            trials = run_study(folder / f"scaling-{workers}-{turn}", argv, SCALING_TRIALS * workers, workers)
            rates[workers].append(_trials_per_minute(trials))
            _report(f"workers: {workers}, {rates[workers][-1]:.1f} trials/min")
    one, two = statistics.median(rates[1]), statistics.median(rates[2])
    return {
        "worker_scaling": round(two / one, 3),
        "trials_per_minute_1": round(one, 2),
        "trials_per_minute_2": round(two, 2),
    }


def _measure_losses(folder: Path) -> dict[str, int]:
    """Trials, and metric points of complete and missing trials, that a study of many short trials lacks."""
    _report(f"{SHORT_TRIALS} short trials on {SHORT_WORKERS} workers")
    argv = ["--config", "quickstart", "--train.epochs", "1", "--cache", str(folder / "cache")]
    records = folder / "short"
    trials = run_study(records, argv, SHORT_TRIALS, SHORT_WORKERS)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    client = tracking_server(str(records)).connect()
    points = sum(
        len(client.get_metric_history(trial.user_attrs["run"], name))
        for trial in complete
        for name in METRICS
    )
    return {
        "lost_trials": SHORT_TRIALS - len(complete),
        "lost_metrics": SHORT_TRIALS * len(METRICS) - points,
    }


def run_study(
    records: Path, argv: Sequence[str], trials: int, workers: int, space: str = ""
) -> list[FrozenTrial]:
    """Run a study on single-threaded workers to its end: its trials.

    Args:
        records: New folder for MLflow's database and the study.
        argv: Settings of the experiment.
        trials: Number of trials.
        workers: Number of workers.
        space: Search space; empty: `CHEAP_SPACE`.

    Raises SystemExit with the exit status of the command if it fails.
    """
    options: dict[str, Any] = {
        "--study": "bench",
        "--trials": trials,
        "--workers": workers,
        "--threads": 1,
        "--space": space or records.parent / "cheap.yaml",
        "--confirm": 0,
        "--pruner": "none",
        "--tracking.root": records,
    }
    words = [str(word) for option in options.items() for word in option]
    command = [sys.executable, "-m", "runner.cli.main", "search", *argv, *words]
    completed = subprocess.run(command, capture_output=True, text=True)
    if completed.returncode:
        sys.stderr.write(completed.stdout + completed.stderr)
        raise SystemExit(completed.returncode)
    return optuna.load_study(study_name="bench", storage=connect(default_storage(records))).trials


def _trials_per_minute(trials: Sequence[FrozenTrial]) -> float:
    """From the start of the first trial to the end of the last."""
    starts = [trial.datetime_start for trial in trials if trial.datetime_start]
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    return 60 * len(trials) / (max(ends) - min(starts)).total_seconds()


def _report(text: str) -> None:
    print(text, flush=True)
