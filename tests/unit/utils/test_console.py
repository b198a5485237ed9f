"""Lines, tables and progress on a terminal or in a log."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from runner.utils import console
from runner.utils.console import Terminal, format_bytes, format_duration

MARKUP = "/data/[red]x[/red]/[/]"


def test_progress_is_plain_lines_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0)
    with Terminal().progress("verify", 3000, "files") as advance:
        for _ in range(6):
            time.sleep(0.01)
            advance(500)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 3
    for line in lines:
        assert re.fullmatch(r"verify: [\d,]+/3,000 files(, [\d,.]+ files/s, \d+:\d\d left)?", line)
    assert lines[0].endswith("files"), "there is no rate yet"
    assert all(line.endswith(" left") for line in lines[1:])
    counts = [int(line.split()[1].split("/")[0].replace(",", "")) for line in lines]
    assert counts == sorted(set(counts))
    assert counts[-1] == 2500, "there is no line at the end"


@pytest.mark.parametrize("resumed", [0, 600])
def test_the_first_epoch_does_not_count_for_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], resumed: int
) -> None:
    """Ten seconds a batch where features are computed, then a tenth of one, but for the first batch of an epoch."""
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with Terminal().progress("train", 2000 + resumed, period=200) as advance:
        if resumed:
            advance(resumed)
        for batch in range(20):
            now += 10 if batch < 2 else 20 if batch % 2 == 0 else 0.1
            advance(100)
    lines = capsys.readouterr().out.splitlines()
    unknown = [line for line in lines if not line.endswith(" left")]
    assert unknown == lines[: len(unknown)]
    assert 2 <= len(unknown) <= 3
    left = [line.rpartition(", ")[2] for line in lines[len(unknown) :]]
    assert left[-1] in ("0:10 left", "0:11 left")


def test_steps_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def show(terminal: Terminal) -> str:
        with terminal.steps("solve", 3) as begin:
            for name in ("products", "penalties", "refit"):
                begin(name)
        return capsys.readouterr().out

    assert show(Terminal()) == "solve: products (step 1 of 3)\n", "the others follow within seconds"
    assert show(Terminal(enabled=False)) == ""
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0)
    assert show(Terminal()).splitlines()[1:] == [
        "solve: penalties (step 2 of 3)",
        "solve: refit (step 3 of 3)",
    ]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    assert "solve: products" in show(Terminal())


def test_progress_prints_a_line_only_once_per_interval(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().progress("verify", 100) as advance:
        for _ in range(100):
            advance(1)
    assert capsys.readouterr().out == ""


def test_a_disabled_terminal_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0)
    disabled = Terminal(enabled=False)
    disabled.line("hello")
    disabled.warn("hello")
    disabled.key_values("hello", [("a", "b")])
    disabled.table("hello", ("a", "b"), [("c", "d")])
    with disabled.progress("hello", 10) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_can_print_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(stderr=True).line("hello")
    assert capsys.readouterr() == ("", "hello\n")


@pytest.mark.parametrize(
    "print_on",
    [
        lambda terminal: terminal.line(MARKUP),
        lambda terminal: terminal.warn(MARKUP),
        lambda terminal: terminal.key_values("title", [("path", MARKUP)]),
        lambda terminal: terminal.key_values(MARKUP, [("a", "b" * 40)]),
        lambda terminal: terminal.table("title", ("path", "n"), [(MARKUP, "1")]),
        lambda terminal: terminal.table(MARKUP, ("a", "b"), [("c" * 40, "d")]),
    ],
    ids=["line", "note", "value", "title of values", "cell", "title of a table"],
)
def test_markup_is_printed_as_it_is(
    capsys: pytest.CaptureFixture[str], print_on: Callable[[Terminal], None]
) -> None:
    print_on(Terminal())
    assert MARKUP in capsys.readouterr().out


def test_a_long_line_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().line("word " * 100)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("columns", ["0", "000", "-5", "wide", "", "²"])
def test_columns_that_are_no_positive_number_do_not_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    terminal = Terminal()
    terminal.line("a line")
    terminal.key_values("title", [("name", "value")])
    assert terminal.console.width == console.LOG_WIDTH
    assert capsys.readouterr().out.split() == ["a", "line", "title", "name", "value"]
    monkeypatch.setenv("COLUMNS", "50")
    assert Terminal().console.width == 50


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3599, "59:59"), (3600, "1:00:00"), (4000, "1:06:40")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB"), (3 * 2**50, "3072.0 TiB")],
)
def test_sizes(count: float, text: str) -> None:
    assert format_bytes(count) == text
