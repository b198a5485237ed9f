"""Hands a command over to `accelerate launch`, on as many processes as asked for, and returns its true status.

What can be refused is refused here, in one sentence, before anything is spawned.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from runner.utils.cpu import cores
from runner.utils.errors import (
    COMMAND,
    LAUNCHED,
    PROCESSES,
    STATUS_FILE,
    STOPPED,
    UserError,
    left_status,
    stopping_signals,
)
from runner.utils.paths import PACKAGE
from runner.utils.processes import die_with_parent, gpu_count
from runner.utils.redaction import redacted

DIED = re.compile(r"died with <Signals\.(SIG\w+)|Signal \d+ \((SIG\w+)\)")
"""How launchers tell of a process that a signal ended."""
ELASTIC = re.compile(r"[WE]\d{4} .*\btorch/distributed/elastic/")
"""How torch's launcher begins to tell of an end."""


def take_processes(argv: Sequence[str]) -> tuple[int | None, list[str]]:
    """Split `-n N` (or `--processes N`) from the other words. Raises `UserError` where N is no positive number."""
    rest: list[str] = []
    count: int | None = None
    words = iter(argv)
    for word in words:
        name, _, value = word.partition("=")
        if name in ("-n", "--processes"):
            value = value or next(words, "")
            if not value.isdigit() or int(value) < 1:
                raise UserError(
                    f"{name} takes a number of processes, 1 or more; it is {value or 'missing'!r}."
                )
            count = int(value)
        else:
            rest.append(word)
    return count, rest


def launch(script: str, argv: Sequence[str], processes: int | None) -> int:
    """Run `runner/SCRIPT` under `accelerate launch`: a process for each GPU, else one, unless `processes` says.

    Returns its exit status. Raises `UserError` for more processes than GPUs.
    """
    gpus = gpu_count()
    count = processes or max(1, gpus)
    if gpus and count > gpus:
        raise UserError(
            f"{count} processes were asked for, but there {'is' if gpus == 1 else 'are'} {gpus} GPU{'s' * (gpus > 1)};"
            f" use -n {gpus}, or ACCELERATE_USE_CPU=true to compute on the processor."
        )
    with tempfile.TemporaryDirectory(prefix="runner-") as folder:
        status_file = Path(folder) / "status"
        environment = {**os.environ, STATUS_FILE: str(status_file), PROCESSES: str(count)}
        environment[COMMAND] = shlex.join(["runner", *sys.argv[1:]])
        environment[LAUNCHED] = str(os.getpid())
        if not gpus:
            environment["ACCELERATE_USE_CPU"] = "true"
        command = [*_accelerate(count, gpus), str(PACKAGE / script), *argv]
        status = _supervise(command, environment, status_file)
        left = left_status(status_file)
        return status if left is None or status > 128 else left


def _accelerate(count: int, gpus: int) -> list[str]:
    """The launch command. Every choice is spelled out: a user's accelerate configuration must not change it."""
    words = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
    ]
    words += ["--dynamo_backend", "no", "--num_processes", str(count)]
    words += ["--num_cpu_threads_per_process", str(max(1, cores() // count))]
    if count > 1:  # --cpu would silently run one process
        return [*words, "--multi_gpu", "--main_process_port", "0"]
    return words if gpus else [*words, "--cpu"]


def _supervise(command: list[str], environment: dict[str, str], status_file: Path) -> int:
    """Run a launcher; pass signals on to what it launched, and its errors on until ours has been said."""
    launcher = subprocess.Popen(  # noqa: S603 (words of our own command line, no shell)
        command,
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
        text=True,
        errors="replace",
    )
    stopped: list[int] = []
    relay = _Relay(launcher.stderr, status_file, stopped)
    relay.start()
    with _passing_signals_to(launcher, stopped, status_file):
        status = launcher.wait()
    relay.join(5)
    if stopped:
        if not relay.spoke:  # it came before they could
            print(f"runner: stopped by {signal.Signals(stopped[0]).name}", file=sys.stderr)
        return 128 + stopped[0]
    if relay.died and not status_file.exists():
        print(f"runner: {_killed(relay.died)}", file=sys.stderr)
        return 128 + signal.Signals[relay.died]
    return status if status >= 0 else 128 - status


def _killed(name: str) -> str:
    why = (
        "by the system for want of memory, or by somebody" if name == "SIGKILL" else "by a fault in a library"
    )
    return (
        f"A process of this launch was ended by {name}, {why}; what it had come to is kept: the same command with"
        " --resume auto goes on (a lower train.batch_size, features.batch_size or features.memory takes less memory)."
    )


class _Relay(threading.Thread):
    """Passes a launcher's errors on. Once a process has said why it ends, its own traceback about that adds nothing.

    Args:
        errors: Of the launcher.
        status_file: There once a process has said so.
        stopped: Holds the signals that were passed on.
    """

    def __init__(self, errors: IO[str] | None, status_file: Path, stopped: list[int]) -> None:
        super().__init__(daemon=True)
        self.errors = errors
        self.status_file = status_file
        self.stopped = stopped
        self.died = ""
        """Name of the signal that ended a launched process."""
        self.spoke = False
        """A launched process has said why it ends."""

    def run(self) -> None:
        """Relay until the launcher ends; its words about the end wait until it is known whether they are needed."""
        ending: list[str] = []
        begun = ""  # a traceback's first line: the second one tells whose it is
        for line in self.errors or ():
            said = DIED.search(line)
            if said and not self.died:
                self.died = said[1] or said[2]
            if line.startswith("runner: "):
                self.spoke = True
                self._pass_on([line])
            elif ending or ELASTIC.match(line) or (begun and "<frozen runpy>" in line):
                ending += [begun, line]
                begun = ""
            elif line.startswith("Traceback"):
                begun = line
            else:
                self._pass_on([begun, line])
                begun = ""
        self._pass_on([begun, *([] if self.died else ending)])

    @property
    def _told(self) -> bool:
        return bool(self.stopped) or self.status_file.exists()

    def _pass_on(self, lines: Sequence[str]) -> None:
        sys.stderr.writelines(
            redacted(line) for line in lines if line.startswith("runner: ") or not self._told
        )
        sys.stderr.flush()


@contextmanager
def _passing_signals_to(
    launcher: subprocess.Popen[str], stopped: list[int], status_file: Path
) -> Iterator[None]:
    """Signals go to the launched processes, which close their records and end; to the launcher before it has any."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)
        with suppress(OSError):
            Path(f"{status_file}{STOPPED}").touch()
        try:
            ranks = psutil.Process(launcher.pid).children()
        except psutil.NoSuchProcess:
            return
        for process in ranks:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        if not ranks:
            launcher.terminate()

    before = {each: signal.signal(each, pass_on) for each in stopping_signals()}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
