"""Learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from fits import script_validation, train_head
from helpers import Make, small_model
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from runner.config.train_schema import OptimConfig, ScheduleConfig
from runner.models.parameter_groups import parameter_groups
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
        schedule = lr_schedule.build(config, optimizer, 10, 10)
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
        groups = parameter_groups(small_model(trainable="features.16"), optim)
        optimizer = optimizers.build(groups, optim)
        schedule = lr_schedule.build(ScheduleConfig("reduce_on_drop"), optimizer, 1, 10)
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
        schedule = lr_schedule.build(ScheduleConfig(kind), optimizer, 1, steps)
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
        schedule = lr_schedule.build(ScheduleConfig("onecycle"), optimizer, 1, 10)
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[0]["momentum"] == 0.7


class TestWarmup:
    def rates(self, config: ScheduleConfig, epochs: int, hits: Sequence[int] = ()) -> list[float]:
        """The learning rates of all steps of epochs of ten steps, of a parameter group at 0.1."""
        optimizer = sgd(0.1)
        schedule = lr_schedule.build(config, optimizer, epochs, 10)
        rates = []
        for epoch in range(epochs):
            for _ in range(10):
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                schedule.step()
            schedule.end_epoch(hits[epoch] if hits else epoch)
        return rates

    @pytest.mark.parametrize("words", [{"warmup": 0.5}, {"warmup_steps": 5}], ids=str)
    def test_rises_to_where_the_schedule_begins(self, words: dict[str, Any]) -> None:
        rates = self.rates(ScheduleConfig("constant", **words), 2)
        assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, *[0.1] * 16])

    @pytest.mark.parametrize("floor", [0.0, 0.25])
    def test_cosine_follows_down_to_the_floor(self, floor: float) -> None:
        rates = self.rates(ScheduleConfig("cosine", warmup=1.0, floor=floor), 3)
        assert rates[:10] == pytest.approx([0.01 * step for step in range(1, 11)])
        following = [floor + (1 - floor) * (1 + math.cos(math.pi * step / 21)) / 2 for step in range(1, 21)]
        assert rates[10:] == pytest.approx([0.1 * factor for factor in following])

    def test_is_as_torchvisions_references_have_it(self) -> None:
        """A linear rise, then torch's cosine over what is left."""
        optimizer = sgd(0.1)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=9)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=21)
        together = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [9])
        expected = []
        for _ in range(30):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            together.step()
        assert self.rates(ScheduleConfig("cosine", warmup=1.0), 3) == pytest.approx(expected)

    def test_a_drop_within_it_lowers_where_it_rises_to(self) -> None:
        rates = self.rates(ScheduleConfig("reduce_on_drop", factor=2.0, warmup=3.0), 4, [5, 4, 6, 7])
        assert rates[:20] == pytest.approx([0.1 * (step + 1) / 30 for step in range(20)])
        assert rates[20:] == pytest.approx(
            [*(0.05 * (step + 1) / 30 for step in range(20, 30)), *[0.05] * 10]
        )

    def test_lasts_as_long_as_the_training_at_most(self) -> None:
        assert self.rates(ScheduleConfig("cosine", warmup=9.0), 1) == pytest.approx(
            [0.01 * n for n in range(1, 11)]
        )

    @pytest.mark.parametrize("taken", [3, 12, 25])
    def test_continues_from_its_state(self, taken: int) -> None:
        config, whole = ScheduleConfig("cosine", warmup=1.5, floor=0.1), []
        optimizer = sgd(0.1)
        schedule = lr_schedule.build(config, optimizer, 3, 10)
        for step in range(30):
            if step == taken:
                state, groups = schedule.state_dict(), optimizer.state_dict()
                optimizer = sgd(0.1)
                schedule = lr_schedule.build(config, optimizer, 3, 10)
                optimizer.load_state_dict(groups)
                schedule.load_state_dict(state)
            whole.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert whole == self.rates(config, 3)

    @pytest.mark.parametrize("taken", [3, 12, 25])
    def test_a_branch_is_where_it_would_be(self, taken: int) -> None:
        config = ScheduleConfig("cosine", warmup=1.5)
        optimizer = sgd(0.1)
        schedule = lr_schedule.build(config, optimizer, 3, 10)
        schedule.fast_forward(taken, {})
        assert optimizer.param_groups[0]["lr"] == pytest.approx(self.rates(config, 3)[taken])

    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            ({"warmup": 1.0, "warmup_steps": 3}, "the same in two units"),
            ({"kind": "onecycle", "warmup": 1.0}, "has|begins with a warm-up of its own"),
        ],
    )
    def test_settings_that_contradict_each_other_are_refused(
        self, words: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(ValueError, match=reason):
            ScheduleConfig(**words)


def test_patience_ends_a_training_without_gain(
    make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.5, 0.6, 0.6, 0.5, 0.4, 0.9])
    words = ("--schedule.kind", "constant", "--train.epochs", "6", "--train.patience", "2")
    history, _ = train_head(make(*words), small_model(), accelerator)
    assert [epoch.number for epoch in history] == [1, 2, 3, 4]


def test_patience_can_watch_the_loss(
    make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It falls until the third epoch, while top-1 is best in the first one."""
    losses = [1.0, 0.9, 0.8, 0.85, 0.9, 0.7]
    script_validation(monkeypatch, [0.9, 0.6, 0.6, 0.5, 0.4, 0.9], losses=losses)
    words = ("--schedule.kind", "constant", "--train.epochs", "6", "--train.patience", "2")
    history, _ = train_head(make(*words, "--train.monitor", "loss"), small_model(), accelerator)
    assert [epoch.number for epoch in history] == [1, 2, 3, 4, 5]
