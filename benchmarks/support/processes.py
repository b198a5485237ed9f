"""Runs a part of a benchmark in new processes, and collects its results."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.utils.processes import cpu_count

ROOT = Path(__file__).resolve().parents[2]


def user_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what MLflow and pytest set, with some variables changed; for the CPU."""
    inherited = {name: v for name, v in os.environ.items() if not name.startswith(("MLFLOW", "PYTEST"))}
    return {**inherited, "ACCELERATE_USE_CPU": "true", **changes}


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def run_part(module: str, part: str, argv: Sequence[str], folder: Path, processes: int = 1) -> dict[str, Any]:
    """Run `python -m MODULE PART FOLDER ARGV…` in distributed processes that share the cores; the result of rank 0.

    Args:
        module: Calls `write_result` when it is run.
        part: Which part of the benchmark to run.
        argv: Settings of the experiment.
        folder: A new folder, for results and compiled code.
        processes: How many, joined as a launcher would join them.

    Raises RuntimeError if a process fails.
    """
    folder.mkdir(parents=True)
    port = free_port()
    running = []
    for rank in range(processes):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "OMP_NUM_THREADS": str(max(1, cpu_count() // processes)),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
        }
        if processes > 1:
            environment |= _launch_variables(rank, processes, port)
        command = [sys.executable, "-m", module, part, str(folder), *argv]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    statuses = [process.wait() for process in running]
    if any(statuses):
        raise RuntimeError(f"the part {part!r} of {module} failed; see its messages above")
    result: dict[str, Any] = json.loads(_result_file(folder, 0).read_text())
    return result


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write the result of this process where `run_part` expects it."""
    _result_file(folder, int(os.environ.get("RANK", "0"))).write_text(json.dumps(result))


def _result_file(folder: Path, rank: int) -> Path:
    return folder / f"result {rank}.json"


def _launch_variables(rank: int, processes: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
