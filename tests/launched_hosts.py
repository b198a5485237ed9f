"""A training on several hosts: a process of `runner/train.py` on each."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from commands import ROOT, user_environment
from hosts import Host
from killed_runs import Workspace

WAIT = 240.0
"""Seconds that a launch on a busy machine may take to come to a certain point."""


@dataclass
class HostLaunch:
    """A running launch.

    Args:
        processes: One for each host.
        outputs: The files of what they print.
    """

    processes: list[subprocess.Popen[str]]
    outputs: list[Path]

    def statuses(self, of: Sequence[int] | None = None) -> list[int]:
        """The exit statuses, in the order of the hosts, when these (default: all) have ended."""
        return [self.processes[index].wait(WAIT) for index in (of or range(len(self.processes)))]

    def text(self, index: int) -> str:
        """What a process has printed so far."""
        return self.outputs[index].read_text()

    def wait_for_snapshot(self, workspace: Workspace) -> None:
        """Wait until a snapshot of the third epoch or a later one has been written."""
        deadline = time.monotonic() + WAIT
        while not any(any(state.glob("00000[2-9]-*")) for state in workspace.states):
            assert all(each.poll() is None for each in self.processes), self.text(0)
            assert time.monotonic() < deadline, self.text(0)
            time.sleep(0.05)

    def kill(self) -> None:
        """End what still runs."""
        for process in self.processes:
            process.kill()


def launch(
    hosts: Sequence[Host], words: Sequence[Sequence[str]], count: int | None = None, **variables: str
) -> HostLaunch:
    """Start `runner/train.py` on each host, with words of its own; the first one has rank 0.

    Args:
        hosts: On which to start it.
        words: Of each command line.
        count: Of the processes that each waits for; default: as many as are started.
        variables: Of the environment.
    """
    launched = HostLaunch([], [])
    for rank, (host, own) in enumerate(zip(hosts, words, strict=True)):
        environment = {
            **user_environment(**variables),
            **ranks(rank, count or len(hosts), hosts[0].address),
            "OMP_NUM_THREADS": "1",
        }
        outputs = sorted(host.folder.glob("output*"))
        output = host.folder / f"output{len(outputs)}"
        with output.open("w") as file:
            command = [sys.executable, str(ROOT / "runner" / "train.py"), *own]
            process = host.start(command, environment, stdout=file, stderr=subprocess.STDOUT)
        launched.processes.append(process)
        launched.outputs.append(output)
    return launched


def ranks(rank: int, count: int, address: str) -> Mapping[str, str]:
    """The variables of a process that is alone on its host."""
    return {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": address, "MASTER_PORT": "29400"}
