"""Environment variables: those that the launcher passes to the processes it starts, and those of other launchers."""

from __future__ import annotations

import getpass
import os
import re
import sys
import tempfile
from pathlib import Path

from runner.utils.errors import UserError

PROCESS_COUNT = "RUNNER_PROCESSES"
"""The number of processes that the launcher was asked to start."""
COMMAND = "RUNNER_COMMAND"
"""The command line of the launcher."""
LAUNCHER_PID = "RUNNER_LAUNCHED"
"""The process id of the launcher."""
STATUS_FILE = "RUNNER_STATUS_FILE"
"""The file for the exit status of the first process that fails. torch's launcher would replace it by its own status."""
STOPPED_SUFFIX = ".stopped"
"""A file named like the status file with this suffix exists once the launcher has forwarded a stop signal."""

JOIN_MINUTES = "RUNNER_JOIN_TIMEOUT"
"""Minutes that the processes of several hosts wait for each other at the start; a user may set it."""

_OTHER_LAUNCH = re.compile(
    r"""
    ((LOCAL_|GROUP_|ROLE_|NODE_)?RANK | (LOCAL_|GROUP_|ROLE_)?WORLD_SIZE | ROLE_NAME | MASTER_(ADDR|PORT)  # torchrun
    | (TORCHELASTIC|PET)_\w+
    | (OMPI|MV2)_COMM_WORLD_\w+ | PMIX?_(?!MCA_)\w+ | MPI_LOCALN?RANK\w*  # MPI, not its settings
    | ACCELERATE_(?!(USE_CPU|CPU_AFFINITY|TORCH_DEVICE|LOG_LEVEL|ENABLE_RICH|DEBUG_MODE)$)\w+  # Accelerate's plugins
    )$""",
    re.VERBOSE,
)
_STEP = re.compile(r"(OMPI|PMIX?)_|MASTER_ADDR$")
"""What Open MPI sets for a task, and how its user names the host of rank 0."""
_OWN = (PROCESS_COUNT, COMMAND, LAUNCHER_PID, STATUS_FILE)


def forget_other_launches(in_step: bool = False) -> list[str]:
    """Remove what torchrun, MPI, Accelerate or an outer launch of ours set for this process; returns the foreign names.

    For a command that starts its own processes: Accelerate would wait for ranks that nobody starts.

    Args:
        in_step: A scheduler has started this process as one of several: what it has set for them stays.
    """
    for name in _OWN:
        os.environ.pop(name, None)
    names = sorted(name for name in os.environ if _OTHER_LAUNCH.match(name))
    if in_step:
        names = [name for name in names if not _STEP.match(name)]
    elif os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        names.append("SLURM_STEP_NUM_TASKS")
    for name in names:
        del os.environ[name]
    return names


def ignored_settings() -> list[str]:
    """What else might be expected to choose processes, but does not: sentences for a user."""
    notes = []
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    folder = Path(os.environ.get("HF_HOME", home), "accelerate").expanduser()
    if found := next(iter(folder.glob("default_config.*")), None):
        notes.append(f"{found} is ignored: this command chooses processes and precision itself")
    nodes = os.environ.get("SLURM_JOB_NUM_NODES") or os.environ.get("SLURM_NNODES") or "1"
    if nodes != "1":
        notes.append(
            f"SLURM's job {os.environ.get('SLURM_JOB_ID', '')} has {nodes} nodes, but this command runs on this host"
            " alone; to use all, put srun before it"
        )
    return notes


def join_seconds() -> float:
    """Seconds that processes of several hosts wait for each other at the start. Raises `UserError` for odd values."""
    text = os.environ.get(JOIN_MINUTES) or "10"
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 10_000:
        raise UserError(f"{JOIN_MINUTES} is {text!r}, but it must be a number of minutes, such as 10.")
    return minutes * 60


def provide_home() -> None:
    """Give a user without home folder or name, as in some containers, a temporary one: libraries fail without."""
    try:
        Path.home()
    except RuntimeError:
        home = Path(tempfile.gettempdir(), f"runner-home-{os.getuid()}")
        home.mkdir(mode=0o700, exist_ok=True)
        if home.stat().st_uid != os.getuid() or home.is_symlink():
            home = Path(tempfile.mkdtemp(prefix="runner-home-"))
        os.environ["HOME"] = str(home)
        print(
            f"note: this user has no home folder, {home} is used; set HOME or --cache to another",
            file=sys.stderr,
        )
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = str(os.getuid())
