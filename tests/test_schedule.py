"""The learning rate: the report's rule, and the other schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import (
    Make,
    learn,
    scripted,
    small_network,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from runner.config.schema import Optim, Schedule
from runner.training import lr_schedule
from runner.training.step import build_optimizer


class TestReportRule:
    def follow(
        self, hits: Sequence[int], factor: float = 5, reductions: int = 3
    ) -> tuple[list[float], int | None]:
        """The learning rate after each epoch, and the epoch at which training stops."""
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
        rule = lr_schedule.build(Schedule("report", factor, reductions), optimizer, 100)
        rates = []
        for epoch, count in enumerate(hits):
            rule.stepped()
            stop = rule.validated(count)
            rates.append(optimizer.param_groups[0]["lr"])
            if stop:
                return rates, epoch
        return rates, None

    @pytest.mark.parametrize(
        ("hits", "divided", "stop"),
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
    def test_divides_when_accuracy_falls_below_the_epoch_before(
        self, hits: list[int], divided: list[int], stop: int | None
    ) -> None:
        rates, stopped = self.follow(hits)
        assert rates == pytest.approx([0.01 / 5**times for times in divided])
        assert stopped == stop

    def test_factor_and_reductions_are_settings(self) -> None:
        rates, stopped = self.follow([3, 2, 1], factor=2, reductions=1)
        assert rates == pytest.approx([0.01, 0.005])
        assert stopped == 1

    @settings(deadline=None)
    @given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
    def test_as_the_report_words_it(self, hits: list[int]) -> None:
        rates, stopped = self.follow(hits)
        lr, falls = 0.01, 0
        for epoch, count in enumerate(hits):
            if epoch and count < hits[epoch - 1]:
                lr, falls = lr / 5, falls + 1
            assert rates[epoch] == pytest.approx(lr)
            if falls == 3:
                assert stopped == epoch
                return
        assert stopped is None

    def test_every_group_is_divided(self) -> None:
        network = small_network(trainable="features.16")
        optimizer = build_optimizer(Optim("sgd", lr=0.1, groups={"features": 0.01}), network)
        rule = lr_schedule.build(Schedule("report"), optimizer, 10)
        rule.validated(5)
        rule.validated(4)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.002])

    def test_in_the_loop(self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
        scripted(monkeypatch, [0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.4, 0.9])
        experiment = make("--schedule.kind", "report", "--train.epochs", "8", "--optim.lr", "0.01")
        history, _ = learn(experiment, small_network(), accelerator)
        assert [epoch.lr for epoch in history] == pytest.approx(
            [0.01, 0.01, 0.002, 0.002, 0.002, 0.0004, 0.0004]
        )
        assert [epoch.number for epoch in history if epoch.reduced] == [2, 5, 7]
        assert [epoch.number for epoch in history] == [1, 2, 3, 4, 5, 6, 7]


class TestOtherSchedules:
    def rates(self, kind: str, steps: int = 20, lr: float = 0.1) -> list[float]:
        """The learning rate of each step, and the one behind the last."""
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
        rule = lr_schedule.build(Schedule(kind), optimizer, steps)  # type: ignore[arg-type]
        rates = []
        for step in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            rule.stepped()
            assert not rule.validated(20 - step)
        return [*rates, optimizer.param_groups[0]["lr"]]

    def test_constant(self) -> None:
        assert self.rates("constant") == [0.1] * 21

    def test_cosine_goes_from_lr_to_zero(self) -> None:
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
        scripted(monkeypatch, [0.9, 0.8, 0.7, 0.6, 0.5])
        experiment = make(
            "--schedule.kind", kind, "--train.epochs", "5", "--optim.lr", "0.01", "--train.batch_size", "6"
        )
        history, _ = learn(experiment, small_network(), accelerator)
        steps_an_epoch = 4
        expected = self.rates(kind, 5 * steps_an_epoch, 0.01)[: 5 * steps_an_epoch : steps_an_epoch]
        assert [epoch.lr for epoch in history] == pytest.approx(expected)
        assert not any(epoch.reduced for epoch in history)

    def test_sgd_keeps_its_momentum_under_onecycle(self) -> None:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.7)
        rule = lr_schedule.build(Schedule("onecycle"), optimizer, 10)
        optimizer.step()
        rule.stepped()
        assert optimizer.param_groups[0]["momentum"] == 0.7
