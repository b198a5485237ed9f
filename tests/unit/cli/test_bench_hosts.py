"""The parts of `bench hosts` that need no hosts: what counts as identical, phases of a training, parts that fail."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hosts import network_of_hosts

from benchmarks import hosts
from benchmarks.support.host_runs import NAME, SETTINGS, RunFolder
from benchmarks.support.host_speeds import EXTRACTION, LOOP
from benchmarks.support.phases import EPOCHS, PHASES, Moment, Timeline, record_timeline
from benchmarks.support.requirements import MissingRequirementError
from benchmarks.support.small_run import arguments
from runner.config.parser import parse
from runner.utils.console import Terminal

OUTPUT = (
    " device           2 × CPU\n",
    "[host1:0]     1   1.3941  0.1979\n",
    f"[host1:0]    {EPOCHS}   1.3789  0.3333\n",
    "[host1:0] Result\n",
)
"""What is printed at the beginning of each phase but the first."""
POINTS = {"val/top1": [(1, 0.25), (2, 0.5)]}


def growing(*parts: str) -> Callable[[], str]:
    """A text that has one more part each time it is read."""
    texts = ["".join(parts[:count]) for count in range(len(parts) + 1)]
    following: Iterator[str] = iter(texts)
    return lambda: next(following, texts[-1])


def test_parts_that_are_impossible_or_fail_have_no_figures(capsys: pytest.CaptureFixture[str]) -> None:
    def lacks() -> dict[str, int]:
        raise MissingRequirementError("hosts need root")

    def fails() -> dict[str, int]:
        raise RuntimeError("the study ended")

    parts = {"failures": lacks, "trials": fails, "scaling": lambda: {"scaling_2_hosts": 1.9}}
    figures, failed = hosts.measure(parts, Terminal())
    assert failed == ["trials"]
    assert {name for name, value in figures.items() if value is not None} == {"scaling_2_hosts"}
    assert figures.keys() == {name for names in hosts.FIGURES.values() for name in names}
    output = capsys.readouterr().out
    assert "failures: not measured: hosts need root" in output
    assert "trials: failed: the study ended" in output


@pytest.mark.parametrize("phase", range(len(PHASES)))
def test_a_moment_is_waited_for_in_the_output(phase: int) -> None:
    text = growing(*OUTPUT)
    seen: list[str] = []

    def read() -> str:
        seen.append(text())
        return seen[-1]

    assert Moment(phase, 0.0).wait(read, lambda: True)
    assert seen[-1] == "".join(OUTPUT[:phase])


def test_a_moment_does_not_come_once_the_training_has_ended() -> None:
    assert not Moment(3, 0.0).wait(lambda: OUTPUT[0], lambda: False)


def test_the_timeline_of_a_training_has_all_phases() -> None:
    running = iter([True] * len(OUTPUT))
    timeline = record_timeline(growing(*OUTPUT), lambda: next(running, False))
    assert len(timeline.lengths) == len(PHASES)
    assert all(length >= 0 for length in timeline.lengths)
    with pytest.raises(RuntimeError, match="did not come to an end"):
        record_timeline(lambda: OUTPUT[0], lambda: False)


def test_consecutive_moments_are_in_all_phases() -> None:
    moments = [Timeline([1.0] * len(PHASES)).moment(number, random.Random(number)) for number in range(10)]
    assert [moment.phase for moment in moments] == [*range(5), *range(5)]
    assert all(0 <= moment.seconds <= 1 for moment in moments)


@pytest.mark.parametrize(
    ("runs", "same", "continued"),
    [
        ([("FINISHED", 0.5)], True, True),
        ([("KILLED", 0.1), ("FINISHED", 0.5)], True, False),
        ([("FINISHED", 0.5), ("FINISHED", 0.5)], True, True),
        ([("FINISHED", 0.5000001)], False, False),
        ([("FINISHED", 0.5), ("FINISHED", 0.4)], False, False),
        ([("RUNNING", 0.5), ("FINISHED", 0.5)], False, False),
        ([("KILLED", 0.5)], False, False),
        ([], False, False),
    ],
)
def test_identical_are_finished_runs_with_the_same_points(
    runs: list[tuple[str, float]], same: bool, continued: bool, tmp_path: Path
) -> None:
    (tmp_path / "mlruns").mkdir()
    with closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")) as database, database:
        database.execute("create table experiments (experiment_id, name)")
        database.execute("create table runs (run_uuid, status, start_time, experiment_id)")
        database.execute("create table metrics (run_uuid, key, step, value)")
        database.execute("insert into experiments values (1, ?)", (NAME,))
        for number, (status, last) in enumerate(runs):
            database.execute("insert into runs values (?, ?, ?, 1)", (number, status, number))
            rows = [("val/top1", 1, 0.25), ("val/top1", 2, last), ("epoch_seconds", 1, number + 0.5)]
            for row in rows:
                database.execute("insert into metrics values (?, ?, ?, ?)", (number, *row))
    assert RunFolder(tmp_path, []).finished_as(POINTS) == same
    assert RunFolder(tmp_path, []).finished_as(POINTS, had_trained=True) == continued


def test_two_networks_at_the_same_time(tmp_path: Path) -> None:
    with network_of_hosts(1, tmp_path / "first") as (first,):
        with network_of_hosts(1, tmp_path / "second") as (second,):
            assert first.address != second.address
            for host in (first, second):
                assert host.run(["hostname"]).stdout == "host1\n"
        assert first.run(["hostname"]).stdout == "host1\n", "the end of another network left it alone"


@pytest.mark.parametrize("settings", [{}, EXTRACTION, LOOP], ids=str)
def test_the_trainings_have_valid_settings(settings: dict[str, str], tmp_path: Path) -> None:
    own = {"data.root": str(tmp_path), **SETTINGS, **settings}
    experiment, _ = parse(arguments(tmp_path, NAME, own))
    assert experiment.train.epochs == int(own["train.epochs"])
