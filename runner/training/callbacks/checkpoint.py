"""Saves the best and the last checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from runner.models import checkpoint
from runner.serving.packaging import inference_settings
from runner.tracking.shared_files import frozen_folder
from runner.tracking.tracker import Tracker
from runner.training.callbacks.base import Callback
from runner.training.fit_state import FitState
from runner.training.results import EpochResult, best_epoch
from runner.training.setup import Setup
from runner.training.snapshot import Snapshot


class CheckpointCallback(Callback):
    """Writes `best.safetensors` and `last.safetensors`, and remembers the best weights on every process.

    Args:
        setup: The run's model and experiment.
        tracker: Its folder takes the files; `TrackingCallback` logs them.
        frozen_digest: Of the model, on rank 0.
    """

    def __init__(self, setup: Setup, tracker: Tracker, frozen_digest: str) -> None:
        self.setup = setup
        self.tracker = tracker
        self.frozen_digest = frozen_digest
        self.best_weights: dict[str, Tensor] = {}
        """Tensors of the layers that train, by name."""

    def on_epoch_end(self, state: FitState, result: EpochResult) -> None:
        """Save the model if it is the best so far."""
        if result.best:
            with state.weights_of(result):
                weights = self.setup.model.trainable_state()
                self.best_weights = {name: value.detach().clone() for name, value in weights.items()}
                self._save(result, "best")

    def on_fit_end(self, state: FitState) -> None:
        """Save the final model."""
        self._save(state.history[-1], "last")

    def load_best(self) -> None:
        """Give the model the best weights."""
        self.setup.model.load_state_dict(self.best_weights, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """The best weights."""
        return {f"best/{name}": value for name, value in self.best_weights.items()}

    def restore(self, snapshot: Snapshot, history: Sequence[EpochResult]) -> None:
        """Write the best checkpoint again."""
        self.best_weights = snapshot.tensors_under("best")
        if self.best_weights:
            self.load_best()
            self._save(best_epoch(history), "best")

    def _save(self, result: EpochResult, name: str) -> None:
        if not self.setup.accelerator.is_main_process:
            return
        model, inference = self.setup.model, inference_settings(self.setup.experiment)
        path = self.tracker.artifact_path(f"checkpoints/{name}.safetensors")
        if not (path.parent / checkpoint.FROZEN_FILE).exists():
            shared = frozen_folder(self.setup.experiment.tracking.root)
            checkpoint.save_frozen(model, path.parent, shared)
        checkpoint.save(model, path, result.number, result.val.to_dict(), self.frozen_digest, inference)
