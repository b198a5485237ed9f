"""How the learning rate goes on: the report's rule, and torch's schedules as others."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from runner.config.schema import Schedule


class Rule(Protocol):
    """What the training loop asks of a schedule."""

    def stepped(self) -> None:
        """An optimiser step has been taken."""

    def validated(self, hits: int) -> bool:
        """An epoch ended with so many validation hits; whether training should stop."""

    def state(self) -> dict[str, Any]:
        """What going on takes beside the optimiser's own learning rates, as JSON-like values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; the optimiser has its learning rates already."""

    def forward(self, steps: int, state: dict[str, Any]) -> None:
        """Stand where a rule of other settings stood, which had given `state` after so many steps."""


@dataclass
class ReportRule:
    """The report's (baseline, row 5).

    When validation accuracy falls below the previous epoch's, the learning rate is divided by `factor`;
    training stops at the `reductions`-th such reduction in total.
    """

    optimizer: Optimizer
    factor: float
    reductions: int
    reduced_at: list[int] = field(default_factory=list)
    """Epochs (from 0) at whose end the learning rate was divided."""
    _history: list[int] = field(default_factory=list)

    def stepped(self) -> None:
        """Nothing changes within an epoch."""

    def validated(self, hits: int) -> bool:
        """Divide the learning rate if validation got worse; True at the last reduction."""
        self._history.append(hits)
        if len(self._history) > 1 and hits < self._history[-2]:
            for group in self.optimizer.param_groups:
                group["lr"] /= self.factor
            self.reduced_at.append(len(self._history) - 1)
        return len(self.reduced_at) >= self.reductions

    def state(self) -> dict[str, Any]:
        """Validation hits so far, and where the rate was divided."""
        return {"history": list(self._history), "reduced_at": list(self.reduced_at)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take both over."""
        self._history, self.reduced_at = list(state["history"]), list(state["reduced_at"])

    def forward(self, steps: int, state: dict[str, Any]) -> None:
        """Take both over, where the other rule had them, and divide as often."""
        if "reduced_at" in state:
            self.restore(state)
            for group in self.optimizer.param_groups:
                group["lr"] /= self.factor ** len(self.reduced_at)


@dataclass
class TorchRule:
    """One of torch's schedules, stepped after every optimiser step; None keeps the learning rate."""

    scheduler: CosineAnnealingLR | OneCycleLR | None

    def stepped(self) -> None:
        """Step the schedule."""
        if self.scheduler is not None:
            self.scheduler.step()

    def validated(self, hits: int) -> bool:
        """These end with the epochs."""
        return False

    def state(self) -> dict[str, Any]:
        """torch's own."""
        return self.scheduler.state_dict() if self.scheduler is not None else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Give it back to torch."""
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state)

    def forward(self, steps: int, state: dict[str, Any]) -> None:
        """Step as often."""
        with warnings.catch_warnings():  # the optimiser has taken those steps in another run
            warnings.simplefilter("ignore")
            for _ in range(steps):
                self.stepped()


def build(schedule: Schedule, optimizer: Optimizer, steps: int) -> Rule:
    """The rule for an optimiser that is going to take at most `steps` steps."""
    rates = [group["lr"] for group in optimizer.param_groups]
    if schedule.kind == "reduce_on_drop":
        return ReportRule(optimizer, schedule.factor, schedule.reductions)
    if schedule.kind == "cosine":
        return TorchRule(CosineAnnealingLR(optimizer, steps))
    if schedule.kind == "onecycle":
        # One more than the steps: torch refuses the step after the last.
        return TorchRule(OneCycleLR(optimizer, rates, total_steps=steps + 1, cycle_momentum=False))
    return TorchRule(None)
