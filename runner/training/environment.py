"""The environment of a run: versions, git commit, device and command."""

from __future__ import annotations

import functools
import getpass
import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from runner.training.hosts import this_world
from runner.utils.launch_environment import COMMAND
from runner.utils.redaction import redact

PACKAGES = ("torch", "torchvision", "accelerate", "mlflow", "numpy", "pillow", "scikit-learn", "safetensors")


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """The content of environment.json: versions, git state, host, device, threads, processes and command."""
    cuda = accelerator.device.type == "cuda"
    return {
        "command": redact(os.environ.get(COMMAND) or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in ("vgg-runner", *PACKAGES)},
        **git_state(),
        "user": _user(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability(),
        "processes": accelerator.num_processes,
        **this_world().describe(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "precision": accelerator.mixed_precision,
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no entry for its user
        return str(os.getuid())


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit of the checkout that holds this package, and whether it has uncommitted changes; None outside of git.

    As it was when a process first asked: that is the code which it runs.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603 (no shell)
        return result.stdout.strip()

    try:
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
