"""Studies without training: plans, and workers that score the values of a trial by a formula."""

from __future__ import annotations

import inspect
import math
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from commands import ROOT

from runner.config.parser import parse
from runner.config.schema import Experiment
from runner.study.plan import Plan
from runner.study.space import Dimension, Space
from runner.study.study import Study
from runner.study.trials import RunningTrial

LR = Dimension("optim.lr", 1e-4, 0.1, log=True)
DROPOUT = Dimension("model.dropout", 0.0, 0.8)
BATCH_SIZE = Dimension("train.batch_size", choices=(16, 32, 64))
OPTIMIZER = Dimension("optim.name", choices=("adam", "adamw", "sgd"))
MOMENTUM = Dimension("optim.momentum", 0.5, 0.99, when=(("optim.name", ("sgd",)),))
SPACE = Space((LR, DROPOUT))
GRID = Space((Dimension("model.dropout", choices=(0.1, 0.5)), BATCH_SIZE))
CONDITIONAL = Space((OPTIMIZER, MOMENTUM, LR))
WORKER_TIMEOUT = 240
"""Seconds that a process without training may take on a busy machine."""

PROCESS = """
import math, os, pickle, signal, sys
from pathlib import Path
from typing import Any
from runner.study.study import Study
{score}
study = Study(pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]))
{body}
"""


def quickstart(*words: str) -> Experiment:
    """The quickstart with five epochs, as the baseline of studies."""
    return parse(["--config", "quickstart", "--train.epochs", "5", *words])[0]


def make_plan(storage: Path | str, **changes: Any) -> Plan:
    """The plan of a small study, with some fields changed."""
    fields = {
        "name": "some",
        "baseline": quickstart(),
        "space": SPACE,
        "storage": str(storage),
        "sampler": "random",
        "pruner": "none",
        "trials": 6,
    }
    return Plan(**{**fields, **changes})


def score(values: dict[str, Any]) -> float:
    """Best for lr 0.01 and dropout 0.3."""
    lr, dropout = float(values.get("optim.lr", 0.01)), float(values.get("model.dropout", 0.3))
    return 1 - (math.log10(lr) + 2) ** 2 / 10 - (dropout - 0.3) ** 2


def work(study: Study, limit: int = 1000) -> list[RunningTrial]:
    """Run the trials that are left, at most `limit`."""
    done: list[RunningTrial] = []
    while len(done) < limit and (trial := study.ask()) is not None:
        study.complete(score(trial.values))
        done.append(trial)
    return done


def values_of(trials: list[RunningTrial]) -> list[dict[str, Any]]:
    return [trial.values for trial in trials]


def states(study: Study) -> list[str]:
    return [trial.state.name for trial in study.trials()]


def start_process(plan: Plan, root: Path, body: str) -> subprocess.Popen[str]:
    """A process that runs `body` with the open `study`."""
    root.mkdir(exist_ok=True)
    file = root / "plan.pickle"
    if not file.exists():
        file.write_bytes(pickle.dumps(plan))
    code = PROCESS.format(score=inspect.getsource(score), body=body)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(file), str(root)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_worker(plan: Plan, root: Path) -> subprocess.Popen[str]:
    """A process that runs the trials that are left and prints a list of their numbers."""
    return start_process(
        plan,
        root,
        "numbers = []\n"
        "while (trial := study.ask()) is not None:\n"
        "    study.record_heartbeat()\n"
        "    study.report(1, 0.5)\n"
        "    study.annotate(run='run')\n"
        "    study.complete(score(trial.values))\n"
        "    numbers.append(trial.number)\n"
        "print(numbers)\n",
    )


def numbers_of(processes: list[subprocess.Popen[str]]) -> list[int]:
    """Sorted numbers of the trials that some workers ran, after they have succeeded."""
    outputs = [process.communicate(timeout=WORKER_TIMEOUT) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return sorted(number for output, _ in outputs for number in eval(output))


def die_in_trial(plan: Plan, root: Path, after: int = 0) -> None:
    """Let a worker complete `after` trials and be killed in the next one."""
    body = (
        f"for _ in range({after}):\n    study.complete(score(study.ask().values))\n"
        "assert study.ask() is not None\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = start_process(plan, root, body)
    errors = process.communicate(timeout=WORKER_TIMEOUT)[1]
    assert process.returncode == -signal.SIGKILL, errors
