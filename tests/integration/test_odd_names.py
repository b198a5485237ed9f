"""Class and file names that are not UTF-8, as zip files from Windows leave them, in all that a run writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Make, Recorder

from runner.models import checkpoint

Train = Callable[..., tuple[Any, Recorder]]


@pytest.mark.slow
def test_a_run_writes_names_in_unicode(
    make: Make, train: Train, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "red").rename(pictures / os.fsdecode(b"caf\xe9"))
    (pictures / "blue" / "00.png").rename(pictures / "blue" / os.fsdecode(b"\xff.png"))
    texts: dict[str, str] = {}
    monkeypatch.setattr(Recorder, "log_text", lambda _, name, content: texts.update({name: content}))
    _, records = train(make("--tracking.gallery", "4"))
    assert r"blue/\xff.png" in texts["manifest.csv"]
    assert r"caf\xe9" in texts["predictions.csv"]
    for text in (*texts.values(), *records.artifacts, *records.tags.values()):
        text.encode()
    for path in records.folder.rglob("*"):
        str(path.relative_to(records.folder)).encode()
    best = checkpoint.load(records.folder / "checkpoints" / "best.safetensors")
    assert best.model.spec.classes == ("blue", r"caf\xe9", "green")
