"""Prints the epochs as rows of a table."""

from __future__ import annotations

from runner.training.callbacks.base import Callback
from runner.training.epoch_table import EpochTable
from runner.training.fit_state import FitState
from runner.training.results import EpochResult
from runner.utils.console import Terminal


class ConsoleCallback(Callback):
    """Prints a row per epoch, the first one under a header, and a line where a stage of training begins.

    Args:
        terminal: Prints on rank 0 only.
    """

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self._table: EpochTable | None = None

    def on_epoch_end(self, state: FitState, result: EpochResult) -> None:
        """Print the epoch's results."""
        if self._table is None:
            self._table = EpochTable(result.val, state.experiment.train.best, self.terminal.console.width)
            for line in self._table.header():
                self.terminal.line(line, style="bold")
        self.terminal.line(self._table.row(result))
        train, stages = state.experiment.train, state.experiment.stages
        if not state.finished and train.stage_of(state.epoch) != train.stage_of(state.epoch - 1):
            stage = stages[train.stage_of(state.epoch)]
            rate = state.experiment.optim.lr if stage.lr is None else stage.lr
            self.terminal.line(
                f"from epoch {state.epoch + 1} on, {stage.trainable} trains; the head's learning rate is {rate:g}",
                style="bold",
            )
