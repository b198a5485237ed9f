"""Tables fit the columns of a terminal, and nothing in them is cut off."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from runner.utils.tables import MAX_FIGURE, fit_table

WORDS = st.text(st.sampled_from("abc/._- 犬"), max_size=70)
FIGURES = st.text(st.sampled_from("0123456789.%±−"), max_size=MAX_FIGURE)


def printed(header: list[str], rows: list[list[str]], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=True)
    for table in fit_table(header, rows, width):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    columns = draw(st.integers(1, 9))
    header = [draw(WORDS) for _ in range(columns)]
    rows = [
        [draw(WORDS), *(draw(FIGURES | WORDS) for _ in header[1:])] for _ in range(draw(st.integers(0, 4)))
    ]
    return header, rows


@pytest.mark.parametrize("width", [40, 79, 120])
@given(case=tables())
def test_no_line_is_wider_than_the_terminal_and_nothing_is_lost(
    width: int, case: tuple[list[str], list[list[str]]]
) -> None:
    header, rows = case
    console = Console(width=width)
    text = printed(header, rows, width)
    assert all(console.measure(line, options=None).maximum <= width for line in text.splitlines())
    letters = sorted("".join(text.split()).replace("─", ""))
    expected = sorted("".join("".join([*header, *(cell for row in rows for cell in row)]).split()))
    for letter in set(expected):
        assert letters.count(letter) >= expected.count(letter)


def test_headers_and_names_are_wrapped_before_a_table_is_divided() -> None:
    figures = ["0.9300 ± 0.0040"] * 4
    text = printed(
        ["", "top-1", "top-5", "balanced accuracy", "loss"], [["test, best checkpoint", *figures]], 79
    )
    assert [line.split() for line in text.splitlines()] == [
        ["balanced"],
        ["top-1", "top-5", "accuracy", "loss"],
        ["─" * 79],
        ["test,", "best", *" ".join(figures).split()],
        ["checkpoint"],
    ]


def test_a_table_that_is_too_wide_is_divided_between_columns() -> None:
    header = ["setting", *(f"run{number:05}" for number in range(12))]
    text = printed(header, [["optim.lr", *(f"{number / 1e7:.7f}" for number in range(12))]], 79)
    assert text.count("setting") == text.count("optim.lr") == 2
    for number in range(12):
        assert f"run{number:05}" in text
        assert f"{number / 1e7:.7f}" in text
