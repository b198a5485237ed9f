"""`runner bench results`: the table that it makes, what it runs, and what it refuses. No run is made here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.support import results_table
from benchmarks.support.results_table import (
    Measurement,
    Protocol,
    Published,
    Row,
    read_protocols,
    read_recorded,
    to_markdown,
    verdict,
    write_results,
)
from runner.config.parser import parse
from runner.utils.errors import UserError

GOOD = Row(
    "good",
    "a good head",
    101,
    "train --config caltech101 --data.root DATA --repeat 5",
    {"top1": (90.0, 92.0)},
)
BAD = Row("bad", "a bad head", 101, "train --config caltech101 --data.root DATA", {"top1": (95.0, 96.0)})
LONG = Row("long", "a slow head", 101, "train --config caltech101", {"top1": (70.0, 72.0)}, "it takes hours")
OTHERS = Published("others", "a paper", "second-hand", 102, recall="91.8 ± 1.0")
TABLE = [Protocol("half of the images", (OTHERS,), (GOOD, BAD, LONG))]
ALL_ROWS = {row.name: row for protocol in read_protocols() for row in protocol.ours}


def measured(row: Row, top1: float = 91.0, date: str = "2026-02-01") -> Measurement:
    figures = {"top1": (top1, 0.25), "top5": (99.0, 0.1), "balanced_accuracy": (88.0, 0.5)}
    return Measurement(row.command, date, "2 CPU cores", 5, 90.0, figures, 467, 61.5)


def line_of(document: str, start: str) -> str:
    (line,) = [line for line in document.splitlines() if line.startswith(start)]
    return line


def test_the_table_has_published_figures_beside_ours() -> None:
    document = to_markdown(TABLE, {"good": measured(GOOD)})
    assert line_of(document, "| others") == "| others | 102 | | | 91.8 ± 1.0 | a paper, *second-hand* |"
    own = "| **a good head** | 101 | **91.0 ± 0.2** | **99.0 ± 0.1** | **88.0 ± 0.5** | `good` |"
    assert line_of(document, "| **a good head**") == own
    assert "`bad`, not run yet" in line_of(document, "| **a bad head**")
    assert line_of(document, "./launch.sh train --config caltech101 --data.root DATA --repeat 5")


def test_each_row_has_its_range_its_last_run_and_a_verdict() -> None:
    document = to_markdown(TABLE, {"good": measured(GOOD), "bad": measured(BAD)})
    assert line_of(document, "| `good`") == (
        "| `good` | top-1 90 to 92 | top-1 91.00 ± 0.25 | within | 2026-02-01, 2 CPU cores, 5 runs in 1:30,"
        " 467 passes of images in 1:02 |"
    )
    assert "| **out of range** |" in line_of(document, "| `bad`")
    assert "| not run yet | it takes hours |" in line_of(document, "| `long`")


def test_a_figure_of_another_command_is_not_judged() -> None:
    changed = dataclasses.replace(GOOD, command="train --config caltech101 --repeat 3")
    assert verdict(GOOD, measured(GOOD)) == "within"
    assert verdict(changed, measured(GOOD)) == "the command has changed since"


def test_rows_are_run_recorded_and_judged() -> None:
    written: list[dict[str, Measurement]] = []
    outcome = results.run_rows(
        [GOOD, BAD], measured, lambda known: written.append(dict(known)), {"long": measured(LONG, 71)}
    )
    assert [sorted(known) for known in written] == [["good", "long"], ["bad", "good", "long"]]
    assert outcome["out_of_range"] == ["bad"]
    assert outcome["failed"] == []
    assert outcome["rows"]["good"]["top1"] == (91.0, 0.25)


def test_a_run_that_fails_is_named_and_keeps_the_figure_before(capsys: pytest.CaptureFixture[str]) -> None:
    def run(row: Row) -> Measurement:
        if row is BAD:
            raise results.FailedRunError("exit status 2: no space left")
        return measured(row)

    known: dict[str, Measurement] = {}
    before = measured(BAD, 95.5, "2025-12-31")
    outcome = results.run_rows([BAD, GOOD], run, known.update, {"bad": before})
    assert outcome["failed"] == ["bad"]
    assert known["bad"] == before
    assert "bad: FAILED: exit status 2: no space left" in capsys.readouterr().out


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    recorded = {"good": measured(GOOD), "bad": measured(BAD)}
    figures, document = tmp_path / "results.json", tmp_path / "results.md"
    write_results(TABLE, recorded, figures, document)
    assert read_recorded(figures) == recorded
    assert document.read_text(encoding="utf-8") == to_markdown(TABLE, recorded)
    assert read_recorded(tmp_path / "none.json") == {}


def test_rows_that_take_hours_are_run_by_name_only() -> None:
    assert results.chosen_rows(TABLE, None) == [GOOD, BAD]
    assert results.chosen_rows(TABLE, ["long"]) == [LONG]
    with pytest.raises(
        UserError, match=r"no row 'god' \(did you mean 'good'\?\); --only takes good, bad, long"
    ):
        results.chosen_rows(TABLE, ["god"])


# The command


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command with the table above writes into this folder."""

    def write(protocols: list[Protocol], recorded: Mapping[str, Measurement]) -> None:
        write_results(protocols, recorded, tmp_path / "results.json", tmp_path / "results.md")

    monkeypatch.setattr(results, "read_protocols", lambda: TABLE)
    monkeypatch.setattr(results, "read_recorded", dict)
    monkeypatch.setattr(results, "write_results", write)
    return tmp_path


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of images; weights are not looked for."""
    (tmp_path / "data" / "caltech101" / "101_ObjectCategories").mkdir(parents=True)
    monkeypatch.setattr(results, "check_weights", lambda _model: None)
    return str(tmp_path / "data")


@pytest.mark.parametrize(("only", "status"), [("good", 0), ("bad", 1)])
def test_the_exit_status_says_whether_all_rows_are_within(
    files: Path,
    data: str,
    only: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands = []

    def run(row: Row, words: list[str], _folder: Path) -> Measurement:
        commands.append(words)
        return measured(row)

    monkeypatch.setattr(results, "run_row", run)
    assert results.main(["--data", data, "--only", only]) == status
    (words,) = commands
    assert words[:5] == ["train", "--config", "caltech101", "--data.root", data]
    outcome = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert outcome["out_of_range"] == (["bad"] if status else [])
    assert only in (files / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "The row good needs real data: give --data DATA, the folder that holds caltech101/."),
        (["--data", "nowhere"], "There is no Caltech-101 at nowhere/caltech101/101_ObjectCategories"),
        (["--only", "nothing"], "There is no row 'nothing'"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(
    files: Path, words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "check_weights", lambda _model: None)
    with pytest.raises(UserError) as refused:
        results.main(words)
    assert str(refused.value).startswith(sentence)
    assert not (files / "results.md").exists()


def test_the_document_is_written_without_runs(files: Path) -> None:
    assert results.main(["--no-runs"]) == 0
    assert "not run yet" in (files / "results.md").read_text(encoding="utf-8")


# The repository's own table


def test_the_document_is_up_to_date() -> None:
    document = results_table.DOCUMENT.read_text(encoding="utf-8")
    assert document == to_markdown(read_protocols(), read_recorded()), "run bench results --no-runs"


def test_figures_belong_to_rows() -> None:
    assert read_recorded().keys() <= ALL_ROWS.keys()


@pytest.mark.parametrize("row", ALL_ROWS.values(), ids=lambda row: row.name)
def test_each_row_is_a_command_with_a_range(row: Row) -> None:
    verb, *words = row.words({"DATA": "somewhere", "FILE": "some.safetensors"})
    assert verb == "train"
    experiment, _ = parse([*words, *results.EXTRA])
    assert experiment.data.root == "somewhere"
    assert experiment.data.background == (row.classes == 102)
    assert row.expect.keys() <= results_table.FIGURES.keys()
    assert all(0 < low < high <= 100 for low, high in row.expect.values())
