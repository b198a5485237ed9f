"""A training on several hosts: a process of `runner/train.py` on each, or several on one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.support.hosts import Host
from benchmarks.support.processes import ROOT, user_environment

PORT = "29400"
"""At which the processes meet. Each host has ports of its own."""


@dataclass
class HostLaunch:
    """A running launch.

    Args:
        processes: By rank.
        outputs: The files of what they print.
    """

    processes: list[subprocess.Popen[str]]
    outputs: list[Path]

    def wait(self, seconds: float, of: Sequence[int] | None = None) -> list[int]:
        """The exit statuses of these processes (default: all), when they have ended.

        Raises TimeoutExpired if that takes longer.
        """
        deadline = time.monotonic() + seconds
        ranks = range(len(self.processes)) if of is None else of
        return [self.processes[rank].wait(max(0.0, deadline - time.monotonic())) for rank in ranks]

    def text(self, rank: int) -> str:
        """What a process has printed so far."""
        return self.outputs[rank].read_text()

    def kill(self) -> None:
        """End what still runs."""
        for process in self.processes:
            process.kill()


def launch(
    hosts: Sequence[Host],
    words: Sequence[Sequence[str]],
    count: int | None = None,
    cores: Sequence[int] = (),
    **variables: str,
) -> HostLaunch:
    """Start `runner/train.py` on each host, with words of its own; the first one has rank 0.

    Args:
        hosts: On which to start it. A host that is named twice gets two processes.
        words: Of each command line.
        count: Of the processes that each waits for; default: as many as are started.
        cores: Of this machine, one for each process, which it may use; default: all.
        variables: Of the environment.
    """
    launched = HostLaunch([], [])
    for rank, (host, own) in enumerate(zip(hosts, words, strict=True)):
        environment = {
            **user_environment(**variables),
            **ranks(rank, count or len(hosts), hosts[0].address),
            "OMP_NUM_THREADS": "1",
        }
        if hosts.count(host) > 1:
            local = {"LOCAL_RANK": hosts[:rank].count(host), "LOCAL_WORLD_SIZE": hosts.count(host)}
            environment |= {name: str(value) for name, value in local.items()}
        output = host.folder / f"output{len([*host.folder.glob('output*')])}"
        with output.open("w") as file:
            command = [sys.executable, str(ROOT / "runner" / "train.py"), *own]
            if cores:
                command = ["taskset", "--cpu-list", str(cores[rank]), *command]
            process = host.start(command, environment, stdout=file, stderr=subprocess.STDOUT)
        launched.processes.append(process)
        launched.outputs.append(output)
    return launched


def ranks(rank: int, count: int, address: str) -> Mapping[str, str]:
    """The variables of a process that is alone on its host."""
    return {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": address, "MASTER_PORT": PORT}
