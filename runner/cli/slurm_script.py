"""The batch script of `runner slurm`."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from runner.utils.text import counted, printable

_ENVIRONMENT = Environment(  # noqa: S701 (a shell script: the values are quoted for the shell)
    loader=PackageLoader("runner.cli"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class StopSignal:
    """The signal that a job gets before its time limit.

    Args:
        number: The signal.
        seconds: How long before the limit.
    """

    number: signal.Signals = signal.SIGUSR1
    seconds: int = 180

    @property
    def name(self) -> str:
        """`SIGUSR1`."""
        return self.number.name

    @property
    def sbatch(self) -> str:
        """As sbatch takes it: `USR1@180`."""
        return f"{self.name.removeprefix('SIG')}@{self.seconds}"

    @property
    def status(self) -> int:
        """The exit status of a command that stopped because of it."""
        return 128 + self.number


@dataclass(frozen=True)
class Job:
    """What a job runs, and what it asks SLURM for.

    Args:
        verb: train or search.
        words: The words after the verb.
        name: Of the job.
        root: Folder of the run records.
        nodes: Number of nodes.
        gpus: GPUs per node; 0: it computes on the CPU.
        cpus: CPUs per node.
        time: Time limit in SLURM's notation; empty: the partition's.
        partition: Its name; empty: the default one.
        array: Number of workers of a study, as `50` or `50%8`; empty: one job.
        signal: Sent before the time limit.
        further: Options of sbatch.
    """

    verb: str
    words: Sequence[str]
    name: str
    root: str
    nodes: int = 1
    gpus: int = 0
    cpus: int = 1
    time: str = ""
    partition: str = ""
    array: str = ""
    signal: StopSignal = StopSignal()
    further: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        """Where its script and its output are stored."""
        return Path(self.root).expanduser() / "slurm"

    @property
    def label(self) -> str:
        """Its name as a part of file names."""
        return re.sub(r"[^\w.-]+", "-", self.name, flags=re.ASCII).strip("-.") or self.verb

    def output(self, job: str = "%j", element: str = "%a") -> str:
        """The file of its output.

        Args:
            job: Its id; by default what SLURM replaces by it.
            element: Likewise, the index of an element of an array.
        """
        if self.array:
            job = f"{job.replace('%j', '%A')}_{element}"
        return str(self.folder / f"{self.label}-{job}.out")

    def script(self, launcher: Sequence[str]) -> str:
        """The batch script.

        Args:
            launcher: The command before the verb, as `./launch.sh`.
        """
        first, _, throttle = self.array.partition("%")
        folder = str(self.folder).replace("%", "%%")
        output = f"{folder}/{Path(self.output()).name}"
        place = counted(self.nodes, "node") + (f" with {counted(self.gpus, 'GPU')}" if self.gpus else "")
        place += " each" if self.gpus and self.nodes > 1 else ""
        jobs = f"{counted(int(first), 'job')}, each " if first else ""
        return _ENVIRONMENT.get_template("slurm.sh.jinja").render(
            purpose=f"{self.verb}, {jobs}on {place}",
            verb=self.verb,
            root=printable(self.root),
            name=shlex.quote(self.label),
            array=f"0-{int(first) - 1}{f'%{throttle}' if throttle else ''}" if first else "",
            nodes=self.nodes,
            gpus=self.gpus,
            cpus=self.cpus,
            time=self.time,
            partition=shlex.quote(self.partition) if self.partition else "",
            output=shlex.quote(output),
            signal=self.signal,
            further=[shlex.quote(option) for option in self.further],
            command=" \\\n    ".join(_one_option_a_line([*launcher, self.verb, *self.words])),
        )


def _one_option_a_line(words: Sequence[str]) -> list[str]:
    """The words of a command, quoted for the shell; each long option begins a line."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return [shlex.join(line) for line in lines]
