"""TODO."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from itertools import takewhile

import psutil

from runner.utils.errors import (
    LAUNCHED,
)


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
    return present if visible is None else min(present, len(list(takewhile(_names_gpu, visible.split(",")))))


def _names_gpu(word: str) -> bool:
    """Whether CUDA goes on reading CUDA_VISIBLE_DEVICES: it stops at the first that is none, as -1."""
    return bool(word.strip()) and not word.strip().startswith("-")


def die_with_parent(parent: int) -> None:
    """Ask Linux to end this process when its parent, the process `parent`, is killed: it would go on alone."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # it has died before it could be asked
        os.kill(os.getpid(), signal.SIGTERM)


def follow_launcher() -> None:
    """End with the launcher of this process, if it has one: with `accelerate`, which ours or a user has started."""
    parent = os.getppid()
    if any("accelerate" in word for word in parent_command()):
        die_with_parent(parent)
    elif LAUNCHED in os.environ:  # it has died already
        os.kill(os.getpid(), signal.SIGTERM)


def parent_command() -> list[str]:
    """The command line of this process's parent; nothing where it is gone."""
    try:
        return psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
