"""Environment variables: those that the launcher passes to the processes it starts, and those of other launchers."""

import os
import re

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

_OTHER_LAUNCH = re.compile(
    r"""
    ((LOCAL_|GROUP_|ROLE_|NODE_)?RANK | (LOCAL_|GROUP_|ROLE_)?WORLD_SIZE | ROLE_NAME | MASTER_(ADDR|PORT)  # torchrun
    | (TORCHELASTIC|PET)_\w+
    | (OMPI|MV2)_COMM_WORLD_\w+ | PMIX?_\w+ | MPI_LOCALN?RANK\w*  # MPI
    | ACCELERATE_(?!(USE_CPU|CPU_AFFINITY|TORCH_DEVICE|LOG_LEVEL|ENABLE_RICH|DEBUG_MODE)$)\w+  # Accelerate's plugins
    )$""",
    re.VERBOSE,
)
_OWN = (PROCESS_COUNT, COMMAND, LAUNCHER_PID, STATUS_FILE)


def forget_other_launches() -> list[str]:
    """Remove what torchrun, MPI, Accelerate or an outer launch of ours told this process; returns the foreign names.

    For a command that starts its own processes: Accelerate would wait for ranks that nobody starts.
    """
    for name in _OWN:
        os.environ.pop(name, None)
    names = sorted(name for name in os.environ if _OTHER_LAUNCH.match(name))
    for name in names:
        del os.environ[name]
    return names
