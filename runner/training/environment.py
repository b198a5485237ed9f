"""What a run was made with: versions, commit, device, command."""

from __future__ import annotations

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

from runner.utils.errors import COMMAND
from runner.utils.redaction import redacted

PACKAGES = ("torch", "torchvision", "accelerate", "mlflow", "numpy", "pillow", "scikit-learn", "safetensors")


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Versions, git commit and whether the tree was dirty, host, device, threads, processes, launch command."""
    cuda = accelerator.device.type == "cuda"
    return {
        "command": redacted(os.environ.get(COMMAND) or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in ("vgg-runner", *PACKAGES)},
        **git_state(),
        "user": _user(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability(),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "precision": accelerator.mixed_precision,
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without an entry for its user
        return str(os.getuid())


def git_state() -> dict[str, Any]:
    """The commit of the checkout that this package lies in, and whether it had uncommitted changes."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603 (no shell)
        return told.stdout.strip()

    try:
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
