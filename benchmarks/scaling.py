"""Measures unit costs, extrapolates them to many GPUs and images, and simulates a thousand workers.

    ./launch.sh bench scaling [--seed 0] [--simulations-only]

Unit costs are measured on this machine (support/unit_costs.py, record_costs.py): bytes and seconds of an image, a
stored feature, a claim, a gathered result; of a trial in PostgreSQL (sqlite if that is not installed); of an epoch and
a run at an MLflow server. The extrapolation (support/extrapolation.py) states its formulas and assumptions; a load
above 1 means that a resource does not suffice. The simulations (support/lease_simulation.py, study_simulation.py) are
deterministic for a seed; that of studies takes the lock's times from the measurement, or with --simulations-only those
of `MEASURED`.

The last line has `costs`; `first_limits` by GPUs and images; `leases` and `studies` by scenario.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.support.extrapolation import Cluster, first_limit, lock_hold, table
from benchmarks.support.lease_settings import LeaseSettings
from benchmarks.support.lease_simulation import LeaseSimulation
from benchmarks.support.record_costs import measure_mlflow, measure_study
from benchmarks.support.study_simulation import StudySettings, StudySimulation, shortest_trial
from benchmarks.support.unit_costs import measure_unit_costs
from runner.utils.command_line import CommandLineParser

CLUSTERS = tuple(Cluster(gpus, images) for images in (10**6, 10**9) for gpus in (8, 64, 512))
MEASURED = {"ask_seconds": 0.021, "ask_seconds_per_running_trial": 0.0034}
"""Of docs/scaling.md, for simulations without measurements."""
GPU = 2_492.0
"""Images per second of a worker with an H100; see `Cluster.extraction`."""
GPU_RUN = LeaseSettings(images_per_second=GPU)
REMEDIED = replace(GPU_RUN, reads_each_shard=False, reads_each_claim=False, max_splits=13)
"""With one index of all shards, claims that are read by listing them, and eight times as many parts."""


def lease_scenarios(seed: int) -> dict[str, LeaseSettings]:
    """What is simulated, by name. Each worker has as much to do: 100 s of a GPU, or 400 s of a CPU."""
    scenarios = {
        f"{workers} GPU workers": replace(
            GPU_RUN, workers=workers, hosts=max(1, workers // 8), images=int(100 * GPU * workers)
        )
        for workers in (8, 64, 512, 1_000)
    }
    many = replace(REMEDIED, images=int(100 * GPU * 1_000))
    scenarios |= {
        "64 GPU workers, hosts die": replace(scenarios["64 GPU workers"], deaths_per_host_hour=30.0),
        "64 GPU workers, hosts freeze": replace(scenarios["64 GPU workers"], freezes_per_host_hour=30.0),
        "1000 CPU workers": LeaseSettings(),
        "1000 GPU workers, remedied": many,
        "1000 GPU workers, remedied, hosts die": replace(many, deaths_per_host_hour=1.0),
        "1000 GPU workers, remedied, hosts freeze": replace(many, freezes_per_host_hour=1.0),
        "64 GPU workers, listings lag 30 s": replace(scenarios["64 GPU workers"], listing_lag=30.0),
    }
    return {name: replace(each, seed=seed) for name, each in scenarios.items()}


def study_scenarios(seed: int, costs: dict[str, Any]) -> dict[str, StudySettings]:
    """What is simulated, by name: three trials for each worker."""
    base = StudySettings(
        hold=costs["ask_seconds"], hold_per_running=costs["ask_seconds_per_running_trial"], seed=seed
    )
    hours = {
        f"1000 workers, trials of {hours} h": replace(base, trial_seconds=3600.0 * hours) for hours in (1, 4)
    }
    one_hour = hours["1000 workers, trials of 1 h"]
    return {
        "64 workers, trials of 10 min": replace(base, workers=64, trials=192),
        **hours,
        "1000 workers, trials of 4 h, workers die": replace(
            hours["1000 workers, trials of 4 h"], deaths_per_worker_hour=0.01
        ),
        "1000 workers, trials of 1 h, remedied": replace(one_hour, hold_per_running=0.0),
    }


def simulate_leases(scenarios: dict[str, LeaseSettings]) -> dict[str, Any]:
    """The results by scenario, which are printed as a table."""
    results, rows = {}, []
    for name, settings in scenarios.items():
        result = LeaseSimulation(settings).run()
        results[name] = {
            **{key: round(value, 1) for key, value in asdict(result).items()},
            "twice": round(result.twice),
            "lost": round(result.lost, 3),
            "operations_per_second": round(result.operations_per_second),
        }
        stops = f"{result.deaths} / {result.freezes}"
        times = (f"{result.ideal:,.0f}", f"{result.seconds:,.0f}", f"{result.lost:.0%}")
        server = f"{result.operations_per_second:,.0f}"
        share = f"{result.twice:,.0f} ({result.twice / settings.images:.2%})"
        rows.append([name, *times, stops, share, f"{result.longest_wait:.0f}", server])
    titles = [
        "ideal s",
        "took s",
        "lost",
        "died / frozen",
        "computed twice",
        "longest wait s",
        "operations/s",
    ]
    print_table([["features", *titles], *rows])
    return results


def simulate_studies(scenarios: dict[str, StudySettings]) -> dict[str, Any]:
    """The results by scenario, which are printed as a table."""
    results, rows = {}, []
    for name, settings in scenarios.items():
        simulation = StudySimulation(settings)
        result = simulation.run()
        ideal = settings.trials * settings.trial_seconds / settings.workers
        saturated = shortest_trial(settings.workers, settings.hold, settings.hold_per_running)
        results[name] = {
            **{key: round(value, 2) for key, value in asdict(result).items()},
            "asks_per_second": round(result.asks_per_second, 3),
            "heartbeats_per_second": round(simulation.heartbeats_per_second, 1),
            "lock_busy": round(result.lock_busy, 3),
            "ideal": ideal,
            "shortest_trial": round(saturated, 1),
        }
        times = (f"{ideal:,.0f}", f"{result.seconds:,.0f}")
        waits = (f"{result.mean_wait:.1f}", f"{result.longest_wait:.0f}", f"{result.lock_busy:.0%}")
        counts = (f"{result.overshot}", f"{result.lost}", f"{saturated:,.0f}")
        rates = (f"{result.asks_per_second:.2f}", f"{simulation.heartbeats_per_second:.0f}")
        rows.append([name, *times, *waits, *rates, *counts])
    titles = [
        "ideal s",
        "took s",
        "mean wait s",
        "longest",
        "lock held",
        "asks/s",
        "heartbeats/s",
        "too many",
    ]
    print_table([["study", *titles, "lost", "saturates below s"], *rows])
    return results


def measure_costs() -> dict[str, Any]:
    """All unit costs."""
    costs: dict[str, Any] = measure_unit_costs()
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as name:
        costs |= measure_study(Path(name) / "study")
        (Path(name) / "mlflow" / "mlruns").mkdir(parents=True)
        return costs | measure_mlflow(Path(name) / "mlflow")


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows, the first of which is the header, as Markdown."""
    header, *rest = rows
    for row in (header, ["---"] * len(header), *rest):
        print(f"| {' | '.join(row)} |", flush=True)
    print()


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object as the last line."""
    parser = CommandLineParser(
        prog="runner bench scaling",
        description="Measure unit costs, extrapolate them, and simulate a thousand workers.",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulations; default: 0")
    parser.add_argument("--simulations-only", action="store_true", help="measure and extrapolate nothing")
    options = parser.parse_args(argv)
    result: dict[str, Any] = {"seed": options.seed}
    costs: dict[str, Any] = dict(MEASURED)
    if not options.simulations_only:
        costs = result["costs"] = measure_costs()
        print_table([["cost", "measured"], *([name, f"{value}"] for name, value in costs.items())])
        print_table(table(costs, CLUSTERS))
        result["first_limits"] = {
            f"{each.gpus} GPUs, {each.images} images": first_limit(costs, each) for each in CLUSTERS
        }
        result["lock_seconds_at_1000"] = round(lock_hold(costs, 1_000), 2)
    result["leases"] = simulate_leases(lease_scenarios(options.seed))
    result["studies"] = simulate_studies(study_scenarios(options.seed, costs))
    print(json.dumps(result))
    return 0
