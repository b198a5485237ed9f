"""What a person sees: a live bar on a terminal, plain lines in logs and CI, nothing on ranks beyond the first."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from runner.utils.redaction import redacted

PLAIN_INTERVAL = 10.0
"""Seconds between two lines of progress where there is no terminal."""
RECENT = 50
"""Reports of progress that the rate of such a line is taken over."""


def duration(seconds: float) -> str:
    """`75` → `1:15`; `4000` → `1:06:40`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def size(count: float) -> str:
    """Bytes for a person: `1536` → `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class RateColumn(ProgressColumn):
    """Units a second since the task began."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f} {self.unit}/s" if speed else "", style="progress.data.speed")


class Terminal:
    """Where a command says what it does.

    Args:
        speaks: False on ranks beyond the first: they say nothing.
        errors: Speak on standard error, for commands whose standard output is data.
    """

    def __init__(self, speaks: bool = True, errors: bool = False) -> None:
        self.console = Console(stderr=errors, quiet=not speaks, highlight=False)
        if not self.console.is_terminal:
            self.console = Console(stderr=errors, quiet=not speaks, highlight=False, width=120)
        self._bars: Progress | None = None

    def line(self, text: str = "", style: str | None = None) -> None:
        """One line, not wrapped; `text` is taken as it is, without markup, but for passwords in it."""
        self.console.print(Text(redacted(text), style=style or ""), soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line that should not be missed."""
        self.line(f"note: {text}", style="yellow")

    def facts(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """A titled list of names and values."""
        table = Table(
            title=Text(title), title_justify="left", title_style="bold", show_header=False, box=None
        )
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        self.console.print(table)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table whose first column is text and whose others are numbers."""
        table = Table(title=Text(title), title_justify="left", title_style="bold")
        for number, name in enumerate(header):
            table.add_column(Text(name), justify="right" if number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        self.console.print(table)

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Yield a function that is told how many more units are done."""
        if self.console.is_terminal and not self.console.quiet:
            with self._live(unit) as bar:
                task = bar.add_task(what, total=total)
                try:
                    yield lambda count: bar.advance(task, count)
                finally:
                    bar.remove_task(task)
        else:
            yield self._plain_progress(what, total, unit)

    @contextmanager
    def _live(self, unit: str) -> Iterator[Progress]:
        """The one display of all bars: a terminal has room for one, and bars nest."""
        if self._bars is not None:
            yield self._bars
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            RateColumn(unit),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as self._bars:
            try:
                yield self._bars
            finally:
                self._bars = None

    def _plain_progress(self, what: str, total: int, unit: str) -> Callable[[int], None]:
        said = time.monotonic()
        recent: deque[tuple[float, int]] = deque(maxlen=RECENT)
        done = 0

        def advance(count: int) -> None:
            nonlocal done, said
            done += count
            now = time.monotonic()
            recent.append((now, done))
            first, had = recent[0]
            if now - said >= PLAIN_INTERVAL and done < total and now > first:
                said = now
                rate = (done - had) / (now - first)
                left = duration((total - done) / rate)
                self.line(f"{what}: {done:,}/{total:,} {unit}, {rate:,.1f} {unit}/s, {left} left")

        return advance
