"""Runs a module in a process that exits with its parent: `python -m runner.utils.child PARENT MODULE WORDS…`.

PARENT is the parent's process id. A function that the parent runs between fork and exec would do the same, but is not
safe if the parent has threads.
"""

import runpy
import signal
import sys

from runner.utils.processes import exit_with_parent

if __name__ == "__main__":
    parent, module, *words = sys.argv[1:]
    exit_with_parent(int(parent))
    # A scheduler may send these to all processes of a job. Those that have something to save act on them.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    sys.argv[:] = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
