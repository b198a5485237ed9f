"""The figures of solved heads in `runner bench heads`, on small features."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.support import solved_heads


def test_each_solution_has_its_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("TRAIN", 60), ("VAL", 30), ("TEST", 30), ("LEVELS", (20, 80)), ("CLASSES", 5)):
        monkeypatch.setattr(solved_heads, name, value)
    figures = solved_heads.measure_solutions([], tmp_path)
    names = ("solve", "solve_splits", "solve_trial")
    assert [*figures] == [f"{name}_{what}" for name in names for what in ("seconds", "cpu_seconds")]
