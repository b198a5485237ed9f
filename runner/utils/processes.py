"""CPU cores and GPUs of this process, and its ties to the processes that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from types import FrameType

import psutil

from runner.utils.launch_environment import LAUNCHER_PID

PR_SET_PDEATHSIG = 1
"""Option of prctl(2): the signal that this process receives when its parent exits."""


def cpu_count() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_count() -> int:
    """GPUs that this process may use. It does not load CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "t", "yes", "y", "on"):
        return 0
    try:
        import pynvml

        pynvml.nvmlInit()
        present = int(pynvml.nvmlDeviceGetCount())
        pynvml.nvmlShutdown()
    except Exception:  # no NVIDIA driver
        return 0
    return present if visible is None else min(present, len(list(takewhile(_is_device, visible.split(",")))))


def _is_device(word: str) -> bool:
    """Whether a word of CUDA_VISIBLE_DEVICES names a device. CUDA ignores what follows the first that does not."""
    return bool(word.strip()) and not word.strip().startswith("-")


def exit_with_parent(parent: int) -> None:
    """Ask Linux to send SIGTERM to this process when its parent, the process `parent`, exits."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has exited already
        os.kill(os.getpid(), signal.SIGTERM)


def exit_with_launcher() -> None:
    """Let this process exit with `accelerate launch` or torchrun, if one of them or our launcher started it."""
    parent = os.getppid()
    if any(
        name in word for word in parent_command() for name in ("accelerate", "torchrun", "torch.distributed")
    ):
        exit_with_parent(parent)
    elif os.environ.get(LAUNCHER_PID, str(parent)) != str(parent):  # it has exited already
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def pause_children() -> Iterator[None]:
    """Within the block, Ctrl-Z also stops all processes that this one has started, and `fg` or `bg` continues them.

    For children in sessions of their own, which the terminal does not reach. For the main thread.
    """

    def pause(number: int, _frame: FrameType | None) -> None:
        _signal_descendants(signal.SIGSTOP)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # returns when this process is continued
        signal.signal(number, pause)
        _signal_descendants(signal.SIGCONT)

    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTSTP, pause)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)


def _signal_descendants(number: int) -> None:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.send_signal(number)


def parent_command() -> list[str]:
    """The command line of this process's parent; empty if it has exited."""
    try:
        return psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
