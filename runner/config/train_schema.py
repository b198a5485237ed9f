"""The settings of training: optimizer, learning-rate schedule, loop."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le, MinLen

from runner.config.choices import METRIC_NAMES, OPTIMIZERS, SCHEDULES
from runner.config.fields import (
    AboveOne,
    BelowOne,
    BetweenZeroAndOne,
    Minutes,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    setting,
)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer."""

    name: str = setting("adam", choices=OPTIMIZERS)
    """The optimizer."""
    lr: PositiveFloat = 0.01
    """Initial learning rate; with schedule.kind=onecycle the maximum."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay. adam, sgd: an L2 penalty; adamw: decoupled."""
    momentum: Probability = 0.9
    """Momentum of sgd."""
    groups: dict[str, PositiveFloat] = setting(dict)
    """Learning rates of modules that differ from optim.lr, as {features: 1e-5}. The longest matching name applies."""
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    """Factor of the learning rate from each block of the backbone to the block before it, as in timm: the head has
    optim.lr, the last block that times the factor, and so on. Modules in optim.groups have their own rates."""
    decay_norm: bool = True
    """Weight decay of biases, of normalizations and of other parameters of one dimension. false: none, as in timm."""

    def __post_init__(self) -> None:
        OPTIMIZERS.find(self.name)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning-rate schedule."""

    kind: str = setting("reduce_on_drop", choices=SCHEDULES)
    """The schedule. reduce_on_drop can stop the training early; the others end after train.epochs."""
    factor: AboveOne = 5.0
    """reduce_on_drop: divisor of the learning rate."""
    reductions: PositiveInt = 3
    """reduce_on_drop: number of reductions at which training stops."""
    floor: BelowOne = 0.0
    """cosine: what the learning rate falls to, as a fraction of optim.lr."""
    warmup: NonNegativeFloat = setting(0.0, unit="epochs")
    """Epochs, or a fraction of one, in which the learning rate rises linearly to where the schedule begins."""
    warmup_steps: NonNegativeInt = setting(0, unit="steps")
    """The same in optimizer steps."""

    def __post_init__(self) -> None:
        SCHEDULES.find(self.kind)
        if self.warmup and self.warmup_steps:
            raise ValueError(
                "schedule.warmup and schedule.warmup_steps are the same in two units; give one of them"
            )
        if (self.warmup or self.warmup_steps) and self.kind == "onecycle":
            raise ValueError(
                "schedule.kind=onecycle begins with a warm-up of its own; leave schedule.warmup out"
            )


@dataclass(frozen=True)
class TrainStage:
    """Epochs in which the same layers train."""

    epochs: PositiveInt
    trainable: str
    """As model.trainable."""
    lr: PositiveFloat | None = None
    """Instead of optim.lr; modules in optim.groups keep their rates."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    epochs: PositiveInt = 30
    """Maximum number of epochs."""
    stages: tuple[TrainStage, ...] = ()
    """Gradual unfreezing: layers that train in the first epochs, then more of them, as [{epochs: 5, trainable: head},
    {epochs: 10, trainable: last:1, lr: 1e-4}]. Each stage has a schedule of its own, and its own learning rate if it
    gives one. model.trainable and train.epochs follow the stages if they are not given. Training can stop early only in
    the last stage. Empty: model.trainable trains from the start."""
    batch_size: PositiveInt = setting(64, unit="images")
    """Images per optimizer step, over all processes."""
    accumulate: PositiveInt = 1
    """Parts that a batch is computed in, to save memory. The gradient is that of the whole batch."""
    recompute: bool = setting(False, changes_results=False)
    """Activation checkpointing: what happens within a block of the backbone that trains is computed again in the
    backward pass, which saves memory and takes the time of another forward pass."""
    clip: NonNegativeFloat = 0.0
    """Maximum norm of the gradient; 0: no clipping."""
    label_smoothing: BelowOne = 0.0
    """Fraction of the target that is spread evenly over all classes."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of mixup: the images of a batch are mixed in a share drawn from Beta(alpha, alpha); 0: not. Where a frozen
    backbone is cached, its features are mixed."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha of CutMix: a box is filled from another image of the batch; 0: not. It needs images or maps, so that a part
    of the backbone trains. With mixup as well, each batch has one of the two."""
    class_weights: bool | BetweenZeroAndOne = False
    """Weight each class in the loss by the inverse of its number of training images, or by a power of that: 0.5 is the
    inverse of the square root."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """shuffled: each image once per epoch; balanced: with replacement, all classes equally often."""
    precision: Literal["auto", "no", "fp16", "bf16"] = setting(
        "auto", not_searchable="it depends on the device"
    )
    """Mixed precision of the model without its head, which stays in float32. auto: bf16 or fp16 if the device is fast
    at it."""
    average: Literal["none", "ema", "swa"] = "none"
    """Average of the weights. ema: exponential moving average over the steps; swa: mean over the ends of the last
    epochs. Each epoch validates the weights and their average; its scores and checkpoint are those of the better."""
    ema_decay: BelowOne = 0.999
    """ema: what is kept of the average in each step."""
    swa_start: BelowOne = 0.75
    """swa: the fraction of train.epochs after which the mean begins."""
    best: str = setting(
        "top1", choices=METRIC_NAMES, not_searchable="trials would be compared by different metrics"
    )
    """Validation metric that selects the best checkpoint."""
    patience: NonNegativeInt = setting(0, unit="epochs")
    """Stop after so many epochs without a better value of train.monitor; 0: go on."""
    monitor: str = setting("", choices=METRIC_NAMES)
    """Validation metric that train.patience watches. Empty: train.best."""
    solver: Literal["gradient", "ridge", "logistic"] = "gradient"
    """How a head is trained. gradient: by steps of the optimizer. A linear head can be solved instead. ridge: least
    squares on targets of 1 and -1 with an L2 penalty, in closed form; logistic: multinomial logistic regression, by
    L-BFGS."""
    penalty: Literal["auto"] | PositiveFloat | Annotated[tuple[PositiveFloat, ...], MinLen(1)] = "auto"
    """L2 penalties that a solver chooses from, for the sum of losses over images. auto: 45 values from 1e-6 to 1e5."""
    penalty_by: Literal["validation", "leave_one_out"] = "validation"
    """What the penalty is chosen by. leave_one_out: each training image is predicted by the solution without it (ridge
    only)."""
    standardize: bool = False
    """Divide each feature by its standard deviation over the training images before a head is solved. The solution's
    weights contain it."""
    refit: bool = False
    """Solve again with the training and the validation images once the penalty is chosen. Validation scores remain
    those of the solution of the training images alone."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """If loss or gradient of a step are not finite: stop, or skip the step (counted in train/skipped)."""
    timeout: Minutes = setting(30.0, unit="min", changes_results=False)
    """How long processes wait for one that hangs; where one scans images or computes features, 6 hours at least."""

    def stage_of(self, epoch: int) -> int:
        """The stage that an epoch, from 0, belongs to; the last one for epochs after all."""
        ends = itertools.accumulate(stage.epochs for stage in self.stages[:-1])
        return sum(epoch >= end for end in ends)

    @property
    def watched_metric(self) -> str:
        """The metric that `patience` watches."""
        return self.monitor or self.best

    @property
    def max_epochs(self) -> int:
        """Epochs at most: a solver has one."""
        return self.epochs if self.solver == "gradient" else 1

    def __post_init__(self) -> None:
        METRIC_NAMES.find(self.best)
        METRIC_NAMES.find(self.watched_metric, "train.monitor")
        if self.penalty_by == "leave_one_out" and self.solver != "ridge":
            raise ValueError("train.penalty_by=leave_one_out needs train.solver=ridge")
        if self.refit and self.solver == "gradient":
            raise ValueError(
                "train.refit needs a solver that chooses a penalty: train.solver=ridge or logistic"
            )
        if self.standardize and self.solver == "gradient":
            raise ValueError("train.standardize needs a solver: train.solver=ridge or logistic")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) and (self.sampling == "balanced" or self.class_weights):
                other = (
                    "sampling=balanced"
                    if self.sampling == "balanced"
                    else f"class_weights={self.class_weights}"
                )
                raise ValueError(
                    f"train.{name} does not go with train.{other}: a mixed image has two labels, and so no weight of"
                    " its own; leave one of them out"
                )
        if self.stages and (total := sum(stage.epochs for stage in self.stages)) != self.epochs:
            relation = "exceed" if total > self.epochs else "do not reach"
            raise ValueError(
                f"the stages of train.stages have {total} epochs together, which {relation} train.epochs"
                f" ({self.epochs}); set train.epochs={total}, or change the stages"
            )
        if self.stages and self.solver != "gradient":
            raise ValueError(f"train.stages needs train.solver=gradient; it is {self.solver}")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"train.accumulate ({self.accumulate}) must not be greater than train.batch_size ({self.batch_size})"
            )
