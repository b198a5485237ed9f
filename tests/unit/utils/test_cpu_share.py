"""Workers of a study keep to their share of the cores, in all of their threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, threading
started, end = threading.Event(), threading.Event()
other = threading.Thread(target=lambda: (started.set(), end.wait()))
other.start()
started.wait()
from runner.utils.cpu_share import all_cores, pin_to_share
everywhere = sorted(os.sched_getaffinity(0))
pin_to_share(1, len(everywhere), None)
pinned = [sorted(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")]
with all_cores():
    within = [sorted(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")]
after = sorted(os.sched_getaffinity(other.native_id))
end.set()
print(json.dumps(len(pinned) > 1 and all(cores == everywhere[1:2] for cores in pinned)))
print(json.dumps(all(cores == everywhere for cores in within) and after == everywhere[1:2]))
"""


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_threads_that_run_already_are_restricted_too() -> None:
    outcome = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert outcome.stdout.split() == ["true", "true"], outcome
