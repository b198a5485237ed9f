"""Arguments that several commands share."""

from __future__ import annotations

import pytest

from runner.cli import evaluate, reproduce
from runner.cli.options import moved_images


@pytest.mark.parametrize("command", [evaluate, reproduce])
def test_images_may_have_moved(command: object) -> None:
    parse = command.parse  # type: ignore[attr-defined]
    assert moved_images(parse(["latest"])) == {}
    words = ["latest", "--data.root", "photos", "--data.test", "tests", "--data.table", "labels.csv"]
    moved = {"data.root": "photos", "data.test": "tests", "data.table": "labels.csv"}
    assert moved_images(parse(words)) == moved


@pytest.mark.parametrize("command", [evaluate, reproduce])
def test_help_says_what_latest_leaves_out(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parse(["--help"])  # type: ignore[attr-defined]
    printed = " ".join(capsys.readouterr().out.split())
    assert "of no study, --repeat or cross-validation (--split.folds)" in printed
