"""Output for people: progress bars on a terminal, plain lines in logs, nothing except on the main process."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from runner.utils.redaction import redact
from runner.utils.tables import fit_table

LOG_WIDTH = 120
"""Columns where there is no terminal, and COLUMNS does not say how many."""
PLAIN_INTERVAL = 10.0
"""Seconds between two progress lines when there is no terminal."""
RATE_WINDOW = 50
"""Progress updates that the rate in such a line is averaged over, at least."""


def format_duration(seconds: float) -> str:
    """`75` → `1:15`; `4000` → `1:06:40`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def format_bytes(count: float) -> str:
    """`1536` → `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def recent_rate(recent: Sequence[tuple[float, int]]) -> float | None:
    """Units per second between the first and the last of some (time, units done); None if that is not known yet."""
    if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
        return None
    return (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])


class RateColumn(ProgressColumn):
    """Units per second since the task began."""

    def __init__(self, unit: str) -> None:
        super().__init__(Column(no_wrap=True))
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f} {self.unit}/s" if speed else "", style="progress.data.speed")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # rich would exit with status 1, even from a training


class Terminal:
    """Prints what a command does.

    Args:
        enabled: False prints nothing, for all processes but the main one.
        stderr: Print on standard error, for commands whose standard output is data.
    """

    def __init__(self, enabled: bool = True, stderr: bool = False) -> None:
        columns = os.environ.get("COLUMNS", "")
        given = columns.isdecimal() and int(columns) > 0
        # rich takes 0 columns as they are, and prints nothing
        environment = {name: value for name, value in os.environ.items() if given or name != "COLUMNS"}
        self.console = _Console(stderr=stderr, quiet=not enabled, highlight=False, _environ=environment)
        if not (self.console.is_terminal or given):
            self.console.width = LOG_WIDTH

    def line(self, text: str = "", style: str | None = None) -> None:
        """Print one line without wrapping it. Markup is not interpreted; passwords are hidden."""
        self.console.print(Text(redact(text), style=style or ""), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a highlighted line."""
        self.line(f"note: {text}", style="yellow")

    def key_values(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Print a titled list of names and values."""
        table = Table(
            title=Text(title), title_justify="left", title_style="bold", show_header=False, box=None
        )
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        self.console.print(table)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table whose first column is text and whose others are numbers, in parts if it is too wide."""
        self.console.print(Text(f"\n{title}", style="bold"))
        for table in fit_table(header, rows, self.console.width):
            self.console.print(table)

    @contextmanager
    def progress(
        self, description: str, total: int, unit: str = "images", period: int = 0
    ) -> Iterator[Callable[[int], None]]:
        """Show progress. Yields a function to call with the number of units just completed.

        Args:
            description: What progresses.
            total: Units of the whole work.
            unit: Their name.
            period: Units after which slow parts recur, as an epoch's images. The first ones take longer than others,
                and tell no rate.
        """
        if not self.console.is_terminal or self.console.quiet:
            yield self._plain_progress(description, total, unit, period)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            RateColumn(unit),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda count: bar.advance(task, count)

    @contextmanager
    def steps(self, description: str, total: int) -> Iterator[Callable[[str], None]]:
        """Show how far a work of several steps is. Yields a function to call with the name of each when it begins."""
        begun, last_line = 0, -math.inf
        is_plain = not self.console.is_terminal or self.console.quiet
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with nullcontext() if is_plain else Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(description, total=total) if bar else TaskID(0)

            def begin(name: str) -> None:
                nonlocal begun, last_line
                begun, now = begun + 1, time.monotonic()
                if bar is not None:
                    bar.update(task, completed=begun - 1, description=f"{description}: {name}", refresh=True)
                elif now - last_line >= PLAIN_INTERVAL:
                    last_line = now
                    self.line(f"{description}: {name} (step {begun} of {total})")

            yield begin

    def _plain_progress(self, description: str, total: int, unit: str, period: int) -> Callable[[int], None]:
        last_line = time.monotonic()
        recent: deque[tuple[float, int]] = deque()
        begin: int | None = None
        done = 0

        def advance(count: int) -> None:
            nonlocal begin, done, last_line
            done += count
            now = time.monotonic()
            begin = done if begin is None else begin  # a resumed training begins with what is done already
            if done >= begin + period:
                recent.append((now, done))
            while len(recent) > RATE_WINDOW and done - recent[1][1] >= period:
                recent.popleft()
            if now - last_line >= PLAIN_INTERVAL and done < total:
                last_line = now
                rate = recent_rate(recent)
                left = (
                    f", {rate:,.1f} {unit}/s, {format_duration((total - done) / rate)} left" if rate else ""
                )
                self.line(f"{description}: {done:,}/{total:,} {unit}{left}")

        return advance
