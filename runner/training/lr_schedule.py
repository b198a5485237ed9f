"""Learning-rate schedules: reduce on drop, cosine, and torch's one-cycle; each after a warm-up, if one is asked for.

To add a schedule, register a factory: `@SCHEDULES.register(name, description, uses)`. It is called with the schedule's
settings, the optimizer, and the greatest number of optimizer steps. This module is imported for `--help` too, so that
torch is imported where it is needed.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from runner.config.choices import SCHEDULES
from runner.config.train_schema import ScheduleConfig

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


class LRSchedule(Protocol):
    """A schedule, as the training loop calls it."""

    def step(self) -> None:
        """Called after each optimizer step."""

    def end_epoch(self, hits: int) -> bool:
        """Called after each epoch with the number of correct validation predictions; True: stop training."""

    def state_dict(self) -> dict[str, Any]:
        """What a snapshot needs beside the optimizer's learning rates, as JSON-like values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`; the optimizer's learning rates are restored already."""

    def fast_forward(self, steps: int, state: dict[str, Any]) -> None:
        """Continue where a schedule with other settings was, after `steps` steps, with its `state_dict`."""


@dataclass
class ReduceOnDrop:
    """Divides the learning rate by `factor` when validation accuracy falls below that of the previous epoch.

    Training stops at the `reductions`-th reduction in total. This is the published report's rule (baseline, row 5).
    """

    optimizer: Optimizer
    factor: float
    reductions: int
    reduced_at: list[int] = field(default_factory=list)
    """Epochs (from 0) at whose end the learning rate was divided."""
    _history: list[int] = field(default_factory=list)

    def step(self) -> None:
        """Nothing: the learning rate changes between epochs only."""

    def end_epoch(self, hits: int) -> bool:
        """Divide the learning rate if accuracy fell; True at the last reduction."""
        self._history.append(hits)
        if len(self._history) > 1 and hits < self._history[-2]:
            for group in self.optimizer.param_groups:
                group["lr"] /= self.factor
            self.reduced_at.append(len(self._history) - 1)
        return len(self.reduced_at) >= self.reductions

    def state_dict(self) -> dict[str, Any]:
        """Correct validation predictions of each epoch, and the epochs of the reductions."""
        return {"history": list(self._history), "reduced_at": list(self.reduced_at)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with both."""
        self._history, self.reduced_at = list(state["history"]), list(state["reduced_at"])

    def fast_forward(self, steps: int, state: dict[str, Any]) -> None:
        """Continue with both, if the other schedule had them, and divide as often."""
        if "reduced_at" in state:
            self.load_state_dict(state)
            for group in self.optimizer.param_groups:
                group["lr"] /= self.factor ** len(self.reduced_at)


@dataclass
class Warmup:
    """Raises the learning rates linearly over the first steps, to where another schedule begins.

    Step s of the n, from 0, has (s + 1) / n of them.
    """

    optimizer: Optimizer
    schedule: LRSchedule
    steps: int
    taken: int = 0
    targets: list[float] = field(default_factory=list)
    """Where the learning rates rise to, by parameter group."""

    def __post_init__(self) -> None:
        self.targets = [group["lr"] for group in self.optimizer.param_groups]
        self._set_rates()

    def step(self) -> None:
        """Raise the learning rates, or step the other schedule."""
        self.taken += 1
        if self.taken < self.steps:
            self._set_rates()
        else:
            self.schedule.step()

    def end_epoch(self, hits: int) -> bool:
        """Let the other schedule decide; what it does to the learning rates holds for those that they rise to."""
        if self.taken >= self.steps:
            return self.schedule.end_epoch(hits)
        for group, target in zip(self.optimizer.param_groups, self.targets, strict=True):
            group["lr"] = target
        stop = self.schedule.end_epoch(hits)
        self.targets = [group["lr"] for group in self.optimizer.param_groups]
        self._set_rates()
        return stop

    def state_dict(self) -> dict[str, Any]:
        """Steps so far, where the learning rates rise to, and the other schedule's state."""
        return {"taken": self.taken, "targets": list(self.targets), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with these."""
        self.taken, self.targets = state["taken"], list(state["targets"])
        self.schedule.load_state_dict(state["schedule"])

    def fast_forward(self, steps: int, state: dict[str, Any]) -> None:
        """Be where the warm-up is after so many steps, and continue the other schedule."""
        self.taken = steps
        for group, target in zip(self.optimizer.param_groups, self.targets, strict=True):
            group["lr"] = target
        self.schedule.fast_forward(max(0, steps - self.steps + 1), state.get("schedule", state))
        if steps < self.steps:
            self.targets = [group["lr"] for group in self.optimizer.param_groups]
            self._set_rates()

    def _set_rates(self) -> None:
        for group, target in zip(self.optimizer.param_groups, self.targets, strict=True):
            group["lr"] = target * min(1.0, (self.taken + 1) / self.steps)


@dataclass
class TorchSchedule:
    """One of torch's schedulers, stepped after every optimizer step; None: a constant learning rate."""

    scheduler: LRScheduler | None

    def step(self) -> None:
        """Step the schedule."""
        if self.scheduler is not None:
            self.scheduler.step()

    def end_epoch(self, hits: int) -> bool:
        """Never stop early."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """The state of torch's scheduler."""
        return self.scheduler.state_dict() if self.scheduler is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore torch's scheduler."""
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state)

    def fast_forward(self, steps: int, state: dict[str, Any]) -> None:
        """Take as many steps."""
        with warnings.catch_warnings():  # the optimizer took those steps in another run
            warnings.simplefilter("ignore")
            for _ in range(steps):
                self.step()


@SCHEDULES.register("reduce_on_drop", "divide when validation top-1 falls", uses=("factor", "reductions"))
def _reduce_on_drop(schedule: ScheduleConfig, optimizer: Optimizer, steps: int) -> LRSchedule:
    return ReduceOnDrop(optimizer, schedule.factor, schedule.reductions)


@SCHEDULES.register("cosine", "cosine decay", uses=("floor",))
def _cosine(schedule: ScheduleConfig, optimizer: Optimizer, steps: int) -> LRSchedule:
    from torch.optim.lr_scheduler import LambdaLR

    def factor(step: int) -> float:
        """SGDR (Loshchilov and Hutter, 2017), equation 5, from 1 to the floor."""
        return schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2

    return TorchSchedule(LambdaLR(optimizer, factor))


@SCHEDULES.register("onecycle", "rise to optim.lr, then decay")
def _onecycle(schedule: ScheduleConfig, optimizer: Optimizer, steps: int) -> LRSchedule:
    from torch.optim.lr_scheduler import OneCycleLR

    rates = [group["lr"] for group in optimizer.param_groups]
    # One more than the steps: torch refuses the step after the last.
    return TorchSchedule(OneCycleLR(optimizer, rates, total_steps=steps + 1, cycle_momentum=False))


@SCHEDULES.register("constant", "optim.lr throughout")
def _constant(schedule: ScheduleConfig, optimizer: Optimizer, steps: int) -> LRSchedule:
    return TorchSchedule(None)


def build(schedule: ScheduleConfig, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRSchedule:
    """The schedule for an optimizer.

    Args:
        schedule: Its settings.
        optimizer: With the learning rates from which it begins.
        epochs: At most.
        steps_per_epoch: Optimizer steps of each.
    """
    steps = epochs * steps_per_epoch
    warmup = min(steps, schedule.warmup_steps or round(schedule.warmup * steps_per_epoch))
    # The last step of the warm-up has the first rate of what follows.
    following = steps - warmup + 1 if warmup else steps
    created: LRSchedule = SCHEDULES.find(schedule.kind).implementation(schedule, optimizer, following)
    return Warmup(optimizer, created, warmup) if warmup else created
