"""One temporary module adds a data kind, an optimizer, a schedule, a metric and a verb, and a run uses them all."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pictures import write_pictures

from runner.cli.main import VERBS, main
from runner.config.choices import DATASETS, METRIC_NAMES, OPTIMIZERS, SCHEDULES
from runner.config.parser import parse
from runner.evaluation.metrics import METRICS

MODULE = '''
"""All that a user of the project would write to add one of each."""

from pathlib import Path

import torch

from runner.cli.main import VERBS, Verb
from runner.config.choices import DATASETS, OPTIMIZERS, SCHEDULES
from runner.data.datasets import ImageFolder
from runner.evaluation.metrics import PREDICTED, Metric, register
from runner.training.lr_schedule import TorchSchedule


@DATASETS.register("nested", "class folders below images/", uses=["root"])
def nested(data, cache, terminal):
    return ImageFolder(Path(data.root) / "images")


@OPTIMIZERS.register("rmsprop", "RMSprop")
def rmsprop(groups, optim):
    return torch.optim.RMSprop(groups, optim.lr, weight_decay=optim.weight_decay)


@SCHEDULES.register("exponential", "divide by 2 after every step")
def exponential(schedule, optimizer, steps):
    return TorchSchedule(torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5))


def share_of_first_class(results, labels):
    return float((results[:, PREDICTED] == 0).double().mean())


register(Metric("first_class", "share of the first class", "maximize", share_of_first_class))


def count_words(argv):
    print(f"{len(argv)} words")
    return 3


VERBS["count"] = Verb("extensions:count_words", "count words", "WORD…")
'''


@pytest.fixture
def extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "extensions.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("extensions")
    del sys.modules["extensions"]
    DATASETS.remove("nested")
    OPTIMIZERS.remove("rmsprop")
    SCHEDULES.remove("exponential")
    METRIC_NAMES.remove("first_class")
    del METRICS["first_class"], VERBS["count"]


def test_a_run_uses_what_a_module_adds(
    extensions: ModuleType, words: list[str], train: Callable[..., Any], tmp_path: Path
) -> None:
    root = write_pictures(tmp_path / "deep" / "images").parent
    words += [
        "--data.kind",
        "nested",
        "--data.root",
        str(root),
        "--optim.name",
        "rmsprop",
        "--optim.lr",
        "0.01",
    ]
    experiment, _ = parse([*words, "--schedule.kind", "exponential", "--train.best", "first_class"])
    result, tracker = train(experiment)
    steps = [epoch.lr for epoch in result.history]
    assert [before / after for before, after in pairwise(steps)] == [2**3, 2**3], "3 steps an epoch"
    logged = {(name, step): value for name, step, value in tracker.points}
    values = [logged["val/first_class", epoch] for epoch in range(1, len(result.history) + 1)]
    assert values == [epoch.val["first_class"] for epoch in result.history]
    best = max(result.history, key=lambda epoch: (epoch.val["first_class"], -epoch.val["loss"]))
    assert result.best_epoch.number == best.number
    assert ("test/best/first_class", 0) in logged


def test_the_console_script_runs_and_lists_a_verb_that_a_module_adds(
    extensions: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["count", "a", "b"]) == 3
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("2 words\n")
    assert "count words" in output


def test_without_the_module_nothing_of_it_is_left() -> None:
    assert "nested" not in DATASETS.choices
    assert "first_class" not in METRICS
    assert "count" not in VERBS
