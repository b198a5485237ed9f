"""A worker of a study: asks for trials and runs each as a child run in MLflow, until none is left.

A trial is a generator that yields its trainings: the worker trains each before the trial goes on. So it can train
those of several trials together.

A trial trains on the training split with one or several seeds, and is evaluated on the validation split; with folds,
their images are divided again for each. It never sees the test split. Rank 0 asks the study and decides; its peers get
the decisions by broadcast.
"""

from __future__ import annotations

import statistics
import sys
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from runner.config.effective import decisive_settings
from runner.config.identity import Identity
from runner.study.session import StudySession
from runner.study.storage import HEARTBEAT_INTERVAL
from runner.study.study import Study
from runner.study.together import train_together
from runner.study.trial_training import TrialGenerator, TrialTraining
from runner.study.trials import RunningTrial
from runner.tracking.tracker import Tracker
from runner.training.results import EpochResult
from runner.training.setup import SharedSetup, prepare
from runner.utils.cpu_share import all_cores
from runner.utils.errors import UserError, user_message
from runner.utils.heartbeat import Heartbeat
from runner.utils.long_wait import long_wait
from runner.utils.redaction import redact


class DroppedError(UserError):
    """The result of a trial is not wanted any more: the study has given up the trial, and tries its values again."""


class Pruned(Exception):  # noqa: N818 (a normal end of a trial, not an error)
    """A study's pruner stops a trial."""


@dataclass
class TrialRunner:
    """Runs a trial: prepares its trainings one by one, and makes its value of their results.

    Args:
        session: What the worker works with.
        trial: The trial.
        shared: What the worker's trials share.
    """

    session: StudySession
    trial: RunningTrial
    shared: SharedSetup
    seconds: float = 0.0
    """Time spent in the training loop so far."""
    waited: float = 0.0
    """Time that other trials of the batch took meanwhile."""

    def run(self, tracker: Tracker) -> Generator[TrialTraining, None, float]:
        """Yield a training with each seed and fold. Returns the mean of the objective at their best epochs.

        Raises on all ranks `Pruned` if the study's pruner stops the trial, `DroppedError` if the study has given it up,
        and what preparation and training raise.
        """
        plan, study = self.session.plan, self.session.study
        values: list[float] = []
        for index in range(plan.trainings):
            training = self._prepare(index, tracker)
            start = time.monotonic()
            try:
                yield training
            finally:
                self.seconds += training.seconds
                self.waited += time.monotonic() - start - training.seconds
            values.append(training.best_epoch.val[plan.objective])
            if index == 0:
                first = training
            if plan.trainings > 1:
                self._report(index, values[-1], f"after {plan.training_name(index)}")
        self._check_wanted()
        value, best = statistics.fmean(values), first.best_epoch
        tracker.log_metrics({"objective": value, "best_epoch": best.number, **best.val.metrics("val/best")})
        if len(values) > 1:
            tracker.log_metrics({"objective_sd": statistics.stdev(values)})
        if study is not None:
            study.annotate(self.trial.number, scores=dict(best.val.values))
            if study.is_improvement(value):
                first.log_best()
        return value

    def _prepare(self, index: int, tracker: Tracker) -> TrialTraining:
        experiment = self.session.plan.training(self.trial.experiment, index)
        parts = [] if experiment.split.fold is None else [f"fold{experiment.split.fold}"]
        if experiment.seed.train != self.trial.experiment.seed.train:
            parts.append(f"seed{experiment.seed.train}")
        prefix = "/".join([*parts, ""]) if index else ""
        setup = prepare(experiment, self.session.accelerator, self.session.terminal, self.shared)
        # The other workers wait for the features: all cores compute them.
        if setup.reserve_space().features:
            with all_cores():
                for features, wanted in setup.required_features:
                    for split, view in wanted:
                        if split != "test" and features.stored:
                            features.get(split, view)
        is_last = index + 1 == self.session.plan.trainings
        return TrialTraining(setup, tracker, prefix, self._report_epoch, is_last)

    def _report_epoch(self, epoch: EpochResult) -> None:
        plan = self.session.plan
        if plan.trainings == 1:
            self._report(epoch.number, epoch.val[plan.objective], f"at epoch {epoch.number}")

    def _report(self, step: int, value: float, when: str) -> None:
        """Report an intermediate value. Raises `Pruned` on all ranks if the study says so."""
        if self.session.on_rank_0(lambda study: study.report(step, value, self.trial.number)):
            self._check_wanted()
            raise Pruned(f"pruned {when}, at {value:.4f}")

    def _check_wanted(self) -> None:
        if reason := self.session.on_rank_0(lambda study: study.why_dropped(self.trial.number)):
            raise DroppedError(reason)


@dataclass
class Worker:
    """A long-lived process, or launch of several, that runs trials.

    Args:
        session: What it works with.
        stop_requested: Whether to stop; called before each trial.
        shared: What the trials share.
        batch: Trials that are asked for at once. Those that can be trained together are.
    """

    session: StudySession
    stop_requested: Callable[[], bool]
    shared: SharedSetup = field(default_factory=SharedSetup.of_trials)
    batch: int = 1

    def run(self) -> int:
        """Run trials until none is left or a stop is requested. Returns how many it ran.

        Raises `UserError` if too many trials failed in a row, or something that all trials need is missing.
        """
        study, trials = self.session.study, 0
        if study is not None:
            heartbeat = Heartbeat(study.record_heartbeat, HEARTBEAT_INTERVAL)
            heartbeat.start()
        try:
            while batch := self._ask():
                train_together([self._run_trial(trial) for trial in batch])
                trials += len(batch)
        except BaseException as error:
            if study is not None:
                study.interrupt(user_message(error) or str(error) or type(error).__name__)
            raise
        finally:
            if study is not None:
                heartbeat.stop()
        return trials

    def _ask(self) -> list[RunningTrial]:
        with long_wait():  # rank 0 may still upload the trial before
            return self.session.on_rank_0(self._next_trials)

    def _next_trials(self, study: Study) -> list[RunningTrial]:
        trials: list[RunningTrial] = []
        while True:
            while (
                len(trials) < self.batch and not self.stop_requested() and (trial := study.ask()) is not None
            ):
                trials.append(trial)
            if trials or self.stop_requested() or not study.wait_for_other_hosts(self.stop_requested):
                return trials

    def _run_trial(self, trial: RunningTrial) -> TrialGenerator:
        session, study, number = self.session, self.session.study, trial.number
        start, runner = time.monotonic(), TrialRunner(self.session, trial, self.shared)
        pruned, value = "", 0.0
        try:
            with session.tracking.start_run(trial.name, session.study_run, system_metrics=False) as tracker:
                tracker.log_params(decisive_settings(session.plan.validated(trial.experiment)))
                tags = {"runner.trial": str(trial.number), "runner.study": session.plan.name}
                identity = Identity.on_images(trial.experiment, session.plan.manifest)
                tracker.set_tags({**tags, **identity.tags()})
                if study is not None:
                    study.annotate(number, run=tracker.run_id)
                try:
                    value = yield from runner.run(tracker)
                except Pruned as reason:  # the study ended it as planned: its run has finished
                    pruned = str(reason)
                    tracker.set_tags({"runner.pruned": pruned})
        except Exception as error:
            if not self._concerns_only_this_trial(error):
                raise
            message = user_message(error)
            if message is None:
                print(redact(traceback.format_exc()), end="", file=sys.stderr)
            if study is not None:
                study.fail(message or f"{type(error).__name__}: {error}", number)
            return
        if study is not None:
            seconds = time.monotonic() - start - runner.waited
            study.annotate(number, training_seconds=runner.seconds, seconds=seconds)
            study.prune(pruned, number) if pruned else study.complete(value, number)

    def _concerns_only_this_trial(self, error: Exception) -> bool:
        """Whether other trials may succeed: not if, say, the disk is full, or if peers may not have failed."""
        if isinstance(error, OSError):
            return False
        return isinstance(error, UserError) or self.session.accelerator.num_processes == 1
