"""Measures heads on kept features: solved ones, many trained at once against one by one, and a study of them.

    ./launch.sh bench heads --config caltech101-pooled --data.root DATA --model.weights FILE

Solutions are measured on the images of the experiment if their features are kept, else on synthetic rows of
Caltech-101's size; training together always on such rows; the study on the images of the experiment. The first line of
the output says it.

`solve_seconds`: ridge regression for 45 penalties with leaving one out, on 1 + 2 + 3 pyramids; `solve_splits_seconds`:
with a refit, on five splits; `solve_trial_seconds`: one penalty, with the products of features of an earlier trial.
`solve_cpu_seconds`, …: processor time, to compare where other work runs.
`heads_speedup_pool3`, `heads_speedup_pool1`: the time of training HEADS pooled heads one by one ÷ that of training them
together; in turns, so that other load on the machine affects both alike; medians of the rounds.
`heads_cpu_speedup_pool3`, …: the same ratio of processor time. `heads_difference`: the largest relative difference of a
loss between the two.
`study_seconds`: a search of TRIALS trials of EPOCHS epochs with `--batch`, on as many single-threaded workers as there
are cores; left out without data.root. Features must be cached before.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.study import EPOCHS, SCHEDULE, TRIALS, run_study
from benchmarks.support import stacked_heads
from benchmarks.support.processes import run_part, write_result
from benchmarks.support.solved_heads import kept_images, measure_solutions, synthetic_images
from runner.config.parser import parse
from runner.training import devices
from runner.utils.processes import cpu_count

Figures = dict[str, float]
HEADS, HEAD_EPOCHS, ROUNDS = 32, 1, 3


def measure_speedups() -> Figures:
    """Training together against one by one."""
    result, differences = {}, []
    for pool in (3, 1):
        heads = stacked_heads.experiments(HEADS, pool, HEAD_EPOCHS)
        accelerator = devices.create_accelerator(heads[0])
        data = stacked_heads.synthetic_data(pool, accelerator.device)
        ways = (stacked_heads.train_one_by_one, stacked_heads.train_together)
        for train in ways:  # what is imported or allocated once
            train(heads[:2], data, accelerator)
        wall, processor = [], []
        for number in range(ROUNDS):
            histories, times = [], []
            for train in ways:
                start = time.perf_counter(), time.process_time()
                histories.append(train(heads, data, accelerator))
                times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
            wall.append(times[0][0] / times[1][0])
            processor.append(times[0][1] / times[1][1])
            differences.append(stacked_heads.largest_difference(*histories))
            sys.stderr.write(  # `run_part` shows no other output
                f"pool {pool}, round {number + 1}: one by one {times[0][0]:.1f} s, together {times[1][0]:.1f} s:"
                f" {wall[-1]:.2f} times, {processor[-1]:.2f} times in processor time\n"
            )
        result[f"heads_speedup_pool{pool}"] = round(statistics.median(wall), 2)
        result[f"heads_cpu_speedup_pool{pool}"] = round(statistics.median(processor), 2)
    return {**result, "heads_difference": max(differences), "heads": HEADS}


def measure_study(argv: Sequence[str], folder: Path) -> Figures:
    """A study whose workers train their trials together, with its records in a new folder."""
    workers = cpu_count()
    batch = -(-TRIALS // workers)
    settings = [*argv, *SCHEDULE, "--train.epochs", str(EPOCHS), "--batch", str(batch)]
    _report(f"{TRIALS} trials of {EPOCHS} epochs on {workers} single-threaded workers, {batch} together")
    start = time.monotonic()
    run_study(folder, settings, TRIALS, workers, space="around-baseline")
    return {"study_seconds": round(time.monotonic() - start, 1)}


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object as the last line."""
    experiment, _ = parse(argv, prog="runner bench heads")
    images = kept_images(experiment) or synthetic_images()
    root = experiment.data.root
    study = f"a study on the images in {root}" if root else "no study, which needs data.root"
    _report(
        f"Solutions on {images.origin}, heads together and one by one on synthetic rows of Caltech-101's size, {study}."
    )
    result: Figures = {}
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as name:
        folder = Path(name)
        for measure in (
            lambda: measure_solutions(images),
            lambda: run_part("benchmarks.heads", "speedups", (), folder / "speedups"),
            lambda: measure_study(argv, folder / "study") if root else {},
        ):
            result |= measure()
            print(json.dumps(result), flush=True)
    return 0


def _report(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":  # in a process of its own: Accelerate has one precision in each
    write_result(Path(sys.argv[2]), measure_speedups())
