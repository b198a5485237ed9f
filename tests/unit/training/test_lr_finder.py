"""The learning-rate range test: its losses are those of a plain loop, and what it suggests."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from fits import TensorFeatures, separable_features
from helpers import Make, small_model
from PIL import Image

from runner.cli import lr_find, main
from runner.training import lr_finder
from runner.training.batches import epoch_batches
from runner.training.fit_data import FitData, LabeledFeatures
from runner.training.lr_finder import LRCurve, find_lr
from runner.training.setup import Setup

WORDS = ("--optim.name", "sgd", "--optim.momentum", "0", "--model.dropout", "0", "--train.batch_size", "8")


def try_rates(experiment: Any, accelerator: Accelerator, steps: int, last: float = 1.0) -> LRCurve:
    values, labels = separable_features()
    split = LabeledFeatures(lambda epoch: TensorFeatures(values), np.array(labels))
    model = small_model(dropout=0.0, trainable=experiment.model.trainable)
    setup = cast(Setup, SimpleNamespace(experiment=experiment, model=model, accelerator=accelerator))
    return find_lr(setup, FitData(split, split, 8), (1e-3, last), steps)


def test_the_losses_are_those_of_a_plain_loop(make: Make, accelerator: Accelerator) -> None:
    curve = try_rates(make(*WORDS), accelerator, 7, last=0.1)
    assert curve.rates == pytest.approx(np.geomspace(1e-3, 0.1, 7))
    values, labels = separable_features()
    model, targets = small_model(dropout=0.0).train(), torch.tensor(labels)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 1.0)
    batches = [batch for epoch in range(3) for batch in epoch_batches(targets, 8, "shuffled", 0, epoch)]
    for lr, batch, loss in zip(curve.rates, batches, curve.losses, strict=False):
        optimizer.param_groups[0]["lr"] = lr
        logits = model(values[batch], start=model.split_index)
        expected = torch.nn.functional.cross_entropy(logits, targets[batch])
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()


@pytest.mark.parametrize("grown", [50.0, math.inf, math.nan])
def test_it_ends_when_the_loss_has_grown(
    grown: float, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0] * 12 + [grown] * 48)
    monkeypatch.setattr(lr_finder, "_take_step", lambda *_: next(losses))
    curve = try_rates(make(*WORDS), accelerator, 60)
    assert 12 <= len(curve.losses) < 20
    assert all(map(math.isfinite, curve.losses))


def test_groups_keep_their_proportions(
    make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.training.step import TrainStep

    seen: list[list[float]] = []
    update = TrainStep.update

    def noting(self: TrainStep) -> None:
        seen.append([group["lr"] for group in self.optimizer.param_groups])
        update(self)

    monkeypatch.setattr(TrainStep, "update", noting)
    words = ("--optim.groups", '{"classifier.4": 0.001}', "--optim.lr", "0.01")
    try_rates(make(*WORDS, *words), accelerator, 5)
    assert len(seen) == 5
    assert all(named == pytest.approx(0.1 * others) for others, named in seen)


def curve_with_minimum_at(step: int, steps: int = 60) -> LRCurve:
    rates = tuple(float(each) for each in np.geomspace(1e-6, 1.0, steps))
    losses = tuple(2.0 - 0.02 * min(each, step) + 0.1 * max(0, each - step) for each in range(steps))
    return LRCurve(rates, losses)


def test_a_tenth_of_the_rate_with_the_least_loss_is_suggested(tmp_path: Path) -> None:
    curve = curve_with_minimum_at(40)
    assert curve.suggestion is not None
    # The average lags behind by some steps.
    assert curve.rates[40] / 10 <= curve.suggestion <= curve.rates[46] / 10
    curve.draw(tmp_path / "curve.png", "some $run")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (960, 540)


@pytest.mark.parametrize(
    "losses",
    [[2.0] * 40, [2.0 + 0.1 * step for step in range(40)], [2.0, 1.0]],
    ids=["flat", "growing", "short"],
)
def test_nothing_is_suggested_where_the_loss_does_not_fall(losses: list[float]) -> None:
    rates = tuple(float(each) for each in np.geomspace(1e-6, 1.0, len(losses)))
    assert LRCurve(rates, tuple(losses)).suggestion is None


def test_the_command_leaves_nothing_but_the_picture(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.png"
    assert lr_find.main([*words, "--steps", "20", "--out", str(picture)]) == 0
    assert picture.exists()
    assert f"drawn in {picture}" in capsys.readouterr().out.replace("\n", "")
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--from", "1", "--to", "0.1"), "--from must be above 0 and less than --to"),
        (("--out", "no/such/folder/lr.png"), "There is no folder no/such/folder"),
        (
            ("--model.head", "linear", "--train.solver", "ridge", "--augment.views", "none"),
            "has no learning rate",
        ),
    ],
)
def test_what_cannot_be_tried_is_a_sentence(
    more: tuple[str, ...], reason: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["lr-find", *words, *more]) == 2
    assert reason in capsys.readouterr().err


def test_of_stages_the_first_one_is_tried(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its own features, also after more steps than it has; what later stages need does not disturb it."""
    seen = []
    take_step = lr_finder._take_step

    def noting(step: Any, batch: Any) -> float:
        seen.append(
            (step.stage, [group["name"] for group in step.optimizer.param_groups], batch[0][1].shape[1:])
        )
        return take_step(step, batch)

    monkeypatch.setattr(lr_finder, "_take_step", noting)
    stages = "[{epochs: 1, trainable: head, lr: 0.1}, {epochs: 2, trainable: last:1}]"
    groups = ("--optim.groups", "{features.18: 0.001}", "--augment.views", "fresh")
    options = ("--steps", "8", "--out", str(tmp_path / "lr.png"))
    assert lr_find.main([*words, "--train.stages", stages, *groups, *options]) == 0
    assert seen == [(0, ["others"], torch.Size([512]))] * 8
