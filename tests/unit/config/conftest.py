"""Writing experiment files, and the sentences that they are refused with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runner.config.parser import parse
from runner.utils.errors import UserError


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Writes a text to an experiment file, and returns its path."""

    def to_file(text: str) -> str:
        path = tmp_path / "some.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return to_file


@pytest.fixture
def refusal() -> Callable[..., str]:
    """The sentence that a command line is refused with: one line that ends with a period."""

    def of(*words: str) -> str:
        with pytest.raises(UserError) as refused:
            parse(words)
        sentence = str(refused.value)
        assert "\n" not in sentence
        assert sentence.endswith(".")
        assert "Traceback" not in sentence
        assert "Input should" not in sentence  # pydantic's English
        return sentence

    return of
