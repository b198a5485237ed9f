"""Run records are found from any folder below the one that holds them; the cache is where the user wants it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.utils.paths import cache_folder, nearest_records


@pytest.mark.parametrize("content", ["mlflow.db", "journals/"])
def test_records_are_found_upward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    root, below = tmp_path / "mlruns", tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert nearest_records() == "mlruns"
    root.mkdir()
    assert nearest_records() == "mlruns", "an empty folder has no records"
    (root / content).mkdir() if content.endswith("/") else (root / content).touch()
    assert nearest_records() == str(root)
    (below.parent / "mlruns" / "journals").mkdir(parents=True)
    assert nearest_records() == str(below.parent / "mlruns"), "the nearest"
    monkeypatch.chdir(tmp_path)
    assert nearest_records() == "mlruns"


def test_a_working_folder_that_is_gone_has_no_records(tmp_path: Path) -> None:
    here = Path.cwd()
    (tmp_path / "gone").mkdir()
    try:
        os.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        assert nearest_records() == "mlruns"
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("setting", "own", "shared", "expected"),
    [
        ("auto", "", "", "/home/me/.cache/vgg-runner"),
        ("auto", "", "/scratch/cache", "/scratch/cache/vgg-runner"),
        ("auto", "", "relative/is/ignored", "/home/me/.cache/vgg-runner"),
        ("auto", "/fast/runner", "/scratch/cache", "/fast/runner"),
        ("auto", "~/fast", "", "/home/me/fast"),
        ("~/given", "/fast/runner", "/scratch/cache", "/home/me/given"),
    ],
)
def test_the_cache_is_where_the_user_wants_it(
    setting: str, own: str, shared: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HOME", "/home/me"), ("RUNNER_CACHE", own), ("XDG_CACHE_HOME", shared)):
        monkeypatch.setenv(name, value)
    assert cache_folder(setting) == Path(expected)
