"""Learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from fits import script_validation, train_head
from helpers import Make, small_model
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from runner.config.schema import OptimConfig, ScheduleConfig
from runner.training import lr_schedule, optimizers


def sgd(lr: float = 0.1, momentum: float = 0.9) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=momentum)


class TestReduceOnDrop:
    def follow(
        self, hits: Sequence[int], factor: float = 5, reductions: int = 3
    ) -> tuple[list[float], int | None]:
        """The learning rate after each epoch, and the epoch at which training stops."""
        optimizer = sgd(lr=0.01)
        config = ScheduleConfig("reduce_on_drop", factor, reductions)
        schedule = lr_schedule.build(config, optimizer, 100)
        rates = []
        for epoch, count in enumerate(hits):
            schedule.step()
            stop = schedule.end_epoch(count)
            rates.append(optimizer.param_groups[0]["lr"])
            if stop:
                return rates, epoch
        return rates, None

    @pytest.mark.parametrize(
        ("hits", "reductions", "stop"),
        [
            ([5, 6, 7, 8], [0, 0, 0, 0], None),
            ([5, 5, 5, 5], [0, 0, 0, 0], None),
            ([5, 4, 3, 2], [0, 1, 2, 3], 3),
            ([5, 4, 4, 3, 3, 2, 9], [0, 1, 1, 2, 2, 3], 5),
            ([5, 4, 6, 5, 7, 6], [0, 1, 1, 2, 2, 3], 5),
            ([9, 1, 2, 3, 4], [0, 1, 1, 1, 1], None),
            ([0, 0, 1, 0], [0, 0, 0, 1], None),
            ([4, 6, 5, 5, 6, 5], [0, 0, 1, 1, 1, 2], None),
        ],
    )
    def test_reduces_when_accuracy_falls_below_the_epoch_before(
        self, hits: list[int], reductions: list[int], stop: int | None
    ) -> None:
        rates, stopped = self.follow(hits)
        assert rates == pytest.approx([0.01 / 5**times for times in reductions])
        assert stopped == stop

    def test_factor_and_reductions_are_settings(self) -> None:
        rates, stopped = self.follow([3, 2, 1], factor=2, reductions=1)
        assert rates == pytest.approx([0.01, 0.005])
        assert stopped == 1

    @given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
    def test_is_the_rule_of_the_report(self, hits: list[int]) -> None:
        rates, stopped = self.follow(hits)
        lr, drops = 0.01, 0
        for epoch, count in enumerate(hits):
            if epoch and count < hits[epoch - 1]:
                lr, drops = lr / 5, drops + 1
            assert rates[epoch] == pytest.approx(lr)
            if drops == 3:
                assert stopped == epoch
                return
        assert stopped is None

    def test_reduces_every_parameter_group(self) -> None:
        optim = OptimConfig("sgd", lr=0.1, groups={"features": 0.01})
        groups = small_model(trainable="features.16").parameter_groups(optim.lr, optim.groups)
        optimizer = optimizers.build(groups, optim)
        schedule = lr_schedule.build(ScheduleConfig("reduce_on_drop"), optimizer, 10)
        schedule.end_epoch(5)
        schedule.end_epoch(4)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.002])

    def test_in_the_loop(self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
        script_validation(monkeypatch, [0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.4, 0.9])
        experiment = make("--schedule.kind", "reduce_on_drop", "--train.epochs", "8", "--optim.lr", "0.01")
        history, _ = train_head(experiment, small_model(), accelerator)
        assert [epoch.lr for epoch in history] == pytest.approx(
            [0.01, 0.01, 0.002, 0.002, 0.002, 0.0004, 0.0004]
        )
        assert [epoch.number for epoch in history if epoch.lr_reduced] == [2, 5, 7]
        assert [epoch.number for epoch in history] == [1, 2, 3, 4, 5, 6, 7]


class TestOtherSchedules:
    def rates(self, kind: str, steps: int = 20, lr: float = 0.1) -> list[float]:
        """The learning rate of each step, and the one after the last."""
        optimizer = sgd(lr)
        schedule = lr_schedule.build(ScheduleConfig(kind), optimizer, steps)
        rates = []
        for step in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
            assert not schedule.end_epoch(20 - step)
        return [*rates, optimizer.param_groups[0]["lr"]]

    def test_constant(self) -> None:
        assert self.rates("constant") == [0.1] * 21

    def test_cosine_falls_from_lr_to_zero(self) -> None:
        expected = [0.05 * (1 + math.cos(math.pi * step / 20)) for step in range(21)]
        assert self.rates("cosine") == pytest.approx(expected, abs=1e-9)

    def test_onecycle_rises_to_lr_and_falls_far_below_the_start(self) -> None:
        rates = self.rates("onecycle", steps=100)
        top = int(np.argmax(rates))
        assert max(rates) == pytest.approx(0.1, rel=0.01)
        assert rates[0] == pytest.approx(0.1 / 25)
        assert 20 < top < 40
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert rates[-1] < rates[0] / 1000

    @pytest.mark.parametrize("kind", ["cosine", "onecycle", "constant"])
    def test_in_the_loop_they_end_with_the_epochs(
        self, kind: str, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script_validation(monkeypatch, [0.9, 0.8, 0.7, 0.6, 0.5])
        words = ("--train.epochs", "5", "--optim.lr", "0.01", "--train.batch_size", "6")
        history, _ = train_head(make("--schedule.kind", kind, *words), small_model(), accelerator)
        steps_per_epoch = 4
        expected = self.rates(kind, 5 * steps_per_epoch, 0.01)[: 5 * steps_per_epoch : steps_per_epoch]
        assert [epoch.lr for epoch in history] == pytest.approx(expected)
        assert not any(epoch.lr_reduced for epoch in history)

    def test_onecycle_does_not_change_the_momentum(self) -> None:
        optimizer = sgd(momentum=0.7)
        schedule = lr_schedule.build(ScheduleConfig("onecycle"), optimizer, 10)
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[0]["momentum"] == 0.7
