"""A worker of a study whose trials are not trained but scored by a formula: `… STORAGE TRIALS ROOT SECONDS`.

It does with the study what a worker of `runner search` does; each trial takes about SECONDS.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.config.parser import parse
from runner.study import storage
from runner.study.plan import Plan
from runner.study.space import Dimension, Space
from runner.study.study import Study
from runner.utils.errors import UserError
from runner.utils.heartbeat import Heartbeat

HEARTBEAT_INTERVAL, HEARTBEAT_GRACE = 1, 3
"""Seconds between heartbeats, and without one until a trial counts as silent."""
STEPS = 4
"""Intermediate values of a trial."""


def formula_plan(storage_address: str, trials: int) -> Plan:
    """A study of the learning rate with so many trials."""
    return Plan(
        name="formula",
        baseline=parse(["--config", "quickstart"])[0],
        space=Space((Dimension("optim.lr", 1e-4, 0.1, log=True),)),
        storage=storage_address,
        sampler="random",
        pruner="none",
        trials=trials,
    )


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


def main(address: str, trials: str, root: str, seconds: str) -> int:
    """Work on the study; the exit status."""
    storage.HEARTBEAT_INTERVAL, storage.HEARTBEAT_GRACE = HEARTBEAT_INTERVAL, HEARTBEAT_GRACE
    try:
        study = Study(formula_plan(address, int(trials)), Path(root), worked_before=True)
        Heartbeat(study.record_heartbeat, storage.HEARTBEAT_INTERVAL).start()
        work(study, float(seconds))
    except UserError as error:
        print(f"runner: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
