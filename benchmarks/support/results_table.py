"""The table of results: published figures, rows of our own, what their runs gave, and docs/results.md made of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.support.processes import ROOT
from runner.evaluation.metrics import METRICS
from runner.utils.atomic_files import write_text
from runner.utils.console import format_duration
from runner.utils.safe_yaml import read_yaml

ROWS = ROOT / "benchmarks" / "results.yaml"
RECORDED = ROOT / "benchmarks" / "results.json"
DOCUMENT = ROOT / "docs" / "results.md"
FIGURES = {"top1": "top-1 %", "top5": "top-5 %", "balanced_accuracy": "mean class recall %"}
"""Metrics that are compared, and the titles of their columns."""
KNOWN = {"checked": "", "second-hand": ", *second-hand*", "unchecked": ", *not checked*"}
"""What is said of the source of a published figure."""
PLACES = ("DATA", "FILE")
"""Words of a command that stand for the folder of the images, and for the file of VGG16's weights."""
INTRODUCTION = """\
# Results

Figures that are published for Caltech-101, and ours in the same protocols. `./launch.sh bench results` makes this page
from `benchmarks/results.yaml` and the runs of our rows; do not edit it.

```bash
./launch.sh bench results --data DATA --weights FILE                        # all rows that take minutes
./launch.sh bench results --data DATA --weights FILE --only solved-50-25-25
```

Our figures (bold) are of the best checkpoint: mean ± sd of several splits or training seeds. No penalty, temperature or
epoch was chosen by the test images of its split. The solved recipe itself (whole images, two scales, square roots,
pyramid) was found in trials on this data set that looked at test images of other splits, so its figures are slightly
optimistic. The mean class recall is `balanced_accuracy` in the runs. Of published figures, *second-hand* ones are
from another's table, and *not checked* ones were written down without a copy of the source at hand; the others were
read in one. [data.md](data.md#published-protocols) tells how the protocols split the images.
"""
ROWS_TITLE = """
## Our rows

A row is **out of range** if the mean of a figure is not in its expected range. Times are of the whole command, whatever
else the machine did.

| row | expected (%) | measured (%) | | last run |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Published:
    """A figure of others, as it is printed."""

    result: str
    source: str
    known: Literal["checked", "second-hand", "unchecked"]
    classes: int | str = ""
    top1: str = ""
    top5: str = ""
    recall: str = ""


@dataclass(frozen=True)
class Row:
    """A run of ours that is compared with published figures."""

    name: str
    result: str
    classes: int
    command: str
    """Of the runner, with the words of `PLACES`."""
    expect: Mapping[str, Sequence[float]]
    """Lowest and highest mean of a metric, in percent."""
    by_name: str = ""
    """Why it runs only if it is asked for by name."""

    def words(self, places: Mapping[str, str]) -> list[str]:
        """The command, with what `PLACES` stand for."""
        return [places.get(word, word) for word in shlex.split(self.command)]

    @property
    def needs(self) -> list[str]:
        """The words of `PLACES` in its command."""
        return [word for word in PLACES if word in shlex.split(self.command)]


@dataclass(frozen=True)
class Protocol:
    """Figures that may be compared: they are of the same protocol."""

    protocol: str
    published: tuple[Published, ...]
    ours: tuple[Row, ...]


@dataclass(frozen=True)
class Measurement:
    """What the run of a row gave."""

    command: str
    date: str
    machine: str
    runs: int
    seconds: float
    figures: Mapping[str, tuple[float, float]]
    """Mean and standard deviation of each metric, in percent."""
    computed: int
    """Images whose features were computed; the others were kept."""
    feature_seconds: float
    """Seconds that this took."""

    def outside(self, row: Row) -> list[str]:
        """The metrics whose mean is not in the row's range."""
        return [name for name, (low, high) in row.expect.items() if not low <= self.figures[name][0] <= high]


def read_protocols(path: Path = ROWS) -> list[Protocol]:
    """The protocols with their published figures and our rows."""
    return [
        Protocol(
            each["protocol"],
            tuple(Published(**figure) for figure in each["published"]),
            tuple(Row(name, **row) for name, row in each["ours"].items()),
        )
        for each in read_yaml(path)
    ]


def read_recorded(path: Path = RECORDED) -> dict[str, Measurement]:
    """What earlier runs gave, by the name of the row."""
    if not path.exists():
        return {}
    content: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: Measurement(
            **{**values, "figures": {metric: tuple(pair) for metric, pair in values["figures"].items()}}
        )
        for name, values in content.items()
    }


def write_results(
    protocols: Sequence[Protocol],
    recorded: Mapping[str, Measurement],
    figures: Path = RECORDED,
    document: Path = DOCUMENT,
) -> None:
    """Write the recorded figures, and the document."""
    plain = {name: asdict(measurement) for name, measurement in recorded.items()}
    write_text(figures, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")
    write_text(document, to_markdown(protocols, recorded))


def to_markdown(protocols: Sequence[Protocol], recorded: Mapping[str, Measurement]) -> str:
    """The document."""
    head = ["", "classes", *FIGURES.values(), "source"]
    lines = [_cells(head), _cells(["---"] * len(head))]
    for each in protocols:
        lines.append(_cells([f"**{each.protocol}**", *[""] * (len(head) - 1)]))
        lines += [_published_line(figure) for figure in each.published]
        lines += [_own_line(row, recorded.get(row.name)) for row in each.ours]
    rows = [row for each in protocols for row in each.ours]
    table = [_cells(_verdict_cells(row, recorded.get(row.name))) for row in rows]
    commands = ["", "```bash", *(line for row in rows for line in _command_lines(row)), "```", ""]
    return "\n".join([INTRODUCTION, *lines, ROWS_TITLE + "\n".join(table), *commands])


def _published_line(figure: Published) -> str:
    values = [figure.top1, figure.top5, figure.recall]
    return _cells([figure.result, str(figure.classes), *values, figure.source + KNOWN[figure.known]])


def _own_line(row: Row, measured: Measurement | None) -> str:
    values = [f"**{_figure(measured, metric)}**" if measured else "" for metric in FIGURES]
    source = f"`{row.name}`" + ("" if measured else ", not run yet")
    return _cells([f"**{row.result}**", str(row.classes), *values, source])


def _figure(measured: Measurement, metric: str) -> str:
    mean, sd = measured.figures[metric]
    return f"{mean:.1f} ± {sd:.1f}" if measured.runs > 1 else f"{mean:.2f}"


def _verdict_cells(row: Row, measured: Measurement | None) -> list[str]:
    expected = "; ".join(
        f"{METRICS[name].label} {low:g} to {high:g}" for name, (low, high) in row.expect.items()
    )
    if measured is None:
        return [f"`{row.name}`", expected, "", "not run yet", row.by_name]
    figures = "; ".join(
        f"{METRICS[name].label} {mean:.2f}" + f" ± {sd:.2f}" * (measured.runs > 1)
        for name, (mean, sd) in measured.figures.items()
        if name in row.expect
    )
    return [f"`{row.name}`", expected, figures, verdict(row, measured), describe(measured)]


def verdict(row: Row, measured: Measurement) -> str:
    """Whether a row is within its range."""
    if measured.command != row.command:
        return "the command has changed since"
    return "**out of range**" if measured.outside(row) else "within"


def describe(measured: Measurement) -> str:
    """When and where a row was run, and how long it took."""
    runs = f"{measured.runs} run{'s' * (measured.runs != 1)} in {format_duration(measured.seconds)}"
    features = "features kept"
    if measured.computed:
        features = f"{measured.computed:,} passes of images in {format_duration(measured.feature_seconds)}"
    return ", ".join([measured.date, measured.machine, runs, features])


def _command_lines(row: Row) -> Iterator[str]:
    yield f"# {row.name}" + f": {row.by_name}" * bool(row.by_name)
    yield f"./launch.sh {row.command}"


def _cells(values: Sequence[str]) -> str:
    return " ".join(["|", *(f"{value} |".lstrip() for value in values)])
