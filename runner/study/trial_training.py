"""The training of a trial: on the training split with one or several seeds, evaluated on the validation split.

Trials never see the test split.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from runner.config.tree import as_yaml, override
from runner.models import checkpoint
from runner.serving.packaging import inference_settings
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


class _SeedTraining(Callback):
    """The training of a trial with one seed: logs and reports its epochs, and remembers the best weights.

    Args:
        setup: Its model and experiment.
        tracker: Logs to the trial's run.
        prefix: Of the metrics' names.
        report: Called with each epoch.
    """

    def __init__(
        self, setup: Setup, tracker: Tracker, prefix: str, report: Callable[[EpochResult], None]
    ) -> None:
        self.setup = setup
        self.tracker = tracker
        self.prefix = prefix
        self.report = report
        self.history: list[EpochResult] = []
        self.best_weights: dict[str, Tensor] = {}
        """Trainable parameters after the best epoch."""

    @property
    def best_epoch(self) -> EpochResult:
        """The epoch that `train.best` selects."""
        return best_epoch(self.history)

    def on_epoch_end(self, state: FitState, result: EpochResult) -> None:
        self.history.append(result)
        if result.best:
            weights = state.model.trainable_state()
            self.best_weights = {name: value.detach().clone() for name, value in weights.items()}
        metrics = {f"{self.prefix}{name}": value for name, value in result.metrics().items()}
        self.tracker.log_metrics(metrics, result.number)
        self.report(result)

    def log_best(self) -> None:
        """Log checkpoint and curves."""
        setup, best, folder = (
            self.setup,
            self.best_epoch,
            self.tracker.artifact_path("checkpoints/any").parent,
        )
        setup.model.load_state_dict(self.best_weights, strict=False)
        checkpoint.save_frozen(setup.model, folder)
        digest, inference = checkpoint.frozen_digest(setup.model), inference_settings(setup.experiment)
        path = folder / "best.safetensors"
        checkpoint.save(setup.model, path, best.number, best.val.to_dict(), digest, inference)
        for file in (path, folder / checkpoint.FROZEN_FILE):
            self.tracker.log_artifact(file, "checkpoints")
        self.tracker.log_text("experiment.yaml", as_yaml(setup.experiment))
        curves.log_curves(self.history, setup.experiment.name, self.tracker)
        self.tracker.set_tags({"runner.best_when_run": "true"})


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
        for index in range(plan.seeds):
            training = self._train_seed(index, tracker)
            values.append(training.best_epoch.val[plan.objective])
            if index == 0:
                first = training
            if plan.seeds > 1:
                self._report(index, values[-1], f"after seed {index + 1} of {plan.seeds}")
        value, best = statistics.fmean(values), first.best_epoch
        tracker.log_metrics({"objective": value, "best_epoch": best.number, **best.val.metrics("val/best")})
        if len(values) > 1:
            tracker.log_metrics({"objective_sd": statistics.stdev(values)})
        if study is not None:
            study.annotate(scores=dict(best.val.values))
            if study.is_improvement(value):
                first.log_best()
        return value

    def _train_seed(self, index: int, tracker: Tracker) -> _SeedTraining:
        first = self.trial.experiment.seed.train
        experiment = override(self.trial.experiment, {"seed.train": first + index})
        setup = prepare(experiment, self.session.accelerator, self.session.terminal, self.shared)
        # The other workers wait for the features: all cores compute them.
        needed = [(split, view) for split, view in required_views(experiment) if split != "test"]
        if setup.features.reserve_space(needed).images and setup.features.stored:
            with all_cores():
                for split, view in needed:
                    setup.features.get(split, view)
        training = _SeedTraining(setup, tracker, f"seed{first + index}/" if index else "", self._report_epoch)
        start = time.monotonic()
        try:
            run.fit_setup(setup, [training], Terminal(enabled=False))
        finally:
            self.seconds += time.monotonic() - start
        return training

    def _report_epoch(self, epoch: EpochResult) -> None:
        plan = self.session.plan
        if plan.seeds == 1:
            self._report(epoch.number, epoch.val[plan.objective], f"at epoch {epoch.number}")

    def _report(self, step: int, value: float, when: str) -> None:
        """Report an intermediate value. Raises `Pruned` on all ranks if the study says so."""
        if self.session.on_rank_0(lambda study: study.report(step, value)):
            raise Pruned(f"pruned {when}, at {value:.4f}")
