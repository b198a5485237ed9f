"""Runs in a store of their own, and `runner compare` in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from compared_runs import IMAGES, predictions_csv
from stores import copy_store

from runner.cli import compare
from runner.evaluation.comparison import page as comparison_page
from runner.tracking.mlflow_server import TrackingServer, tracking_server
from runner.utils.exit_status import run_main

Add = Callable[..., str]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def store(
    mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TrackingServer, Any]]:
    """A store for all tests of this module, and its client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        server = tracking_server(
            str(copy_store(mlflow_template, tmp_path_factory.mktemp("store") / "mlruns"))
        )
        yield server, server.connect()


@pytest.fixture
def add(store: tuple[TrackingServer, Any]) -> Add:
    """`add(name, …)`: the id of a new finished run with settings, curves of some epochs, and predictions."""
    from mlflow.entities import Metric, Param

    server, client = store
    experiment = server.get_or_create_experiment(client, "small")

    def create(
        name: str,
        settings: dict[str, object] | None = None,
        metrics: dict[str, float] | None = None,
        correct: set[int] | None = None,
        images: range = range(IMAGES),
        **run: Any,
    ) -> str:
        run_id: str = client.create_run(experiment, run_name=name, tags=run.get("tags", {})).info.run_id
        points = [
            Metric(curve, value, 1000 + epoch, epoch)
            for epoch in range(1, run.get("epochs", 5) + 1)
            for curve, value in (("val/top1", 1 - 1 / (epoch + 1)), ("val/loss", 2 / epoch), ("lr", 0.1))
        ]
        points += [Metric(name, value, 2000, 0) for name, value in (metrics or {}).items()]
        params = {"optim.lr": 0.001, "train.epochs": 5, "seed.train": 0, **(settings or {})}
        client.log_batch(run_id, points, [Param(name, str(value)) for name, value in params.items()])
        if correct is not None:
            client.log_text(run_id, predictions_csv(correct, images), "predictions.csv")
        client.set_terminated(run_id, run.get("status", "FINISHED"))
        return run_id

    return create


@pytest.fixture
def command(
    store: tuple[TrackingServer, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """`command(words…)`: exit status, standard output and standard error of `runner compare` into `tmp_path`/out.

    The plot is an empty file, unless `drawn` is true: drawing it takes most of the time.
    """
    draw = comparison_page.draw_curves

    def call(*words: str, drawn: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(comparison_page, "draw_curves", draw if drawn else lambda *args: args[-1].touch())
        options = ["--tracking.root", str(store[0].root), *words]
        if "--out" not in words:
            options += ["--out", str(tmp_path / "out")]
        status = run_main(lambda: compare.main(options))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
