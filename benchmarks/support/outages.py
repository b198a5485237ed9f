"""Trains while the tracking server fails again and again, and compares the records with those of a calm run."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.support.faulty_proxy import FAULTS, FaultyProxy
from benchmarks.support.processes import free_port
from benchmarks.support.small_run import (
    TRAIN_COMMAND,
    MetricPoints,
    arguments,
    difference,
    metric_points,
    param_count,
    run_statuses,
)
from runner.utils.console import Terminal

LONG_RUN = {"train.epochs": "200", "train.batch_size": "8", "schedule.kind": "constant"}
FAULT_SECONDS = 1.5
PAUSE_SECONDS = 0.7
TIMEOUT = 120.0
"""Seconds to wait for a server or a run."""


def measure_outages(outages: int, folder: Path, terminal: Terminal) -> dict[str, Any]:
    """Train through `outages` outages; count the records that are missing, additional or doubled."""
    # Both runs use the same command: with another number of threads the last digits would differ.
    subprocess.run(
        [*TRAIN_COMMAND, *arguments(folder, "calm", LONG_RUN)], stdout=subprocess.DEVNULL, check=True
    )
    done = _train_through_outages(outages, folder)
    expected, actual = metric_points(folder, "calm"), metric_points(folder, "stormy")
    lost = _differing_points(expected, actual)
    lost += abs(param_count(folder, "calm") - param_count(folder, "stormy"))
    lost += len(_artifact_names(folder / "mlruns/artifacts/calm") ^ _artifact_names(folder / "served"))
    statuses = run_statuses(folder, "stormy")
    if statuses != ["FINISHED"] or done < outages or lost:
        terminal.warn(f"the run through {done} outages is {statuses}; {difference(expected, actual)}")
    return {"outages": done, "outages_lost": lost}


def _train_through_outages(outages: int, folder: Path) -> int:
    """Train as experiment `stormy`: the number of outages while it ran. The last one is a restart of the server."""
    port, done = free_port(), 0
    proxy = FaultyProxy(port)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": proxy.url}
    try:
        with mlflow_server(folder, port):
            run = subprocess.Popen(
                [*TRAIN_COMMAND, *arguments(folder, "stormy", LONG_RUN)],
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            wait_until(lambda: bool(metric_points(folder, "stormy")), TIMEOUT)
            for number in range(outages - 1):
                if run.poll() is not None:
                    break
                proxy.fault = FAULTS[number % len(FAULTS)]
                done += 1
                time.sleep(FAULT_SECONDS)
                proxy.fault = None
                time.sleep(PAUSE_SECONDS)
        done += run.poll() is None  # the server is down now …
        with mlflow_server(folder, port):  # … and up again
            run.wait()
    finally:
        proxy.shutdown()
    return done


def _differing_points(expected: MetricPoints, actual: MetricPoints) -> int:
    """Number of points that are missing, additional or doubled."""
    count = 0
    for key in {**expected, **actual}:
        wanted, logged = expected.get(key, []), actual.get(key, [])
        count += len(set(wanted) ^ set(logged)) + len(logged) - len(set(logged))
    return count


def _artifact_names(folder: Path) -> set[str]:
    """File names of artifacts, except images, whose names contain the time."""
    return {path.name for path in folder.rglob("*") if path.is_file() and "images" not in path.parts}


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[None]:
    """An MLflow server over the folder's database. Its output goes to server.log."""
    store = f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "served"), "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: _is_healthy(port), TIMEOUT)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def wait_until(ready: Callable[[], bool], timeout: float) -> None:
    """Return when `ready` returns true. Raises RuntimeError after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > end:
            raise RuntimeError(f"what a benchmark waited for did not happen within {timeout:g} s")
        time.sleep(0.02)
