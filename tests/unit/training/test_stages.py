"""Gradual unfreezing: equal to a plain loop, and to itself wherever it is interrupted."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from accelerate import Accelerator
from helpers import QUIET, TEST, TRAIN, VAL, Make, Recorder, comparable
from interrupted_fits import interrupt_run, signals_interrupt, without_times
from torch import Tensor, nn

from runner.config.schema import Experiment
from runner.config.tree import as_tree
from runner.data.transforms import view_of_epoch
from runner.training import run
from runner.training.batches import epoch_batches
from runner.training.build_model import check_model
from runner.training.fit_state import FitState
from runner.training.results import RunResult
from runner.training.resume import ResumePoint
from runner.training.setup import Setup, prepare
from runner.training.snapshot import load_newest
from runner.utils.errors import DivergedError, UserError
from runner.utils.signals import Interrupted

Train: TypeAlias = Callable[..., tuple[RunResult, Recorder]]
STAGES = (
    "[{epochs: 2, trainable: head}, {epochs: 1, trainable: features.18, lr: 0.003},"
    " {epochs: 2, trainable: last:1}]"
)
WORDS = ("--train.stages", STAGES, "--train.epochs", "5", "--optim.lr", "0.01")
STEPS = 3
"""Of an epoch."""
CHANGES = (2 * STEPS, 3 * STEPS)
"""Steps before the stages change."""


def staged(make: Make, *words: str) -> Experiment:
    return make(*WORDS, *words)


def train_plainly(setup: Setup, stages: list[tuple[int, list[nn.Parameter], float]]) -> None:
    """A loop as people write it: one optimizer, to which parameters are added when they are unfrozen.

    Args:
        setup: The model and its images.
        stages: Epochs, parameters that are added, and the learning rate of all from then on.
    """
    experiment, model = setup.experiment, setup.model
    entries = setup.manifest.select("train")
    labels = torch.tensor(setup.manifest.labels("train"))
    model.requires_grad_(False)
    optimizer, epoch = None, 0
    for epochs, added, lr in stages:
        for parameter in added:
            parameter.requires_grad_(True)
        if optimizer is None:
            optimizer = torch.optim.SGD(added, lr, momentum=0.9)
        elif added:
            optimizer.add_param_group({"params": added})
        for group in optimizer.param_groups:
            group["lr"] = lr
        for _ in range(epochs):
            view = view_of_epoch(epoch, experiment.augment.views)
            images = torch.cat([*setup.loader.batches(entries, view, [range(len(entries))])])
            for batch in epoch_batches(labels, 8, "shuffled", experiment.seed.train, epoch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
            epoch += 1


def test_a_plain_loop_that_unfreezes_layers_trains_the_same(
    make: Make, accelerator: Accelerator, train: Train
) -> None:
    experiment = staged(make, "--model.dropout", "0", "--schedule.kind", "constant", "--optim.name", "sgd")
    own: dict[str, Tensor] = {}

    def keep(self: FitState, *_: Any) -> None:
        own.update({name: value.detach().clone() for name, value in self.model.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FitState, "keep_average", keep)  # called when training has ended
        train(experiment)
    setup = prepare(experiment, accelerator, QUIET)
    by_name = dict(setup.model.named_parameters())
    added = [
        [each for name, each in by_name.items() if name.startswith(start)]
        for start in ("classifier.", "features.18.", "features.16.")
    ]
    train_plainly(setup, [(2, added[0], 0.01), (1, added[1], 0.003), (2, added[2], 0.01)])
    for name, value in setup.model.state_dict().items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=1e-6)


def test_the_first_stage_is_a_training_of_the_head(make: Make, train: Train) -> None:
    whole, _ = train(staged(make))
    head, _ = train(make("--optim.lr", "0.01", "--train.epochs", "2"))
    for staged_epoch, epoch in zip(whole.history, head.history, strict=False):
        assert staged_epoch.train_loss == pytest.approx(epoch.train_loss, rel=1e-6)
        assert staged_epoch.val["loss"] == pytest.approx(epoch.val["loss"], rel=1e-6)


@pytest.mark.parametrize(("views", "passes"), [("2", 1), ("fresh", 0)])
def test_images_go_through_the_backbone_once(views: str, passes: int, make: Make, train: Train) -> None:
    """Fresh views are others in each stage, but those of validation are the same."""
    _, records = train(staged(make, "--augment.views", views))
    values = {name: value for name, _, value in records.points}
    shared = 2 * TRAIN if passes else 0
    every = shared + VAL + TEST if passes else 5 * TRAIN + 3 * VAL + TEST
    assert values["system/features/misses"] == every


def test_a_cache_changes_no_bit(make: Make, train: Train) -> None:
    cached, _ = train(staged(make))
    computed, _ = train(staged(make, "--features.store", "false"))
    assert comparable(cached.history) == comparable(computed.history)
    assert (cached.best, cached.last) == (computed.best, computed.last)


def stop_at_change(experiment: Experiment, accelerator: Accelerator, records: Recorder, epoch: int) -> None:
    """Run an experiment until a signal arrives while an epoch, from 1, is recorded."""
    record = FitState.record

    def stopping(self: FitState, result: Any) -> None:
        if result.number == epoch:
            signal.raise_signal(signal.SIGTERM)
        record(self, result)

    with pytest.MonkeyPatch.context() as patch, signals_interrupt():
        patch.setattr(FitState, "record", stopping)
        with pytest.raises(Interrupted):
            run.train(experiment, accelerator, records, QUIET)


EMA = ("--train.average", "ema", "--schedule.kind", "cosine")
SLOW = [
    pytest.param(moment, extra, marks=pytest.mark.slow)
    for moment in ("before 1", "at 1", "after 1", "before 2", "at 2", "after 2")
    for extra in ((), EMA)
]


@pytest.mark.parametrize(
    ("moment", "extra"), [("at 1", ()), ("after 1", EMA), ("before 2", ()), ("at 2", EMA), *SLOW]
)
def test_a_run_continues_to_the_same_result(
    moment: str, extra: tuple[str, ...], make: Make, accelerator: Accelerator, tmp_path: Path, train: Train
) -> None:
    experiment = staged(make, *extra)
    whole, _ = train(experiment)
    when, _, number = moment.partition(" ")
    step, records = CHANGES[int(number) - 1], Recorder(tmp_path / "stopped")
    if when == "at":
        stop_at_change(experiment, accelerator, records, step // STEPS)
    else:
        interrupt_run(experiment, accelerator, records, step if when == "before" else step + 1)
    snapshot, _ = load_newest(records.folder / "state")
    assert snapshot is not None
    assert snapshot.step == step + (when == "after")
    start = ResumePoint(as_tree(experiment), "0123456789", "small", snapshot)
    result = run.train(experiment, accelerator, records, QUIET, start)
    assert without_times(result.history) == without_times(whole.history)
    assert (result.best, result.last) == (whole.best, whole.last)


def test_learning_rates_are_those_of_the_stages(make: Make, train: Train) -> None:
    words = ("--optim.layer_decay", "0.5", "--schedule.kind", "constant")
    result, records = train(staged(make, *words))
    assert [epoch.lr for epoch in result.history] == [0.01, 0.01, 0.003, 0.01, 0.01]
    rates = {(name, step): value for name, step, value in records.points if name.startswith("lr/")}
    assert [step for name, step in rates if name == "lr/head"] == [1, 2, 3, 4, 5]
    assert [rates["lr/block5", step] for step in (3, 4, 5)] == [0.0015, 0.005, 0.005]


def test_only_the_last_stage_ends_early(make: Make, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.training.results.epochs_without_gain", lambda *_: 99)
    stages = "[{epochs: 3, trainable: head}, {epochs: 4, trainable: last:1}]"
    result, _ = train(make("--train.stages", stages, "--train.epochs", "7", "--train.patience", "2"))
    assert len(result.history) == 5


def test_a_schedule_ends_only_in_the_last_stage(
    make: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.training.lr_schedule.ReduceOnDrop.end_epoch", lambda *_: True)
    stages = "[{epochs: 3, trainable: head}, {epochs: 4, trainable: last:1}]"
    result, _ = train(
        make("--train.stages", stages, "--train.epochs", "7", "--schedule.kind", "reduce_on_drop")
    )
    assert len(result.history) == 4


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        (
            "[{epochs: 1, trainable: last:1}, {epochs: 1, trainable: head}]",
            "train.stages: stage 2 trains head, which is less than last:1 of the stage before it;",
        ),
        (
            "[{epochs: 1, trainable: features.99}, {epochs: 1, trainable: all}]",
            "trainable of stage 1 in train.stages is 'features.99', which is no layer with weights",
        ),
        (
            "[{epochs: 1, trainable: head}, {epochs: 1, trainable: last:9}]",
            "last:9, but the backbone has 5 blocks",
        ),
    ],
)
def test_stages_that_cannot_be(
    stages: str, sentence: str, make: Make, accelerator: Accelerator, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        run.train(
            make("--train.stages", stages, "--train.epochs", "2"), accelerator, Recorder(tmp_path), QUIET
        )


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (("--train.cutmix", "1"), "train.cutmix needs images or maps, but where head trains, training takes"),
        (
            ("--optim.groups", "{featurs: 1.0e-4}"),
            r"optim.groups names 'featurs'.* \(did you mean 'features'\?\)",
        ),
    ],
)
def test_what_the_stages_do_not_allow_is_refused_before_there_is_a_run(
    extra: tuple[str, ...], sentence: str, make: Make
) -> None:
    with pytest.raises(UserError, match=sentence):
        check_model(staged(make, *extra))


def branch(
    first: Experiment, second: Experiment, step: int, accelerator: Accelerator, folder: Path
) -> RunResult:
    """Interrupt a run after a step, and continue it with other settings."""
    snapshot = interrupt_run(first, accelerator, Recorder(folder / "first"), step)
    start = ResumePoint(as_tree(second), "", "small", snapshot, branch_of="0123456789")
    return run.train(second, accelerator, Recorder(folder / "branch"), QUIET, start)


@pytest.mark.parametrize("kind", ["cosine", "onecycle", "constant"])
def test_a_branch_continues_the_schedule_of_its_stage(
    kind: str, make: Make, accelerator: Accelerator, tmp_path: Path, train: Train
) -> None:
    """The run is in the second epoch of the last stage; the branch goes on with another clipping."""
    words = ("--schedule.kind", kind, "--schedule.warmup", "0" if kind == "onecycle" else "0.5")
    usual, _ = train(staged(make, *words))
    result = branch(
        staged(make, *words),
        staged(make, *words, "--train.clip", "0.9"),
        4 * STEPS + 1,
        accelerator,
        tmp_path,
    )
    assert [epoch.lr for epoch in result.history] == pytest.approx([epoch.lr for epoch in usual.history])
    assert result.history[-1].lr > 0


def test_a_branch_cannot_freeze_what_has_trained(
    make: Make, accelerator: Accelerator, tmp_path: Path
) -> None:
    """Its features are stored as they were before."""
    later = "[{epochs: 4, trainable: head}, {epochs: 1, trainable: last:1}]"
    with pytest.raises(
        UserError, match=r"has trained features.18 by epoch 2, but stage 1 of train.stages trains only"
    ):
        branch(staged(make), staged(make, "--train.stages", later), 2 * STEPS + 1, accelerator, tmp_path)


def test_equal_stages_need_their_features_once(make: Make, accelerator: Accelerator) -> None:
    stages = "[{epochs: 2, trainable: head, lr: 0.01}, {epochs: 3, trainable: head, lr: 0.001}]"
    setup = prepare(make("--train.stages", stages, "--train.epochs", "5"), accelerator, QUIET)
    usual = prepare(make("--train.epochs", "5"), accelerator, QUIET)
    ((_, wanted),) = setup.required_features
    ((_, expected),) = usual.required_features
    assert sorted(wanted) == sorted(expected)
    assert setup.reserve_space() == usual.reserve_space()


def test_space_is_reserved_for_the_features_of_all_stages(make: Make, accelerator: Accelerator) -> None:
    setup = prepare(staged(make), accelerator, QUIET)
    missing = setup.reserve_space()
    parts = [features.missing(wanted) for features, wanted in setup.required_features]
    assert missing.bytes == sum(each.bytes for each in parts)
    assert all(each.features for each in parts)
    assert missing.images == 2 * TRAIN + VAL + TEST, (
        "those of the last stage, from which the others are computed"
    )


def test_a_loss_that_is_not_finite_names_the_rate_of_the_stage(
    make: Make, accelerator: Accelerator, tmp_path: Path
) -> None:
    stages = "[{epochs: 1, trainable: head, lr: 1.0e+30}, {epochs: 1, trainable: last:1}]"
    experiment = make("--train.stages", stages, "--train.epochs", "2", "--optim.name", "sgd")
    with pytest.raises(DivergedError, match=r"lower lr of stage 1 in train.stages \(1e\+30\)"):
        run.train(experiment, accelerator, Recorder(tmp_path), QUIET)
