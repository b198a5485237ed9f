"""Hands a command over to `accelerate launch`, on as many processes as asked for, and returns its true status.

What can be refused is refused here, in one sentence, before anything is spawned.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from runner.cores import cores
from runner.errors import PROCESSES, STATUS_FILE, UserError

HERE = Path(__file__).resolve().parent


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


def gpu_count() -> int:
    """GPUs that this process may use, without loading CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return 0
    try:
        import pynvml

        pynvml.nvmlInit()
        present = int(pynvml.nvmlDeviceGetCount())
        pynvml.nvmlShutdown()
    except Exception:  # no NVIDIA driver
        return 0
    return (
        present
        if visible is None
        else min(present, len([each for each in visible.split(",") if each.strip()]))
    )


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
        if not gpus:
            environment["ACCELERATE_USE_CPU"] = "true"
        command = [*_accelerate(count, gpus), str(HERE / script), *argv]
        status = _supervise(command, environment, status_file)
        return int(status_file.read_text()) if status_file.exists() else status


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
    launcher = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, start_new_session=True, text=True, errors="replace"
    )
    assert launcher.stderr is not None
    relay = threading.Thread(target=_relay, args=(launcher.stderr, status_file), daemon=True)
    relay.start()
    with _passing_signals_to(launcher.pid):
        status = launcher.wait()
    relay.join(5)
    return status if status >= 0 else 128 - status


def _relay(errors: IO[str], status_file: Path) -> None:
    """Once a process has said why it ends, the launcher's own traceback about that adds nothing."""
    for line in errors:
        if line.startswith("runner: ") or not status_file.exists():
            sys.stderr.write(line)
            sys.stderr.flush()


@contextmanager
def _passing_signals_to(launcher: int) -> Iterator[None]:
    """SIGINT and SIGTERM go to the launched processes, not to the launcher: they close their records and end."""

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        try:
            family = psutil.Process(launcher).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                process.send_signal(signal.SIGTERM)
            except psutil.NoSuchProcess:
                continue

    before = {each: signal.signal(each, pass_on) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
