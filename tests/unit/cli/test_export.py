"""`runner export`: the file it writes, and when it writes none. What the file computes: tests/unit/serving."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from loaded import loaded_model

from runner.cli import main
from runner.serving import onnx

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`export("--onnx", path)`: status, standard output and standard error of the command."""
    monkeypatch.setattr("runner.cli.export.load_model", lambda *_: loaded_model())
    monkeypatch.setattr(onnx, "missing_packages", list)

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main.main(["export", *map(str, words)])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run


def test_the_file_is_written_and_described(
    export: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "export_onnx", lambda _, path: path.write_bytes(b"content"))
    monkeypatch.setattr(onnx, "compare_onnx", lambda *_: 1e-6)
    path = tmp_path / "new folder" / "model.onnx"
    status, out, err = export("--onnx", path)
    assert (status, err) == (0, "")
    assert path.read_bytes() == b"content"
    assert f"{path} (" in out
    assert "n × 3 × 32 × 32" in out


def test_a_file_that_disagrees_with_the_model_is_not_left_behind(
    export: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disagree(*_: object) -> float:
        raise RuntimeError("the ONNX file disagrees with the model")

    monkeypatch.setattr(onnx, "export_onnx", lambda _, path: path.write_bytes(b"content"))
    monkeypatch.setattr(onnx, "compare_onnx", disagree)
    status, _, err = export("--onnx", tmp_path / "model.onnx")
    assert status == 1
    assert "disagrees" in err
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(export: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert onnx.missing_packages() == list(onnx.REQUIREMENTS)
    status, _, err = export("--onnx", tmp_path / "model.onnx")
    assert status == 2
    assert "pip install -e '.[onnx]'" in err


def test_a_folder_in_place_of_a_file_is_refused(export: Command, tmp_path: Path) -> None:
    status, _, err = export("--onnx", tmp_path)
    assert status == 2
    assert f"{tmp_path} is a folder" in err
