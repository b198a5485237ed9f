"""What does a study cost beside fitting, do workers scale, and is anything lost?

    ./launch.sh bench study [experiment settings]

Three studies, each a `runner search` of its own, all features kept before:
`seconds`, `overhead`: TRIALS trials of EPOCHS epochs, none pruned, on as many workers of one thread as there are cores;
the share of workers × wall time that was not spent in the training loop (start-up, MLflow, Optuna, report).
`worker_scaling`: trials/min of two workers of one thread ÷ one such worker, on the same cheap space, in turns; from the
first trial's start to the last one's end. `lost_trials`, `lost_metrics`: 4 workers × 50 trials of one epoch of the
quickstart, into one sqlite MLflow and one journal: what was asked for and is not there.
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

TRIALS, EPOCHS = 50, 16
PAIRS, SCALING_TRIALS, SCALING_EPOCHS = 2, 8, 8
WORKERS, SHORT = 4, 200
SCHEDULE = ["--schedule.kind", "cosine"]
"""Ends at the last epoch: the report's rule would stop trials early, each at another epoch."""


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object."""
    from runner.config.parser import parse
    from runner.utils.cpu import cpu_count

    parse(argv, prog="runner bench study")
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as folder:
        root = Path(folder)
        (root / "cheap.yaml").write_text(
            "optim.lr: {low: 1.0e-5, high: 1.0, log: true}\nmodel.dropout: {low: 0.0, high: 0.9}\n"
        )
        base = [*argv, *SCHEDULE]
        _say("computing features, where they are not kept yet")
        _search(root / "warm", [*base, "--train.epochs", "1"], root, trials=1, workers=1)

        _say(f"{TRIALS} trials of {EPOCHS} epochs on {cpu_count()} workers of one thread")
        began = time.monotonic()
        study = _search(
            root / "long",
            [*base, "--train.epochs", str(EPOCHS)],
            root,
            TRIALS,
            cpu_count(),
            space="around-baseline",
        )
        seconds = time.monotonic() - began
        fitted = sum(each.user_attrs["training_seconds"] for each in study)
        overhead = 1 - fitted / (cpu_count() * seconds)
        _say(f"{seconds:.0f} s, overhead {overhead:.3f}")

        rates: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(PAIRS):
            for workers in (1, 2):
                place = root / f"scaling-{workers}-{turn}"
                words = [*base, "--train.epochs", str(SCALING_EPOCHS)]
                rates[workers].append(_rate(_search(place, words, root, SCALING_TRIALS * workers, workers)))
                _say(f"{workers} workers: {rates[workers][-1]:.1f} trials/min")
        scaling = statistics.median(rates[2]) / statistics.median(rates[1])

        _say(f"{SHORT} short trials on {WORKERS} workers")
        quick = ["--config", "quickstart", "--train.epochs", "1", "--cache", str(root / "cache")]
        short = _search(root / "short", quick, root, SHORT, WORKERS, threads=1)
        lost_trials, lost_metrics = _lost(root / "short", short)
    print(
        json.dumps(
            {
                "seconds": round(seconds, 1),
                "overhead": round(overhead, 4),
                "worker_scaling": round(scaling, 3),
                "lost_trials": lost_trials,
                "lost_metrics": lost_metrics,
                "trials": TRIALS,
                "epochs": EPOCHS,
                "workers": cpu_count(),
                "trials_per_minute_1": round(statistics.median(rates[1]), 2),
                "trials_per_minute_2": round(statistics.median(rates[2]), 2),
            }
        )
    )
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _search(
    place: Path,
    words: Sequence[str],
    root: Path,
    trials: int,
    workers: int,
    space: str = "",
    threads: int = 1,
) -> list[Any]:
    """Run a study to its end: its trials."""
    options = [
        "--study",
        "bench",
        "--trials",
        str(trials),
        "--workers",
        str(workers),
        "--threads",
        str(threads),
    ]
    options += ["--space", space or str(root / "cheap.yaml"), "--confirm", "0", "--pruner", "none"]
    options += ["--tracking.root", str(place)]
    command = [sys.executable, "-m", "runner.cli.main", "search", *options, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise SystemExit(done.returncode)

    import optuna

    from runner.study.storage import connect, default_storage

    return list(optuna.load_study(study_name="bench", storage=connect(default_storage(place))).trials)


def _rate(trials: Sequence[Any]) -> float:
    began = min(each.datetime_start for each in trials)
    ended = max(each.datetime_complete for each in trials)
    return 60 * len(trials) / (ended - began).total_seconds()


def _lost(place: Path, trials: Sequence[Any]) -> tuple[int, int]:
    """Trials, and points of curves, that were asked for and are not there."""
    from optuna.trial import TrialState

    from runner.tracking.mlflow_server import tracking_server

    client = tracking_server(str(place)).connect()
    complete = [each for each in trials if each.state == TrialState.COMPLETE]
    curves = (
        "train/loss",
        "train/top1",
        "val/loss",
        "val/top1",
        "val/top5",
        "val/balanced_accuracy",
        "lr",
        "objective",
    )
    found = 0
    for each in complete:
        for name in curves:
            found += len(client.get_metric_history(each.user_attrs["run"], name))
    return SHORT - len(complete), SHORT * len(curves) - found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
