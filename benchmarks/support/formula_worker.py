"""A worker of a study whose trials are not trained but scored by a formula: `python -m … PLAN ROOT SECONDS`.

It does with the study what a worker of `runner search` does. PLAN is a file with the plan and the heartbeats' interval
and grace; each trial takes about SECONDS.
"""

from __future__ import annotations

import math
import pickle
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.study import storage
from runner.study.study import Study
from runner.utils.errors import UserError
from runner.utils.heartbeat import Heartbeat

STEPS = 4
"""Intermediate values of a trial."""


def score(values: Mapping[str, Any]) -> float:
    """Best for lr 0.01; another value for each lr."""
    return 1 - (math.log10(float(values["optim.lr"])) + 2) ** 2 / 10


def work(study: Study, seconds: float) -> None:
    """Run trials until none is left, and none on another host may be lost."""
    while True:
        while (trial := study.ask()) is not None:
            for step in range(STEPS):
                time.sleep(seconds / STEPS)
                if study.report(step, 0.5, trial.number):
                    break
            if study.why_dropped(trial.number):
                study.fail("dropped", trial.number)
            else:
                study.complete(score(trial.values), trial.number)
        if not study.wait_for_other_hosts(lambda: False):
            return


def main(plan_file: str, root: str, seconds: str) -> int:
    """Work on the study; the exit status."""
    plan, storage.HEARTBEAT_INTERVAL, storage.HEARTBEAT_GRACE = pickle.loads(Path(plan_file).read_bytes())  # noqa: S301
    try:
        study = Study(plan, Path(root), worked_before=True)
        Heartbeat(study.record_heartbeat, storage.HEARTBEAT_INTERVAL).start()
        work(study, float(seconds))
    except UserError as error:
        print(f"runner: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
