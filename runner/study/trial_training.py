"""A training of a trial: logs and reports its epochs, and remembers the best weights."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from runner.config.tree import as_yaml
from runner.models import checkpoint
from runner.serving.packaging import inference_settings
from runner.tracking.shared_files import frozen_folder
from runner.tracking.tracker import Tracker
from runner.training import curves
from runner.training.callbacks.base import Callback
from runner.training.fit_state import FitState
from runner.training.results import EpochResult, best_epoch
from runner.training.setup import Setup
from runner.training.solvers.path_figure import log_path
from runner.training.solvers.solve import Solution


@dataclass
class TrialTraining(Callback):
    """A training of a trial: logs and reports its epochs, and remembers the best weights."""

    setup: Setup
    tracker: Tracker
    """Logs to the trial's run."""
    prefix: str
    """Of the metrics' names."""
    report: Callable[[EpochResult], None]
    """Called with each epoch."""
    is_last: bool = True
    """Whether the trial has no other training after it."""
    history: list[EpochResult] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    """Trainable parameters after the best epoch."""
    solution: Solution | None = None
    """If the head is solved, on rank 0."""
    seconds: float = 0.0
    """Time spent in the training loop; of trainings that run together, the share of this one."""
    error: Exception | None = None
    """What a training that runs with others ended with, if it failed or was pruned."""

    @property
    def ends_trial(self) -> bool:
        """Whether the trial ends when the training has ended."""
        return self.is_last or self.error is not None

    @property
    def best_epoch(self) -> EpochResult:
        """The epoch that `train.best` selects."""
        return best_epoch(self.history)

    def on_epoch_end(self, state: FitState, result: EpochResult) -> None:
        self.solution = state.solution
        self.on_epoch(result, state.model.trainable_state())

    def on_epoch(self, result: EpochResult, weights: dict[str, Tensor]) -> None:
        """The same from the trained tensors, by name. Raises `Pruned` if the study stops the trial."""
        self.history.append(result)
        if result.best:
            self.best_weights = {name: value.detach().clone() for name, value in weights.items()}
        metrics = {f"{self.prefix}{name}": value for name, value in result.metrics().items()}
        self.tracker.log_metrics(metrics, result.number)
        self.report(result)

    def log_best(self) -> None:
        """Log checkpoint, and curves or the penalties."""
        setup, best = self.setup, self.best_epoch
        folder = self.tracker.artifact_path("checkpoints/any").parent
        setup.model.load_state_dict(self.best_weights, strict=False)
        checkpoint.save_frozen(setup.model, folder, frozen_folder(setup.experiment.tracking.root))
        digest, inference = checkpoint.frozen_digest(setup.model), inference_settings(setup.experiment)
        path = folder / "best.safetensors"
        checkpoint.save(setup.model, path, best.number, best.val.to_dict(), digest, inference)
        for file in (path, folder / checkpoint.FROZEN_FILE):
            self.tracker.log_artifact(file, "checkpoints")
        self.tracker.log_text("experiment.yaml", as_yaml(setup.experiment))
        if self.solution is None:
            curves.log_curves(self.history, setup.experiment.name, self.tracker)
        else:
            log_path(self.solution, setup.experiment.train, setup.experiment.name, self.tracker)
        self.tracker.set_tags({"runner.best_when_run": "true"})


TrialGenerator: TypeAlias = Generator[TrialTraining, None, None]
"""A trial that runs: it yields its trainings one by one, and goes on when each is done."""
