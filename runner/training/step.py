"""The optimizer step: forward and backward passes over the micro-batches of a batch, then one update of the weights.

Any number of processes takes the same step. Each computes its share of the global batch, and the gradient is the sum
over the whole batch divided by its size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Module

from runner.config.schema import Experiment
from runner.evaluation.metrics import TASK
from runner.models.dropout import KeyedDropout, set_dropout_batch
from runner.models.parameter_groups import parameter_groups
from runner.models.transfer_model import TransferModel
from runner.training import lr_schedule, optimizers
from runner.training.batches import MicroBatch, loss_weights
from runner.training.divergence import step_diverged
from runner.training.epoch_sums import EpochSums
from runner.training.mixing import draw_mix
from runner.training.weight_average import WeightAverage

NO_FAILURE = 2**62
"""Stands for the step of the first failure while there is none."""


class TrainStep:
    """Model, optimizer and learning-rate schedule, and the steps that they take.

    Args:
        experiment: Its settings `train`, `optim` and `schedule` count.
        model: Not wrapped, on the accelerator's device, with its final frozen weights.
        labels: Class indices of the training split.
        accelerator: Device, precision and processes.
    """

    def __init__(
        self, experiment: Experiment, model: TransferModel, labels: Tensor, accelerator: Accelerator
    ) -> None:
        self.experiment = experiment
        self.settings, self.optim = experiment.train, experiment.optim
        self.training_seed = experiment.seed.train
        self.model, self.labels, self.accelerator = model, labels, accelerator
        self.class_weights = loss_weights(labels, len(model.spec.classes), self.settings.class_weights)
        self._dropouts = [module for module in model.modules() if isinstance(module, KeyedDropout)]
        self.steps_per_epoch = math.ceil(len(labels) / self.settings.batch_size)
        self._initial_scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        model.recomputes = self.settings.recompute
        self._wrapped_model: Module = model
        self.stage = 0
        """The current stage of `experiment.stages`."""
        self.between_steps = True
        """False after a part of a batch, when there is no consistent state to save."""
        self.start_stage(0)
        self.average = WeightAverage.of(model, self.settings)
        self.sums = EpochSums(accelerator)
        self._pending: list[tuple[Tensor, int]] = []
        """Summed loss and correct predictions, and number of images, of the micro-batches of the current batch."""
        self.steps_taken = 0
        """Number of optimizer steps taken."""
        self.skipped = 0
        """How many of them left the weights as they were, because loss or gradient was not finite."""
        self._first_failure = torch.full((), NO_FAILURE, dtype=torch.int64, device=accelerator.device)

    def start_stage(self, number: int, state: Mapping[Tensor, Any] | None = None) -> None:
        """Train the layers of a stage from now on, with a learning rate and a schedule of its own.

        All processes call it together.

        Args:
            number: Of the stage, from 0.
            state: What the optimizer before it has for parameters that trained already.
        """
        stage = self.experiment.stages[number]
        self.between_steps = False  # if this fails, there is nothing to save
        if number:
            if (
                self._wrapped_model is not self.model
            ):  # it averages gradients of what trained when it was made
                self.accelerator.unwrap_model(self._wrapped_model, keep_fp32_wrapper=False)
            self.accelerator.free_memory()
        if self.settings.stages:
            self.model.unfreeze(stage.trainable)
        optim = dataclasses.replace(self.optim, lr=stage.lr or self.optim.lr)
        self.optimizer = optimizers.build(parameter_groups(self.model, optim), optim)
        optimizers.keep_state(self.optimizer, state or {})
        self.schedule = lr_schedule.build(
            self.experiment.schedule, self.optimizer, stage.epochs, self.steps_per_epoch
        )
        self._wrapped_model, self._wrapped_optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.model.shares_statistics = self.accelerator.num_processes > 1 and self.model.trains_batch_norm
        self.stage, self.between_steps = number, True

    @property
    def lr(self) -> float:
        """The current learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def lr_setting(self) -> str:
        """Where the learning rate is set, and what it is set to, for messages."""
        if (lr := self.experiment.stages[self.stage].lr) is not None:
            return f"lr of stage {self.stage + 1} in train.stages ({lr:g})"
        return f"optim.lr ({self.optim.lr:g})"

    @property
    def group_lrs(self) -> dict[str, float]:
        """The current learning rates by name of parameter group; empty if there is one in the whole training."""
        rates = {str(group.get("name", "")): float(group["lr"]) for group in self.optimizer.param_groups}
        return rates if len(rates) > 1 or self.experiment.train.stages else {}

    def forward_backward(self, features: Tensor, micro_batch: MicroBatch) -> None:
        """Add the gradient of a micro-batch; `update` adds its loss and correct predictions to `sums`.

        Args:
            features: Of its n images: n × feature shape. If batches are mixed, those of the image before the first come
                before.
            micro_batch: Which images these are.
        """
        self.between_steps = False
        batch_size = len(micro_batch.batch)
        set_dropout_batch(self._dropouts, self.steps_taken, micro_batch.samples, batch_size)
        target = self.labels[micro_batch.indices].to(features.device)
        features, partner_target, share = self._mixed(features, micro_batch)
        with nullcontext() if micro_batch.last else self.accelerator.no_sync(self._wrapped_model):
            logits = self._wrapped_model(features, start=self.model.split_index)
            summed = self._loss(logits, target)
            if partner_target is not None:
                summed = share * summed + (1 - share) * self._loss(logits, partner_target)
            loss = summed / self.class_weights[self.labels[micro_batch.batch]].sum().item()
            # The wrapper averages gradients over processes, but their sum is needed.
            self.accelerator.backward(loss * self.accelerator.num_processes)
        predicted = logits.detach().argmax(1)
        hits = (predicted == target).sum()
        if partner_target is not None:
            hits = share * hits + (1 - share) * (predicted == partner_target).sum()
        self._pending.append((torch.stack([loss.detach() * batch_size, hits]), len(target)))
        self._note_failure(loss.detach())

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others of their batch."""
        return bool(self.settings.mixup or self.settings.cutmix)

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return TASK.loss(logits, target, self.class_weights, self.settings.label_smoothing)

    def _mixed(self, features: Tensor, micro_batch: MicroBatch) -> tuple[Tensor, Tensor | None, float]:
        """What the model gets, class indices of the partners, and the share of the images themselves."""
        mix = draw_mix(self.settings, self.training_seed, self.steps_taken)
        if mix is None:
            return features, None, 1.0
        if not len(features):
            return features, self.labels[micro_batch.indices].to(features.device), 1.0
        mixed, share = mix.apply(features[1:], features[:-1])
        return mixed, self.labels[micro_batch.partners].to(features.device), share

    def update(self) -> None:
        """Take an optimizer step with the gradient of the whole batch, and step the schedule."""
        if self._step_optimizer():
            if self.average is not None:
                self.average.after_step()
            for sums, images in self._pending:
                self.sums.add(sums, images)
        else:
            self.skipped += 1
        self._pending.clear()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.steps_taken += 1
        self.sums.all_processes = None
        self.between_steps = True

    def check_finite(self) -> None:
        """Raise `DivergedError` if any loss so far was not finite. All processes call it together."""
        failed = int(self.accelerator.gather(self._first_failure[None]).min())
        if failed == NO_FAILURE:
            return
        self.between_steps = False
        raise step_diverged(failed, self.steps_per_epoch, self.lr_setting)

    def close(self) -> None:
        """Release the wrappers, and give the next training in this process the gradient scaler that this one got."""
        if self.accelerator.scaler is not None and self._initial_scaler:
            self.accelerator.scaler.load_state_dict(self._initial_scaler)
        self.accelerator.free_memory()

    def _step_optimizer(self) -> bool:
        """Update the weights, unless `train.nonfinite` is to skip this step. Returns whether they were updated."""
        can_skip = self.settings.nonfinite == "skip"
        if can_skip and not self._losses_are_finite():  # the gradient may be finite all the same
            return False
        norm = None
        if self.settings.clip:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        elif can_skip:
            gradients = [each.grad for each in self.model.parameters() if each.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        # All processes have the same gradient, so they decide alike. A gradient scaler skips such steps by itself.
        skip = can_skip and norm is not None and not bool(torch.isfinite(norm))
        if not skip or self.accelerator.scaler is not None:
            # Only a scaler needs the wrapper, which looks for a package on disk in each step: a millisecond.
            (self.optimizer if self.accelerator.scaler is None else self._wrapped_optimizer).step()
        return not skip

    def _losses_are_finite(self) -> bool:
        """Whether all losses of the current batch are finite, on all processes. All call it together."""
        losses = torch.stack([sums[0] for sums, _ in self._pending])
        return bool(self.accelerator.reduce((~torch.isfinite(losses)).sum(), "sum") == 0)

    def _note_failure(self, loss: Tensor) -> None:
        """Remember this step if its loss is not finite and training is to stop."""
        if self.settings.nonfinite == "skip":
            return
        if loss.device.type == "cpu":
            if not math.isfinite(loss.item()):
                self._first_failure.clamp_(max=self.steps_taken)
        else:  # looking at the value would wait for the device
            failure = torch.where(torch.isfinite(loss), NO_FAILURE, self.steps_taken)
            self._first_failure = torch.minimum(self._first_failure, failure)
