"""The tables of all verbs fit terminals of 79 and 120 columns, and no figure in them is cut off or wrapped."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from compared_runs import compared_run
from sample_predictions import random_predictions
from studies import make_plan, work

from runner.cli import compare, evaluate, reproduce, store
from runner.cli.main import VERBS, usage
from runner.evaluation.comparison.comparison import Comparison, PairedTest, metric_rows
from runner.evaluation.metrics import METRICS, Scores
from runner.evaluation.reproduction import Difference, Verdict
from runner.evaluation.significance import ClassDifference, McNemarResult
from runner.features.eviction import StoreInfo
from runner.study.live_view import LiveView
from runner.study.study import Study
from runner.training.results import EpochResult, RunResult
from runner.training.spread import Results
from runner.training.summary import print_result, print_spread
from runner.utils.console import Terminal

SCORES = Scores(dict.fromkeys(METRICS, 0.1234), 123_456, 12_345, 99_999, 101)
EPOCH = EpochResult(12_345, 1.0, 0.5, SCORES, 1e-3, 1.0, 1.0, True, False)


def print_training(terminal: Terminal) -> None:
    result = RunResult((EPOCH,), SCORES, SCORES)
    print_result(result, terminal)
    print_spread(Results([result, result]), "2 splits, each with another training seed", terminal)


def print_evaluation(terminal: Terminal) -> None:
    predictions = random_predictions(60, 101)
    evaluations = [
        SimpleNamespace(checkpoint=name, epoch=12_345, predictions=predictions) for name in ("best", "last")
    ]
    run = SimpleNamespace(run_id="0123456789abcdef", name="a long name of a run " * 5)
    options = argparse.Namespace(json=False, split="test")
    evaluate._print_scores(run, options, evaluations, 1, terminal)  # type: ignore[arg-type]


def print_comparison(terminal: Terminal) -> None:
    names = {
        f"{part}/{which}/{name}": 0.1234
        for part in ("val", "test")
        for which in ("best", "last")
        for name in METRICS
    }
    runs = [
        compared_run(
            f"{number:08}abcdef",
            name=f"run {number}",
            settings={"model.weights": f"/data/{'deep/' * 9}{number}.pth", "optim.lr": f"0.{number:06}1"},
            metrics={name: value + number for name, value in names.items()},
        )
        for number in range(6)
    ]
    result = McNemarResult(12_345, 12, 1_234, 2_345, (ClassDifference("a long name " * 3, 12, 34),))
    tests = [PairedTest(run, result, p=0.0123) for run in runs[1:]]
    for count in (2, 6):
        some = runs[:count]
        compare.print_comparison(
            Comparison("title", some, metric_rows(some), tests[: count - 1], []), terminal
        )


def print_reproduction(terminal: Terminal) -> None:
    verdict = Verdict(
        99, tuple(Difference("val/balanced_accuracy", step, 0.123456789, 0.234567891) for step in range(3))
    )
    original = SimpleNamespace(
        client=SimpleNamespace(get_run=lambda _: SimpleNamespace(data=SimpleNamespace(metrics={}))),
        run=SimpleNamespace(run_id="0123456789", name="name"),
    )
    reproduce._print_verdict(original, SimpleNamespace(run_id="1"), verdict, terminal)  # type: ignore[arg-type]


def print_stores(terminal: Terminal) -> None:
    description = {
        "layer": "features.30 (avg 3×3)",
        "view": "288 px, crop 256, bilinear, augmented",
        "computed": "torch 2.15, bfloat16, compiled",
    }
    stores = [StoreInfo(Path("/cache/0123456789"), description, 12_345_678_901, time.time() - 4000)]
    store._print_table(stores, Path.cwd())


PRINTED: dict[str, tuple[Callable[[Terminal], None], tuple[str, ...]]] = {
    "train": (print_training, ("12345", "123,456", "0.1234", "0.1234 ± 0.0000")),
    "evaluate": (print_evaluation, ("12,345", "60", "top-5")),
    "compare": (print_comparison, ("* 5.1234", "+1.0000", "12,345", "+8.06 to", "0.012", "+22")),
    "reproduce": (print_reproduction, ("0.123456789", "0.234567891", "+1.11e-01")),
    "store": (print_stores, ("11.5 GiB", "1:06:40 ago")),
}


@pytest.mark.parametrize("width", [79, 120])
@pytest.mark.parametrize("verb", PRINTED)
def test_tables_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_tables, figures = PRINTED[verb]
    terminal = Terminal()
    sentences: list[str] = []
    monkeypatch.setattr(terminal, "line", lambda text, style=None: sentences.append(text))
    print_tables(terminal)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for figure in figures:
        assert figure in text


@pytest.mark.parametrize("width", [79, 120])
def test_the_live_table_of_a_study_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    study = Study(make_plan(tmp_path / "journal"), tmp_path)
    work(study, 3)
    running = study.ask()
    assert running is not None
    study.fail("the images of a batch could not be read because of a reason that takes many words " * 2)
    terminal = Terminal()
    terminal.console.print(LiveView(study, terminal)._table(study.trials()))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    best = study.best_trial
    assert best is not None
    assert f"{best.value:.4f}" in text
    assert "optim.lr" in text or "lr" in text


@pytest.mark.parametrize("width", [79, 80, 120])
def test_the_usage_fits(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = usage().splitlines()
    assert max(map(len, lines)) <= width
    assert all(any(line.startswith(f"  {verb} ") for line in lines) for verb in VERBS)
