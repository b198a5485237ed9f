"""Text for messages."""

from __future__ import annotations

import pytest

from runner.utils.text import did_you_mean, one_line, valid_unicode


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("train.epoch", "train.epochs"),
        ("lrr", "optim.lr"),
        ("lr", "optim.lr"),
        ("fitt.epochs", "train.epochs"),
    ],
)
def test_the_nearest_name_is_suggested(name: str, suggested: str) -> None:
    assert did_you_mean(name, ["train.epochs", "optim.lr"]) == f" (did you mean {suggested!r}?)"


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert did_you_mean("xyzzy", ["train.epochs", "optim.lr"]) == ""
    assert did_you_mean("x", []) == ""


def test_a_brief_text_is_one_line() -> None:
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line("a\x1b[31mb") == "a�[31mb"
    assert one_line("x" * 30, 10) == "x" * 9 + "…"


def test_any_text_can_be_stored() -> None:
    assert valid_unicode("a café, 类 😀") == "a café, 类 😀"
    assert valid_unicode("caf\udce9") == "caf\\xe9"
    assert valid_unicode("\ud800").encode()
