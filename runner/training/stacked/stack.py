"""A stack: heads of one shape and one training seed, whose steps are computed together.

They see the same batches, and their dropout masks come from the same random numbers. Every product has the shape that
it has when a head is trained alone, so that a head gets the same results in a stack and alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from runner.config.schema import Experiment
from runner.training import lr_schedule, optimizers
from runner.training.stacked.loss import loss_and_gradient


@dataclass(frozen=True)
class Batch:
    """What all heads of a seed see in a step."""

    features: Tensor
    """n × features, float32."""
    input_noise: Tensor | None
    """Random numbers for the dropout of the features, of the same shape; None: there is none."""
    hidden_noise: Tensor | None
    """The same for the hidden layer, n × width."""
    target: Tensor
    """n class indices."""


class HeadStack:
    """Some heads, each with hidden layer, optimizer group and learning-rate schedule of its own.

    Args:
        experiments: The settings of each head.
        parameters: Its weights and biases of both linear layers; they are copied.
        class_weights: Weights of the classes in the loss.
        steps_per_epoch: Optimizer steps of an epoch.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        parameters: Sequence[Sequence[Tensor]],
        class_weights: Tensor,
        steps_per_epoch: int,
    ) -> None:
        self.experiments = experiments
        self.heads = list(range(len(experiments)))
        """The heads that still train, by their index in `experiments`: the order of all tensors."""
        self._class_weights = class_weights
        self._clip = experiments[0].train.clip
        self._stacked = [
            torch.stack([tensor.detach() for tensor in each]) for each in zip(*parameters, strict=True)
        ]
        self._grads = [torch.zeros_like(each) for each in self._stacked]
        self._zero = torch.zeros(())
        groups = [
            {
                "params": [each[head] for each in self._stacked],
                "lr": experiment.optim.lr,
                "weight_decay": experiment.optim.weight_decay,
            }
            for head, experiment in enumerate(experiments)
        ]
        self._optimizer = optimizers.build(groups, experiments[0].optim)
        schedule, epochs = experiments[0].schedule, experiments[0].train.epochs
        if schedule.kind == "reduce_on_drop":  # each head has its own validation
            own = [
                cast(Optimizer, SimpleNamespace(param_groups=[each])) for each in self._optimizer.param_groups
            ]
            self._schedules = [lr_schedule.build(schedule, each, epochs, steps_per_epoch) for each in own]
        else:
            self._schedules = [lr_schedule.build(schedule, self._optimizer, epochs, steps_per_epoch)]
        self._prepare()

    def step(self, batch: Batch) -> Tensor:
        """Take an optimizer step with each head.

        Returns for each its loss summed over the batch and its correct predictions: 2 × heads, float64.
        """
        last_weight, last_bias = self._stacked[2:]
        last_weight_grad, last_bias_grad = self._grads[2:]
        dropped = self._dropped(batch)
        inputs = self._hidden_inputs(dropped)
        kept = None if batch.hidden_noise is None else batch.hidden_noise >= self._p
        hidden = self._drop_hidden(inputs.relu(), kept)
        logits = torch.baddbmm(last_bias[:, None], hidden, last_weight.transpose(1, 2))
        losses, gradient = loss_and_gradient(logits, batch.target, self._class_weights, self._smoothing)
        hits = (logits.argmax(2) == batch.target).sum(1)
        torch.sum(gradient, 1, out=last_bias_grad)
        torch.bmm(gradient.transpose(1, 2), hidden, out=last_weight_grad)
        into = self._drop_hidden(torch.bmm(gradient, last_weight), kept)
        self._set_first_gradients(into.masked_fill_(inputs <= 0, 0), dropped)
        if self._clip:
            for head in self.heads:
                clip_grad_norm_(self._optimizer.param_groups[head]["params"], self._clip)
        self._optimizer.step()
        for schedule in self._schedules:
            schedule.step()
        return torch.stack([(losses * len(batch.target)).double(), hits.double()])

    def logits(self, features: Tensor) -> Tensor:
        """Logits of evaluation: heads × n × classes, from n × features."""
        weight, bias, last_weight, last_bias = self._stacked
        hidden = torch.stack(
            [torch.addmm(each_bias, features, each.t()) for each, each_bias in zip(weight, bias, strict=True)]
        ).relu_()
        return torch.baddbmm(last_bias[:, None], hidden, last_weight.transpose(1, 2))

    def lr(self, head: int) -> float:
        """The present learning rate of a head."""
        return float(self._optimizer.param_groups[head]["lr"])

    def end_epoch(self, head: int, hits: int) -> bool:
        """Tell a head's schedule its correct validation predictions. Returns whether the head stops."""
        return self._schedules[head if len(self._schedules) > 1 else 0].end_epoch(hits)

    def parameters(self, head: int) -> list[Tensor]:
        """A head's tensors, in the order in which they were given. The next step changes them."""
        place = self.heads.index(head)
        return [each[place] for each in self._stacked]

    def drop(self, gone: set[int]) -> None:
        """Go on without some heads."""
        kept = [place for place, head in enumerate(self.heads) if head not in gone]
        self.heads = [self.heads[place] for place in kept]
        self._stacked = [each[kept] for each in self._stacked]
        self._grads = [each[: len(kept)].contiguous() for each in self._grads]
        state, groups = self._optimizer.state, self._optimizer.param_groups
        for head in gone:
            for old in groups[head]["params"]:
                state.pop(old, None)
            groups[head]["params"] = []
        for place, head in enumerate(self.heads):
            own = [each[place] for each in self._stacked]
            for old, new in zip(groups[head]["params"], own, strict=True):
                if old in state:
                    state[new] = state.pop(old)
            groups[head]["params"] = own
        self._prepare()

    def _prepare(self) -> None:
        """Set what follows from which heads train."""
        groups = self._optimizer.param_groups
        for place, head in enumerate(self.heads):
            for parameter, grads in zip(groups[head]["params"], self._grads, strict=True):
                parameter.grad = grads[place]
        settings = [self.experiments[head] for head in self.heads]
        self._dropouts = [experiment.model.dropout for experiment in settings]
        self._p = torch.tensor(self._dropouts)[:, None, None]
        self._kept_share = torch.tensor([1 - p for p in self._dropouts])[:, None, None]
        self._smoothing = [experiment.train.label_smoothing for experiment in settings]

    def _dropped(self, batch: Batch) -> list[Tensor]:
        """The features after the dropout of each head."""
        features, noise = batch.features, batch.input_noise
        if noise is None:
            return [features] * len(self.heads)
        zero = features.new_zeros(())
        by_dropout = {
            p: torch.where(noise >= p, features, zero).div_(1 - p) if p else features
            for p in set(self._dropouts)
        }
        return [by_dropout[p] for p in self._dropouts]

    def _hidden_inputs(self, features: Sequence[Tensor]) -> Tensor:
        """The hidden layer of each head before the ReLU: heads × n × width."""
        weight, bias = self._stacked[:2]
        inputs = weight.new_empty(len(weight), len(features[0]), weight.shape[1])
        for place, own in enumerate(features):
            torch.addmm(bias[place], own, weight[place].t(), out=inputs[place])
        return inputs

    def _drop_hidden(self, values: Tensor, kept: Tensor | None) -> Tensor:
        """Values of hidden layers, or gradients by them, after dropout."""
        return values if kept is None else torch.where(kept, values, self._zero).div_(self._kept_share)

    def _set_first_gradients(self, gradient: Tensor, features: Sequence[Tensor]) -> None:
        """Set the gradients of the first layers, from that of their outputs."""
        weight_grad, bias_grad = self._grads[:2]
        torch.sum(gradient, 1, out=bias_grad)
        for place, own in enumerate(features):
            torch.mm(gradient[place].t(), own, out=weight_grad[place])
