"""The training of a trial: on the training split with one or several seeds, evaluated on the validation split.

Trials never see the test split.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from runner.config.schema import Experiment
from runner.config.tree import as_yaml
from runner.models import checkpoint
from runner.serving import packaging
from runner.study.cpu_share import all_cores
from runner.study.session import StudySession
from runner.study.trials import RunningTrial
from runner.tracking.tracker import Pruned, Tracker
from runner.training import curves, run
from runner.training.callbacks.base import Callback
from runner.training.fit_state import FitState
from runner.training.results import EpochResult, best_epoch
from runner.training.setup import Setup, SharedSetup, prepare, required_views
from runner.utils.console import Terminal


@dataclass
class TrainedSeed:
    """The training of a trial with one seed."""

    setup: Setup
    history: list[EpochResult]
    best_weights: dict[str, Tensor]
    """Trainable parameters after the best epoch."""

    @property
    def best_epoch(self) -> EpochResult:
        """The epoch that `train.best` selects."""
        return best_epoch(self.history)


class _TrialCallback(Callback):
    """Logs and reports the epochs of a trial, and remembers the best weights."""

    def __init__(self, tracker: Tracker, prefix: str, report: Callable[[EpochResult], None] | None) -> None:
        self.tracker = tracker
        self.prefix = prefix
        self.report = report
        self.best_weights: dict[str, Tensor] = {}

    def on_epoch_end(self, state: FitState, result: EpochResult) -> None:
        if result.best:
            weights = state.model.trainable_state()
            self.best_weights = {name: value.detach().clone() for name, value in weights.items()}
        metrics = {f"{self.prefix}{name}": value for name, value in result.metrics().items()}
        self.tracker.log_metrics(metrics, result.number)
        if self.report is not None:
            self.report(result)


@dataclass
class TrialTraining:
    """Trains a trial.

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

    def run(self, tracker: Tracker) -> float:
        """Train with each seed of the plan. Returns the trial's value: the mean of the objective at the best epochs.

        Raises `Pruned` on all ranks if the study's pruner stops the trial, and what preparation and training raise.
        """
        plan, study = self.session.plan, self.session.study
        values: list[float] = []
        first: TrainedSeed | None = None
        for index in range(plan.seeds):
            trained = self._train_seed(self.trial.experiment.seed.train + index, tracker)
            values.append(trained.best_epoch.val[plan.objective])
            first = first or trained
            if plan.seeds > 1:
                self._report(index, values[-1], f"after seed {index + 1} of {plan.seeds}")
        assert first is not None  # noqa: S101 (for types: a plan has one seed or more)
        value = statistics.fmean(values)
        tracker.log_metrics({"objective": value, **first.best_epoch.val.metrics("val/best")})
        tracker.log_metrics({"best_epoch": first.best_epoch.number})
        if len(values) > 1:
            tracker.log_metrics({"objective_sd": statistics.stdev(values)})
        if study is not None:
            study.annotate(scores=dict(first.best_epoch.val.values))
            if study.is_improvement(value):
                _log_best_so_far(first, tracker)
        return value

    def _train_seed(self, seed: int, tracker: Tracker) -> TrainedSeed:
        plan, settings = self.session.plan, self.trial.experiment
        setup = self._prepare(
            dataclasses.replace(settings, seed=dataclasses.replace(settings.seed, train=seed))
        )
        prefix = "" if seed == settings.seed.train else f"seed{seed}/"
        callback = _TrialCallback(tracker, prefix, self._report_epoch if plan.seeds == 1 else None)
        start = time.monotonic()
        try:
            history = run.fit_setup(setup, [callback], Terminal(enabled=False))
        finally:
            self.seconds += time.monotonic() - start
        return TrainedSeed(setup, history, callback.best_weights)

    def _prepare(self, experiment: Experiment) -> Setup:
        """Set up a training, and compute the features that it needs with all cores."""
        setup = prepare(experiment, self.session.accelerator, self.session.terminal, self.shared)
        needed = [(split, view) for split, view in required_views(experiment) if split != "test"]
        if setup.features.reserve_space(needed).images and setup.features.stored:
            with all_cores():
                for split, view in needed:
                    setup.features.get(split, view)
        return setup

    def _report_epoch(self, epoch: EpochResult) -> None:
        self._report(epoch.number, epoch.val[self.session.plan.objective], f"at epoch {epoch.number}")

    def _report(self, step: int, value: float, when: str) -> None:
        """Report an intermediate value. Raises `Pruned` on all ranks if the study says so."""
        if self.session.on_rank_0(lambda study: study.report(step, value)):
            raise Pruned(f"pruned {when}, at {value:.4f}")


def _log_best_so_far(trained: TrainedSeed, tracker: Tracker) -> None:
    """Log checkpoint and curves of the best trial so far."""
    setup, model, best = trained.setup, trained.setup.model, trained.best_epoch
    model.load_state_dict(trained.best_weights, strict=False)
    path = tracker.artifact_path("checkpoints/best.safetensors")
    checkpoint.save_frozen(model, path.parent)
    inference = packaging.inference_settings(setup.experiment)
    checkpoint.save(model, path, best.number, best.val.to_dict(), checkpoint.frozen_digest(model), inference)
    for file in (path, path.parent / checkpoint.FROZEN_FILE):
        tracker.log_artifact(file, "checkpoints")
    tracker.log_text("experiment.yaml", as_yaml(setup.experiment))
    curves.log_curves(trained.history, setup.experiment.name, tracker)
    tracker.set_tags({"runner.best_when_run": "true"})
