"""What a process of a study works with, and how its part in the study begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from runner.study.mlflow_run import StudyRun, close_study_run, open_study_run
from runner.study.options import Role
from runner.study.plan import Plan
from runner.study.study import Study
from runner.tracking.sessions import TrackingSession
from runner.utils.console import Terminal

T = TypeVar("T")


@dataclass(frozen=True)
class StudySession:
    """What a process of a study works with."""

    plan: Plan
    study: Study | None
    """None on ranks other than 0."""
    accelerator: Accelerator
    tracking: TrackingSession
    """Starts runs in MLflow."""
    study_run: StudyRun
    """Their parent."""
    terminal: Terminal

    def on_rank_0(self, function: Callable[[Study], T]) -> T:
        """What a function of the study returns on rank 0, on every rank. All processes call it."""
        result: T = broadcast_object_list([function(self.study) if self.study is not None else None])[0]
        return result


@contextmanager
def open_session(plan: Plan, accelerator: Accelerator, role: Role) -> Iterator[StudySession]:
    """Open the study and its MLflow run for a process, or launch of several.

    A process without a coordinator ends the study's run with the block: as FINISHED, FAILED after an error, or KILLED
    when it was stopped.

    Raises `UserError` if the study or its run cannot be used.
    """
    terminal = Terminal(enabled=accelerator.is_main_process)
    outages = Terminal(enabled=False) if role.is_worker else terminal  # the coordinator of workers shows them
    tracking = TrackingSession(plan.baseline, accelerator, outages)
    study, study_run = None, StudyRun("", plan.name)
    if accelerator.is_main_process:
        study = Study(plan, tracking.server.root)
        study_run = open_study_run(study, tracking, owns=not role.has_coordinator)
    status = "KILLED"
    try:
        yield StudySession(plan, study, accelerator, tracking, study_run, terminal)
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        if study is not None and not role.has_coordinator:
            close_study_run(study, tracking, study_run, status)
