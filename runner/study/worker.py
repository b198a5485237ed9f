"""A worker of a study: asks for trials and runs each as a child run in MLflow, until none is left.

Rank 0 asks the study and decides; its peers get the decisions by broadcast.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from runner.config.tree import as_tree, flatten
from runner.study.session import StudySession
from runner.study.storage import HEARTBEAT_INTERVAL
from runner.study.study import Study
from runner.study.trial_training import TrialTraining
from runner.study.trials import RunningTrial
from runner.tracking.tracker import Pruned
from runner.training.setup import SharedSetup
from runner.utils.errors import UserError, user_message
from runner.utils.redaction import redact


@dataclass
class Worker:
    """A long-lived process, or launch of several, that runs trials one after the other.

    Args:
        session: What it works with.
        stop_requested: Whether to stop; called before each trial.
    """

    session: StudySession
    stop_requested: Callable[[], bool]
    shared: SharedSetup = field(default_factory=SharedSetup)

    def run(self) -> int:
        """Run trials until none is left or a stop is requested. Returns how many it ran.

        Raises `UserError` if too many trials failed in a row, or something that all trials need is missing.
        """
        study, trials, ended = self.session.study, 0, threading.Event()
        if study is not None:
            threading.Thread(
                target=_send_heartbeats, args=(study, ended), name="heartbeat", daemon=True
            ).start()
        try:
            while (trial := self.session.on_rank_0(self._next_trial)) is not None:
                self._run_trial(trial)
                trials += 1
        except BaseException as error:
            if study is not None:
                study.interrupt(user_message(error) or str(error) or type(error).__name__)
            raise
        finally:
            ended.set()
        return trials

    def _next_trial(self, study: Study) -> RunningTrial | None:
        while not self.stop_requested():
            try:
                return study.ask()
            except UserError as error:
                if not study.has_running_trial:
                    raise
                study.fail(str(error))  # its values cannot be combined
        return None

    def _run_trial(self, trial: RunningTrial) -> None:
        session, study, start = self.session, self.session.study, time.monotonic()
        training = TrialTraining(session, trial, self.shared)
        pruned, value = "", 0.0
        try:
            with session.tracking.start_run(trial.name, session.study_run, system_metrics=False) as tracker:
                tracker.log_params(flatten(as_tree(trial.experiment)))
                tracker.set_tags({"runner.trial": str(trial.number), "runner.study": session.plan.name})
                if study is not None:
                    study.annotate(run=tracker.run_id)
                value = training.run(tracker)
        except Pruned as reason:
            pruned = str(reason)
        except Exception as error:
            if not self._concerns_only_this_trial(error):
                raise
            message = user_message(error)
            if message is None:
                print(redact(traceback.format_exc()), end="", file=sys.stderr)
            if study is not None:
                study.fail(message or f"{type(error).__name__}: {error}")
            return
        if study is not None:
            study.annotate(training_seconds=training.seconds, seconds=time.monotonic() - start)
            study.prune(pruned) if pruned else study.complete(value)

    def _concerns_only_this_trial(self, error: Exception) -> bool:
        """Whether other trials may succeed: not if, say, the disk is full, or if peers may not have failed."""
        if isinstance(error, OSError):
            return False
        return isinstance(error, UserError) or self.session.accelerator.num_processes == 1


def _send_heartbeats(study: Study, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_INTERVAL):
        study.record_heartbeat()
