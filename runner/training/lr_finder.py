"""The learning-rate range test (Smith, 2017): the loss while the rate grows exponentially from step to step."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runner.config.schema import Experiment
from runner.training.batches import MicroBatch, epoch_batches, micro_batches
from runner.training.fit_data import FitData
from runner.training.setup import Setup
from runner.training.step import TrainStep
from runner.utils.errors import UserError
from runner.utils.figures import BLUE, GRAY, ORANGE, new_figure, save_figure

SMOOTHING = 0.9
"""What is kept of the moving average of the loss in each step."""
DIVERGED = 4.0
"""The test ends when the smoothed loss is so many times its minimum, as in fastai."""
FEWEST = 10
"""Steps before which the minimum means nothing."""
FALL = 0.99
"""What is left of the loss at the first rates, at most, where it counts as fallen."""


@dataclass(frozen=True)
class LRCurve:
    """Learning rates and the loss of the step that each had."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def smoothed(self) -> np.ndarray:
        """The exponential moving average of the losses, corrected for its beginning."""
        average, values = 0.0, []
        for count, loss in enumerate(self.losses, start=1):
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            values.append(average / (1 - SMOOTHING**count))
        return np.array(values)

    @property
    def suggestion(self) -> float | None:
        """A tenth of the rate at which the smoothed loss is least, as fastai suggests; None if the loss does not fall.

        Beyond it the loss grows, and at it steps are too large already to go on for long.
        """
        least = int(self.smoothed.argmin())
        falls = least >= FEWEST and self.smoothed[least] < FALL * self.smoothed[:FEWEST].mean()
        return self.rates[least] / 10 if falls else None

    def draw(self, path: Path, title: str) -> None:
        """Draw losses over learning rates into a PNG file."""
        figure = new_figure(8, 4.5, dpi=120)
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color=GRAY, linewidth=1, alpha=0.6, label="loss of a step")
        axes.plot(self.rates, self.smoothed, color=BLUE, label="smoothed")
        if (lr := self.suggestion) is not None:
            axes.axvline(lr, color=ORANGE, linestyle="--", label=f"suggested: {lr:.2g}")
            axes.axvline(10 * lr, color=ORANGE, linestyle=":", label=f"least loss: {10 * lr:.2g}")
        low, high = min(self.losses), self.losses[0]
        margin = 0.1 * (high - low)
        axes.set_ylim(low - margin, high + max(0.25 * high, 3 * margin))
        axes.set(xscale="log", xlabel="learning rate of the head", ylabel="training loss")
        axes.set_title(title, parse_math=False)
        axes.grid(alpha=0.3)
        axes.legend(loc="best", framealpha=0.9)
        save_figure(figure, path)


def find_lr(
    setup: Setup,
    data: FitData,
    bounds: tuple[float, float],
    steps: int,
    advance: Callable[[int], None] = lambda count: None,
) -> LRCurve:
    """Train for some steps, each with a larger learning rate. The weights of the model change.

    Args:
        setup: The experiment. Parameter groups keep the proportions of their rates.
        data: Its images.
        bounds: The first and the last learning rate of the head.
        steps: Number of steps; fewer are taken if the loss grows too much.
        advance: Called after each step with 1.

    Raises `UserError` for a head that is solved, and on several processes.
    """
    experiment = setup.experiment
    if experiment.train.solver != "gradient":
        raise UserError(
            f"train.solver={experiment.train.solver} has no learning rate; it finds the head's weights without steps."
        )
    if setup.accelerator.num_processes > 1:
        raise UserError("The learning rate is looked for on one process; start the command once.")
    first, last = bounds
    labels = torch.tensor(data.train.labels)
    step = TrainStep(_with_constant_rate(experiment), setup.model, labels, setup.accelerator)
    factors = [group["lr"] / step.lr for group in step.optimizer.param_groups]
    rates: list[float] = []
    losses: list[float] = []
    try:
        setup.model.train()
        for number, batch in enumerate(itertools.islice(_batches(experiment, data, step), steps)):
            lr = first * (last / first) ** (number / max(1, steps - 1))
            for group, factor in zip(step.optimizer.param_groups, factors, strict=True):
                group["lr"] = lr * factor
            loss = _take_step(step, batch)
            if not math.isfinite(loss):
                break
            rates.append(lr)
            losses.append(loss)
            advance(1)
            smoothed = LRCurve(tuple(rates), tuple(losses)).smoothed
            if smoothed[-1] > DIVERGED * smoothed.min():
                break
    finally:
        step.close()
    return LRCurve(tuple(rates), tuple(losses))


def _with_constant_rate(experiment: Experiment) -> Experiment:
    schedule = dataclasses.replace(experiment.schedule, kind="constant", warmup=0.0, warmup_steps=0)
    train = dataclasses.replace(experiment.train, average="none", nonfinite="stop")
    return dataclasses.replace(experiment, schedule=schedule, train=train)


def _batches(
    experiment: Experiment, data: FitData, step: TrainStep
) -> Iterator[list[tuple[MicroBatch, Tensor]]]:
    """Micro-batches with their features, batch by batch, over as many epochs as are asked for."""
    settings = experiment.train
    for number in itertools.count():
        epoch = number % experiment.stages[0].epochs  # only the first stage
        batches = epoch_batches(
            step.labels, settings.batch_size, settings.sampling, experiment.seed.train, epoch
        )
        parts = [list(micro_batches(batch, settings.accumulate, step.accelerator)) for batch in batches]
        wanted = [
            part.indices_with_partner if step.mixes else part.indices for each in parts for part in each
        ]
        values = data.train.load(epoch).batches(wanted)
        for own in parts:
            yield [(part, next(values)) for part in own]


def _take_step(step: TrainStep, batch: list[tuple[MicroBatch, Tensor]]) -> float:
    """The loss of a batch, before the step that it leads to."""
    step.sums.reset()
    for part, values in batch:
        step.forward_backward(values, part)
    step.update()
    loss, _, images = step.sums.reduce()
    return loss / images
