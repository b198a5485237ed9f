"""Gives a model the linear head that a solver finds, on every process."""

from __future__ import annotations

import torch
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor

from runner.features.sources import SplitFeatures
from runner.models.transfer_model import TransferModel
from runner.portable.head import LevelNorm
from runner.training.fit_data import FitData, LabeledFeatures
from runner.training.fit_state import FitState
from runner.training.solvers.ridge import Linear
from runner.training.solvers.solve import Report, Rows, Solution, Solver, count_parts
from runner.utils.console import Terminal
from runner.utils.long_wait import long_wait

BATCH = 512
"""Images whose features are prepared at a time."""


@long_wait()
def solve_head(state: FitState, data: FitData, terminal: Terminal) -> tuple[float, float]:
    """Solve the head on rank 0, where `state.solution` has it, and give it to the models of all processes.

    It counts as the steps of an epoch. Returns the mean loss and accuracy on the training images.
    """
    parts = [(split, state.load(split, state.epoch)) for split in (data.train, data.val)]
    settings, solution = state.experiment.train, None
    if state.accelerator.is_main_process:
        with terminal.steps(f"solving the head by {settings.solver}", count_parts(settings)) as report:
            solution = _solve(state, data, parts, report)
    loss, top1 = _quality(solution.train, state.labels) if solution else (0.0, 0.0)
    state.solution = solution
    _set_head(state, solution.linear if solution else None)
    state.train_step.steps_taken += state.train_step.steps_per_epoch
    loss, top1 = broadcast_object_list([loss, top1])
    return loss, top1


def use_refitted_head(state: FitState) -> None:
    """Give all models the head that was solved with the validation images too, if `train.refit` is on."""
    if state.experiment.train.refit:
        _set_head(state, state.solution.refitted if state.solution else None)


def _set_head(state: FitState, linear: Linear | None) -> None:
    """Give the last layer of all processes' models the weights that rank 0 has."""
    layer = state.model.last_layer
    with torch.no_grad():
        if linear is not None:
            layer.weight.copy_(linear.weight)
            layer.bias.copy_(linear.bias)
        for parameter in (layer.weight, layer.bias):
            parameter.copy_(broadcast(parameter.detach().clone()))


def _solve(
    state: FitState, data: FitData, parts: list[tuple[LabeledFeatures, SplitFeatures]], report: Report
) -> Solution:
    model = state.model
    train, val = (
        Rows(last_layer_inputs(model, features, len(split.labels)), torch.tensor(split.labels))
        for split, features in parts
    )
    settings, classes = state.experiment.train, len(model.spec.classes)
    return Solver(settings, classes, level_sizes(model), data.products, report).solve(train, val)


def level_sizes(model: TransferModel) -> tuple[int, ...] | None:
    """Features of each level of a pyramid that the last layer receives; None: they have no norm of their own."""
    norms = [module for module in model.modules() if isinstance(module, LevelNorm)]
    return norms[0].sizes if norms else None


def last_layer_inputs(model: TransferModel, features: SplitFeatures, count: int) -> Tensor:
    """What reaches the last layer: count × features, float32, on the CPU.

    Args:
        model: With a linear head.
        features: Of a split.
        count: Its images.
    """
    batches = [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
    model.eval()
    with torch.no_grad():
        batches_of_rows = [
            model.run(values, model.split_index, model.depth - 1).float().cpu()
            for values in features.batches(batches)
        ]
    return torch.cat(batches_of_rows)


def _quality(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and top-1 accuracy."""
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return float(loss), float((logits.argmax(1) == labels).double().mean())
