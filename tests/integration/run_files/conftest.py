"""The verbs in this process, and a store that files of runs go to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from stores import (
    copy_store,
)

from runner.cli import main

Command = Callable[..., str]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """`command(root, "runs", …)`: the standard output of a verb that succeeds, its lines joined."""

    def run(root: Path, *words: object) -> str:
        capfd.readouterr()
        code = main.main([*map(str, words), "--tracking.root", str(root)])
        captured = capfd.readouterr()
        assert code == 0, captured.err
        return " ".join(captured.out.split())

    return run


@pytest.fixture
def other(mlflow_template: Path, tmp_path: Path) -> Path:
    """An empty store of another machine."""
    return copy_store(mlflow_template, tmp_path / "other" / "mlruns")
