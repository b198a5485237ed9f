"""Fits tables into the columns of a terminal without cutting anything off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

GAP = 2
"""Columns between two cells."""
MIN_NAMES = 12
"""The first cells of rows may take this many columns, or a third of the terminal, before their words are folded."""
MAX_FIGURE = 20
"""Columns of the longest figure, such as 0.9300 ± 0.0040. What is longer is text, which may be wrapped."""


def fit_table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[Table]:
    """A table as one table or several of at most `width` columns, each with the first column.

    Headers and text are wrapped before the table is divided. Figures are not, unless the first column leaves no room.

    Args:
        header: Names of the columns.
        rows: Cells. Those of the first column are text, the others mostly figures.
        width: Columns of the terminal.
    """
    columns = list(zip(header, *rows, strict=True))
    widest = [max(map(cell_len, cells)) for cells in columns]
    names = min(_longest_word(columns[0]), max(MIN_NAMES, width // 3))
    least = [names]
    for name, *cells in columns[1:]:
        figures = [cell_len(cell) for cell in cells if cell_len(cell) <= MAX_FIGURE]
        needed = max(_longest_word([name, *cells]), *figures, 1)
        least.append(max(1, min(needed, width - names - GAP)))
    for part in _parts(least, width):
        widths = {index: least[index] for index in part}
        free = width - sum(widths.values()) - GAP * (len(part) - 1)
        for index in part:
            more = min(free, widest[index] - widths[index])
            widths[index] += more
            free -= more
        yield _table(header, rows, widths)


def _parts(least: Sequence[int], width: int) -> Iterator[list[int]]:
    """Indices of the columns of each table, given the least width of each column."""
    part, used = [0], least[0]
    for index in range(1, len(least)):
        if len(part) > 1 and used + GAP + least[index] > width:
            yield part
            part, used = [0], least[0]
        part.append(index)
        used += GAP + least[index]
    yield part


def _longest_word(cells: Iterable[str]) -> int:
    return max((cell_len(word) for cell in cells for word in cell.split()), default=0)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], widths: dict[int, int]) -> Table:
    """The columns whose widths are given."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, GAP - 1, 0, 0),  # and one for the line between columns
    )
    for index, width in widths.items():
        column = table.add_column
        column(Text(header[index]), justify="right" if index else "left", width=width, overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[index]) for index in widths))
    return table
