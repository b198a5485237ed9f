"""Prints one line per epoch."""

from __future__ import annotations

from runner.training.callbacks.base import Callback
from runner.training.fit_state import FitState
from runner.training.results import EpochResult
from runner.training.summary import epoch_line
from runner.utils.console import Terminal


class ConsoleCallback(Callback):
    """Prints one line per epoch.

    Args:
        terminal: Prints on rank 0 only.
    """

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal

    def on_epoch_end(self, state: FitState, result: EpochResult) -> None:
        """Print the epoch's results."""
        self.terminal.line(epoch_line(result))
