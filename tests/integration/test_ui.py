"""`runner ui`: what it serves, and what it refuses."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.cli import main

LONG = ("--train.epochs", "100000", "--schedule.kind", "constant")
"""Settings of a run that has to be stopped."""
CURVES = (
    *("train/loss", "train/top1", "val/loss", "val/top1", "val/top5", "val/balanced_accuracy"),
    *("lr", "images_per_second", "epoch_seconds"),
)


# The pages


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that `runner ui` would become."""
    heard: list[list[str]] = []
    monkeypatch.setattr("runner.cli.ui.os.execv", lambda _path, words: heard.append(words))
    monkeypatch.setattr("runner.cli.ui.os.environ", dict(os.environ))
    return heard


def test_pages_without_records_are_refused(
    refused: Callable[..., str], tmp_path: Path, served: list[list[str]]
) -> None:
    sentence = refused(["ui", "--tracking.root", str(tmp_path / "none")])
    assert f"no records in {tmp_path / 'none'}" in sentence
    assert served == []
    assert not (tmp_path / "none").exists()


def test_pages_on_a_taken_port_are_refused(
    refused: Callable[..., str], small: list[str], tmp_path: Path, served: list[list[str]]
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        sentence = refused(["ui", "--port", str(port), "--tracking.root", str(tmp_path / "mlruns")])
    assert f"Port {port} of 127.0.0.1 is taken" in sentence
    assert served == []


@pytest.mark.parametrize("words", [["--port", "99999"], ["--port", "http"], ["--prot", "5001"]], ids=" ".join)
def test_pages_with_bad_words_are_refused(
    refused: Callable[..., str], small: list[str], tmp_path: Path, served: list[list[str]], words: list[str]
) -> None:
    assert words[0] in refused(["ui", *words, "--tracking.root", str(tmp_path / "mlruns")])
    assert served == []


def test_pages_of_a_server_are_refused(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, served: list[list[str]]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example")
    assert "https://tracking.example" in refused(["ui"])
    assert served == []


def test_pages_are_served_on_this_machine_alone(
    small: list[str], tmp_path: Path, served: list[list[str]]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    main.main(["ui", "--port", str(port), "--tracking.root", str(tmp_path / "mlruns")])
    (words,) = served
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--port") + 1] == str(port)
    assert words[words.index("--backend-store-uri") + 1].endswith("mlruns/mlflow.db")
