"""Optimizers have the settings of an experiment."""

from __future__ import annotations

import pytest
import torch
from helpers import small_model

from runner.config.train_schema import OptimConfig
from runner.models.parameter_groups import parameter_groups
from runner.training import optimizers


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_an_optimizer_has_its_settings(name: str, kind: type[torch.optim.Optimizer]) -> None:
    optim = OptimConfig(name, lr=0.02, weight_decay=0.3, momentum=0.8)
    optimizer = optimizers.build(parameter_groups(small_model(), optim), optim)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.3)
    assert group.get("momentum", 0.8) == 0.8
