"""Studies without training: what is asked, told, lost, tried again and refused, by one process and by several."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import inspect
import io
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from PIL import Image

from runner.config import parser
from runner.config.schema import Experiment
from runner.study import plots, storage
from runner.study.plan import Plan, check_sampler
from runner.study.space import Dimension, Space
from runner.study.study import FAILURES, Asked, Study, is_baseline, words
from runner.utils.errors import UserError
from runner.utils.intervals import paired_difference

LR = Dimension("optim.lr", 1e-4, 0.1, log=True)
DROPOUT = Dimension("model.dropout", 0.0, 0.8)
SIZE = Dimension("train.batch_size", choices=(16, 32, 64))
SPACE = Space((LR, DROPOUT))
GRID = Space((Dimension("model.dropout", choices=(0.1, 0.5)), SIZE))
NAMES = Dimension("optim.name", choices=("adam", "adamw", "sgd"))
MOMENTUM = Dimension("optim.momentum", 0.5, 0.99, when=(("optim.name", ("sgd",)),))
CONDITIONAL = Space((NAMES, MOMENTUM, LR))
SAMPLERS = ("tpe", "random", "cmaes", "gp", "grid")

CHILD = """
import math, os, pickle, signal
from pathlib import Path
from typing import Any
from runner.study import Study
{score}
plan = pickle.loads(Path({plan!r}).read_bytes())
study = Study(plan, Path({root!r}))
"""


@pytest.fixture(scope="module")
def baseline() -> Experiment:
    return parser.parse(["--config", "quickstart", "--train.epochs", "5"])[0]


Make = Callable[..., Plan]


@pytest.fixture
def plan(baseline: Experiment, tmp_path: Path) -> Make:
    """`plan(trials=9)`: a study of quickstart in `tmp_path`, with some of what it is about changed."""

    def build(**changes: Any) -> Plan:
        fields = {
            "name": "some",
            "baseline": baseline,
            "space": SPACE,
            "sampler": "random",
            "storage": str(tmp_path / "studies.journal"),
            "trials": 6,
            "pruner": "none",
        }
        return Plan(**{**fields, **changes})

    return build


def score(values: dict[str, Any]) -> float:
    """Best where lr is 0.01 and dropout 0.3."""
    lr, dropout = float(values.get("optim.lr", 0.01)), float(values.get("model.dropout", 0.3))
    return 1 - (math.log10(lr) + 2) ** 2 / 10 - (dropout - 0.3) ** 2


def work(study: Study, most: int = 1000) -> list[Asked]:
    """Ask and tell at most so many trials."""
    done: list[Asked] = []
    while len(done) < most and (asked := study.ask()) is not None:
        study.tell("complete", score(asked.values))
        done.append(asked)
    return done


def values_of(asked: list[Asked]) -> list[dict[str, Any]]:
    return [each.values for each in asked]


def states(study: Study) -> list[str]:
    return [each.state.name for each in study.trials()]


def child(plan: Plan, root: Path, body: str) -> subprocess.Popen[str]:
    """A process that runs `body` with `study` opened."""
    root.mkdir(exist_ok=True)
    file = root / "plan.pickle"
    if not file.exists():
        file.write_bytes(pickle.dumps(plan))
    code = CHILD.format(score=inspect.getsource(score), plan=str(file), root=str(root)) + body
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def die_in_a_trial(plan: Plan, root: Path, before: int = 0) -> None:
    """A worker that is killed in mid-trial, behind `before` whole ones."""
    body = (
        f"for _ in range({before}):\n    study.tell('complete', score(study.ask().values))\n"
        "assert study.ask() is not None\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = child(plan, root, body)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == -signal.SIGKILL, errors


# Asking and telling


def test_the_first_trial_is_the_baseline(plan: Make, baseline: Experiment, tmp_path: Path) -> None:
    study = Study(plan(), tmp_path)
    first, *others = work(study)
    assert (first.number, first.baseline, first.name) == (0, True, "trial 0: baseline")
    assert first.experiment == baseline
    assert first.values == {
        "optim.lr": baseline.optim.lr,
        "model.dropout": baseline.model.dropout,
    }
    assert study.baseline is not None
    assert study.baseline.number == 0
    assert study.baseline.params == first.values
    assert len(others) == 5
    for number, each in enumerate(others, 1):
        assert (each.number, each.baseline) == (number, False)
        assert each.experiment.optim.lr == each.values["optim.lr"]
        assert each.experiment != baseline
        back = {"optim": baseline.optim, "network": baseline.model}
        assert dataclasses.replace(each.experiment, **back) == baseline
        assert f"lr={each.values['optim.lr']:.3g}" in each.name
    assert states(study) == ["COMPLETE"] * 6
    assert study.finished


def test_values_are_said_in_short() -> None:
    said = words({"optim.lr": 0.000312345, "optim.name": "sgd", "train.batch_size": 64, "train.clip": None})
    assert said == "lr=0.000312 name=sgd batch_size=64 clip=None"


def test_the_best_is_the_first_of_equals(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(), tmp_path)
    assert study.best is None
    assert study.better(0.0)
    for value in (0.5, 0.7, 0.7, 0.6):
        study.ask()
        study.tell("complete", value)
    assert study.best is not None
    assert study.best.number == 1
    assert not study.better(0.7)
    assert study.better(0.71)
    assert study.maximises


def test_a_loss_is_minimised(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(objective="loss"), tmp_path)
    for value in (0.5, 0.2, 0.2, 0.6):
        study.ask()
        study.tell("complete", value)
    assert not study.maximises
    assert study.best is not None
    assert study.best.number == 1
    assert study.better(0.1)
    assert not study.better(0.2)


def test_the_number_of_trials_is_a_total(plan: Make, tmp_path: Path) -> None:
    assert len(work(Study(plan(trials=3), tmp_path))) == 3
    again = Study(plan(trials=3), tmp_path)
    assert again.finished
    assert work(again) == []
    more = Study(plan(trials=5), tmp_path)
    assert not more.finished
    assert [each.number for each in work(more)] == [3, 4]
    assert work(Study(plan(trials=2), tmp_path)) == []


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_setting_is_left_out_where_its_condition_does_not_hold(
    plan: Make, tmp_path: Path, sampler: str
) -> None:
    study = Study(plan(space=CONDITIONAL, sampler=sampler, trials=25), tmp_path)
    asked = work(study)
    assert {each.values["optim.name"] for each in asked} == {"adam", "adamw", "sgd"}
    for each in asked:
        assert ("optim.momentum" in each.values) == (each.values["optim.name"] == "sgd")


# The same seed, the same study


def test_one_worker_repeats_itself(plan: Make, tmp_path: Path) -> None:
    def proposals(place: str, **changes: Any) -> list[dict[str, Any]]:
        target = str(tmp_path / f"{place}.journal")
        return values_of(
            work(Study(plan(sampler="tpe", trials=14, storage=target, **changes), tmp_path / place))
        )

    first = proposals("one")
    assert proposals("two") == first
    assert proposals("three", seed=1)[1:] != first[1:]
    assert len({str(each) for each in first}) == 14


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_that_was_stopped_goes_on_as_if_it_had_not_been(
    plan: Make, tmp_path: Path, sampler: str
) -> None:
    trials = {"tpe": 16, "gp": 13, "cmaes": 16}.get(sampler, 8)
    about = {"sampler": sampler, "space": GRID if sampler == "grid" else SPACE, "trials": trials}
    whole = plan(**about, storage=str(tmp_path / "whole.journal"))
    stopped = plan(**about, storage=str(tmp_path / "stopped.journal"))
    expected = values_of(work(Study(whole, tmp_path / "whole")))
    found: list[dict[str, Any]] = []
    for most in (1, trials - 4, 1000):
        found += values_of(work(Study(stopped, tmp_path / "stopped"), most))
    assert found == expected
    if sampler != "grid":
        assert len(found) == trials


def test_two_workers_do_not_draw_the_same(plan: Make, tmp_path: Path) -> None:
    one, other = Study(plan(sampler="tpe"), tmp_path), Study(plan(sampler="tpe"), tmp_path)
    asked = [each.ask() for each in (one, other)]
    assert [each.baseline for each in asked if each] == [True, False]
    one.tell("complete", 0.5)
    third = one.ask()
    assert third is not None
    assert third.values != asked[1].values  # type: ignore[union-attr]


def test_a_grid_ends_when_it_is_exhausted(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(space=GRID, sampler="grid", trials=50), tmp_path)
    asked = work(study)
    pairs = [(each.values["model.dropout"], each.values["train.batch_size"]) for each in asked[1:]]
    assert sorted(pairs) == [(dropout, size) for dropout in (0.1, 0.5) for size in (16, 32, 64)]
    assert study.finished
    assert Study(plan(space=GRID, sampler="grid", trials=50), tmp_path).ask() is None


def test_workers_do_not_try_a_point_of_a_grid_twice(plan: Make, tmp_path: Path) -> None:
    about = plan(space=GRID, sampler="grid", trials=50)
    first = Study(about, tmp_path)
    work(first, 6)
    second = Study(about, tmp_path)
    assert first.ask() is not None, "the sixth point"
    assert second.ask() is None, "it runs: there is no other one"
    first.tell("complete", 0.5)
    assert second.finished


# Workers that die, and users that stop


def test_a_trial_whose_worker_died_is_tried_again_once(plan: Make, tmp_path: Path) -> None:
    about = plan(trials=3)
    die_in_a_trial(about, tmp_path, before=1)
    study = Study(about, tmp_path)
    assert states(study) == ["COMPLETE", "RUNNING"]
    assert not study.finished
    with study.alone():
        assert study.sweep() == [1]
        assert study.sweep() == []
    lost = study.trials()[1]
    assert study.lost_by(lost.user_attrs["owner"][1]) == 1, "whoever swept"
    assert study.lost_by(os.getpid()) is None
    assert lost.state == TrialState.FAIL
    assert lost.user_attrs["lost"] == "its worker died"
    assert states(study) == ["COMPLETE", "FAIL", "WAITING"]
    assert (study.counted(), study.finished) == (1, False)
    again = study.ask()
    assert again is not None
    assert (again.number, again.baseline) == (2, False)
    assert again.values == lost.params
    assert study.trials()[2].user_attrs["retry"] == 1
    study.tell("complete", 0.5)
    (last,) = work(study)
    assert last.values != again.values
    assert study.counted() == 3
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_trial_is_not_tried_a_third_time(plan: Make, tmp_path: Path) -> None:
    about = plan(trials=3)
    for _ in range(2):
        die_in_a_trial(about, tmp_path)
    study = Study(about, tmp_path)
    asked = work(study)
    assert [each.state.name for each in study.trials()] == ["FAIL", "FAIL", *["COMPLETE"] * 3]
    assert ["lost" in each.user_attrs for each in study.trials()] == [True, True, False, False, False]
    assert [each.baseline for each in asked] == [False] * 3
    assert study.counted() == 3


def test_a_baseline_that_was_lost_is_still_the_baseline(
    plan: Make, baseline: Experiment, tmp_path: Path
) -> None:
    about = plan(trials=2)
    die_in_a_trial(about, tmp_path)
    study = Study(about, tmp_path)
    again = study.ask()
    assert again is not None
    assert (again.number, again.baseline, again.experiment) == (1, True, baseline)
    study.tell("complete", 0.4)
    assert study.baseline is not None
    assert study.baseline.number == 1


def test_a_trial_that_its_user_stopped_is_always_tried_again(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(trials=2), tmp_path)
    study.tell("complete", score(study.ask().values))  # type: ignore[union-attr]
    seen = []
    for _ in range(3):
        asked = study.ask()
        assert asked is not None
        seen.append(asked.values)
        study.lost("stopped by SIGINT")
        assert not study.running
    (last,) = work(study)
    assert seen == [last.values] * 3
    assert states(study) == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert [each.user_attrs.get("lost") for each in study.trials()][1:4] == ["stopped by SIGINT"] * 3
    assert study.counted() == 2
    assert study.finished


def test_lost_without_a_trial_does_nothing(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(), tmp_path)
    study.lost("stopped by SIGINT")
    assert states(study) == ["WAITING"]


def test_a_trial_of_a_live_worker_is_left_alone(plan: Make, tmp_path: Path) -> None:
    one, other = Study(plan(), tmp_path), Study(plan(), tmp_path)
    one.ask()
    with other.alone():
        assert other.sweep() == []
    assert states(other) == ["RUNNING"]


def test_a_file_is_not_shared_with_another_host(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Study(plan(), tmp_path), Study(plan(), tmp_path)
    one.ask()
    one.note(owner=["elsewhere", 1, 1.0])
    with pytest.raises(UserError, match=r"running on elsewhere.*PostgreSQL"):
        other.ask()
    monkeypatch.setattr("runner.study.study.SILENT", -1)
    again = other.ask()
    assert again is not None
    assert again.number == 1
    assert states(other) == ["FAIL", "RUNNING"]


def test_retries_of_lost_trials_are_no_failures(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(), tmp_path)
    for _ in range(FAILURES + 2):
        assert study.ask() is not None
        study.lost("stopped by SIGTERM")
    assert study.ask() is not None


# Pruning


def test_poor_trials_are_pruned_but_never_the_baseline(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(trials=9, pruner="median"), tmp_path)
    for value in (0.9, 0.8, 0.85, 0.7, 0.95):
        study.ask()
        for epoch in range(1, 6):
            assert not study.report(epoch, value)
        study.tell("complete", value)
    study.ask()
    assert any(study.report(epoch, 0.1) for epoch in range(1, 6))
    study.tell("pruned")
    study.ask()
    assert not any(study.report(epoch, 0.99) for epoch in range(1, 6))
    study.tell("complete", 0.99)
    assert study.trials()[5].state == TrialState.PRUNED
    assert study.trials()[5].value == 0.1


@pytest.mark.parametrize(("name", "fits"), [("median", 1), ("auto", 1), ("hyperband", 1), ("wilcoxon", 4)])
def test_the_baseline_is_never_pruned(plan: Make, tmp_path: Path, name: str, fits: int) -> None:
    study = Study(plan(trials=12, pruner=name, fits=fits), tmp_path)
    baseline = Study(plan(trials=12, pruner=name, fits=fits), tmp_path)
    first = baseline.ask()
    assert first is not None
    assert first.baseline
    for place in range(9):
        study.ask()
        for epoch in range(5):
            study.report(epoch, 0.8 + place / 100)
        study.tell("complete", 0.8 + place / 100)
    assert not any(baseline.report(epoch, 0.0) for epoch in range(5))
    assert study.ask() is not None
    assert name == "wilcoxon" or any(study.report(epoch, 0.0) for epoch in range(5)), "others are"


# Failures


def test_trials_that_fail_in_a_row_stop_the_study(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(trials=50), tmp_path)
    work(study, 2)
    for number in range(FAILURES):
        study.ask()
        study.note(reason=f"fault {number}")
        study.tell("failed")
    with pytest.raises(
        UserError, match=rf"last {FAILURES} trials all failed.*'some'.*trial 2, said: fault 0"
    ):
        study.ask()
    assert not study.running
    assert "RUNNING" not in states(study)


def test_a_success_between_failures_lets_the_study_go_on(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(trials=50), tmp_path)
    for number in range(2 * FAILURES):
        study.ask()
        study.tell(*(("complete", 0.5) if number % FAILURES == 2 else ("failed",)))  # type: ignore[arg-type]
    assert study.ask() is not None


def test_a_combination_that_cannot_work_is_a_trial_that_failed(
    plan: Make, baseline: Experiment, tmp_path: Path
) -> None:
    impossible = Space((Dimension("train.accumulate", choices=(1, 1000)),))
    study = Study(plan(space=impossible, sampler="grid", trials=9), tmp_path)
    work(study, 1)
    said = []
    for _ in range(2):
        try:
            study.ask()
            study.tell("complete", 0.5)
        except UserError as error:
            assert study.running
            study.note(reason=str(error))
            study.tell("failed")
            said.append(str(error))
    assert len(said) == 1
    assert "train.accumulate (1000)" in said[0]


# Whose name it is


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": Space((LR,))}, "space.model.dropout"),
        (
            {"space": Space((dataclasses.replace(LR, high=0.2), DROPOUT))},
            "space.optim.lr.high was 0.1 and is 0.2",
        ),
        ({"objective": "loss"}, "objective was 'top1' and is 'loss'"),
        ({"objective": "recall"}, "objective was 'top1' and is 'recall'"),
        ({"fits": 3}, "fits was 1 and is 3"),
    ],
)
def test_another_study_of_the_same_name_is_refused(
    plan: Make, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    Study(plan(), tmp_path)
    with pytest.raises(UserError) as caught:
        Study(plan(**changes), tmp_path)
    assert said in str(caught.value)
    assert "'some' is another one" in str(caught.value)
    assert Study(plan(), tmp_path).ask() is not None, "the first one is whole"
    assert Study(plan(name="other", **changes), tmp_path).ask() is not None


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("train.epochs", "6", "baseline.train.epochs was 5 and is 6"),
        ("optim.lr", "0.004", "baseline.optim.lr was 0.003 and is 0.004"),
        ("seed.split", "1", "baseline.seed.split was 0 and is 1"),
        ("split.by", "count", "baseline.split.by"),
    ],
)
def test_another_baseline_is_refused(plan: Make, tmp_path: Path, name: str, value: str, said: str) -> None:
    Study(plan(), tmp_path)
    counts = ("--split.train", "9", "--split.val", "9", "--split.test", "9") if value == "count" else ()
    other = parser.parse(["--train.epochs", "5", f"--{name}", value, *counts])[0]
    with pytest.raises(UserError) as caught:
        Study(plan(baseline=other), tmp_path)
    assert said in str(caught.value)


def test_places_may_differ(plan: Make, tmp_path: Path) -> None:
    place = ["--train.epochs", "5", "--data.kind", "folder", "--data.root"]
    one = parser.parse([*place, "/one"])[0]
    other = parser.parse(
        [
            *(
                *place,
                "/other",
                "--cache",
                "/elsewhere",
                "--tracking.root",
                "/records",
                "--data.workers",
                "1",
            ),
            *("--features.memory", "1", "--tracking.system_metrics", "false"),
        ]
    )[0]
    Study(plan(baseline=one), tmp_path)
    asked = Study(plan(baseline=other), tmp_path).ask()
    assert asked is not None
    assert asked.experiment == other


def test_a_study_that_is_not_ours_is_refused(plan: Make, tmp_path: Path) -> None:
    foreign = optuna.create_study(storage=storage.connect(plan().storage), study_name="some")
    foreign.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(UserError, match="not made by this runner"):
        Study(plan(), tmp_path)
    assert len(foreign.trials) == 1


def test_a_process_that_died_while_it_made_the_study_does_no_harm(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two of the records that make a study, whichever."""

    class Killed(BaseException):
        pass

    calls = ("enqueue_trial", "set_user_attr", "set_metric_names")
    for call in calls:
        for before in (True, False):
            about = plan(name=f"{call} {before}")
            kept = getattr(optuna.Study, call)

            def die(self: Any, *given: Any, _kept: Any = kept, _before: bool = before, **named: Any) -> None:
                if not _before:
                    _kept(self, *given, **named)
                raise Killed

            with monkeypatch.context() as patch:
                patch.setattr(optuna.Study, call, die)
                with pytest.raises(Killed):
                    Study(about, tmp_path)
            study = Study(about, tmp_path)
            asked = work(study)
            assert [each.baseline for each in asked] == [True, *[False] * 5], about.name


# Storages


def test_a_torn_last_line_is_mended(plan: Make, tmp_path: Path) -> None:
    work(Study(plan(trials=3), tmp_path))
    journal = tmp_path / "studies.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines(keepends=True)[-1][:-9])
    study = Study(plan(trials=5), tmp_path)
    assert states(study) == ["COMPLETE"] * 3
    assert len(work(study)) == 2
    assert states(Study(plan(trials=5), tmp_path)) == ["COMPLETE"] * 5
    assert journal.read_bytes().startswith(whole)


def test_locks_of_a_killed_process_do_not_block(plan: Make, tmp_path: Path) -> None:
    body = "study.storage._backend._lock.acquire()\nstudy._lock.acquire()\nos.kill(os.getpid(), signal.SIGKILL)\n"
    process = child(plan(), tmp_path, body)
    assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == -signal.SIGKILL
    assert len(work(Study(plan(), tmp_path))) == 6


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://me:hush-hush@127.0.0.1:1/studies", "cannot be reached"),
        ("postgresql://127.0.0.1:1/studies?user=me&password=hush-hush", "cannot be reached"),
        ("nosuch://me:hush-hush@somewhere/studies", "nosuch"),
        ("oracle://me:hush-hush@somewhere/studies", "driver that is not installed"),
        ("postgresql://me:hush-hush@127.0.0.1:port/studies", "cannot be"),
    ],
)
def test_a_storage_out_of_reach_is_said_without_its_password(
    plan: Make, tmp_path: Path, address: str, said: str
) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(UserError) as caught:
        Study(plan(storage=address), tmp_path)
    assert said in str(caught.value)
    assert "hush-hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_driver_is_said(plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name.startswith("psycopg") else find(name)
    )
    with pytest.raises(UserError, match=r"needs a driver.*vgg-runner\[postgresql\]") as caught:
        Study(plan(storage="postgresql://me:hush-hush@127.0.0.1:1/studies"), tmp_path)
    assert "hush-hush" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"notes of mine\nand more", b"SQLite format 3\0\nabc", b"{}\n", b"[1, 2]\n"]
)
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_was(
    plan: Make, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a journal"):
        Study(plan(storage=str(path)), tmp_path)
    assert path.read_bytes() == content


def test_a_folder_is_no_storage(plan: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        Study(plan(storage=str(tmp_path)), tmp_path)


def test_a_network_file_system_is_refused(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "on_network", lambda _: "nfs4")
    for address in (str(tmp_path / "a.journal"), f"sqlite:///{tmp_path / 'a.db'}"):
        with pytest.raises(UserError, match=r"network file system \(nfs4\).*PostgreSQL"):
            Study(plan(storage=address), tmp_path)
    assert not (tmp_path / "a.journal").exists()


def test_a_sqlite_database_is_a_storage(plan: Make, tmp_path: Path) -> None:
    about = plan(storage=f"sqlite:///{tmp_path / 'studies.db'}", trials=3)
    die_in_a_trial(about, tmp_path, before=1)
    study = Study(about, tmp_path)
    assert len(work(study)) == 2
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.finished


@pytest.mark.parametrize(("name", "package"), [("cmaes", "cmaes"), ("gp", "scipy")])
def test_a_sampler_whose_package_is_missing_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    check_sampler(name)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda each, *_: None if each == package else find(each))
    with pytest.raises(UserError, match=f"{name} needs the package {package}: pip install"):
        check_sampler(name)
    check_sampler("tpe")


# Several at once


def test_four_processes_share_a_study(plan: Make, tmp_path: Path) -> None:
    about = plan(trials=20, sampler="tpe")
    body = (
        "numbers = []\n"
        "while (asked := study.ask()) is not None:\n"
        "    study.report(1, 0.5)\n"
        "    study.note(run='run')\n"
        "    study.tell('complete', score(asked.values))\n"
        "    numbers.append(asked.number)\n"
        "print(numbers)\n"
    )
    processes = [child(about, tmp_path, body) for _ in range(4)]
    said = [each.communicate(timeout=240) for each in processes]
    assert [each.returncode for each in processes] == [0] * 4, said
    numbers = [number for out, _ in said for number in eval(out)]
    assert sorted(numbers) == list(range(20))
    study = Study(about, tmp_path)
    assert states(study) == ["COMPLETE"] * 20
    assert [each.number for each in study.trials() if is_baseline(each)] == [0]
    assert len({str(each.params) for each in study.trials()}) == 20
    assert len({tuple(each.user_attrs["owner"]) for each in study.trials()}) >= 1
    assert study.finished


# What comes of it


def test_pairs_have_students_interval() -> None:
    from scipy.stats import ttest_rel

    ones, others = [0.91, 0.93, 0.92, 0.95, 0.9], [0.9, 0.91, 0.93, 0.91, 0.88]
    found, known = paired_difference(ones, others), ttest_rel(ones, others).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(known.low), pytest.approx(known.high))
    assert found.mean == pytest.approx(0.016)
    assert not found.significant
    assert paired_difference([0.9, 0.92, 0.94], [0.5, 0.53, 0.52]).significant
    assert paired_difference([0.5, 0.53, 0.52], [0.9, 0.92, 0.94]).significant


def test_one_pair_is_never_certain() -> None:
    found = paired_difference([0.9], [0.1])
    assert found.mean == pytest.approx(0.8)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert not found.significant


def rows_of(study: Study) -> list[dict[str, str]]:
    names = [each.setting for each in study.plan.space.dimensions]
    return list(csv.DictReader(io.StringIO(plots.table(study.trials(), names))))


def drawn(study: Study, folder: Path) -> set[str]:
    """Names of the pictures, after a look at each."""
    files = plots.draw(study.optuna, "some $study_1", "top-1", folder)
    for path in files:
        with Image.open(path) as image:
            image.load()
            assert image.width > 300
            assert len(image.convert("L").getcolors()) > 2, "something is on it"
    return {path.stem for path in files}


def test_a_study_without_an_end_has_no_pictures(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(), tmp_path)
    assert drawn(study, tmp_path) == set()
    study.ask()
    assert drawn(study, tmp_path) == set()
    assert [row["state"] for row in rows_of(study)] == ["RUNNING"]


@pytest.mark.parametrize("trials", [1, 2])
def test_a_tiny_study_has_a_picture(plan: Make, tmp_path: Path, trials: int) -> None:
    study = Study(plan(trials=trials), tmp_path)
    work(study)
    assert "history" in drawn(study, tmp_path)
    assert [row["trial"] for row in rows_of(study)] == [str(each) for each in range(trials)]
    assert not plots.interactive(study.optuna, "top-1", tmp_path / "page.html")


def test_plots_leave_the_style_of_matplotlib_unchanged(plan: Make, tmp_path: Path) -> None:
    import matplotlib

    study = Study(plan(trials=8), tmp_path)
    work(study)
    before = dict(matplotlib.rcParams)
    assert drawn(study, tmp_path) >= {"parallel_coordinates", "contour"}, "Optuna's own plots, which set a style"
    after = dict(matplotlib.rcParams)
    changed = {name for name in before if after[name] != before[name]}
    assert changed <= {"backend", "backend_fallback"}, "a backend may be selected, but no style"


def test_trials_that_are_all_the_same_have_a_picture(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(), tmp_path)
    while study.ask() is not None:
        study.tell("complete", 0.5)
    assert "history" in drawn(study, tmp_path)


def test_a_study_has_pictures_and_a_table(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(space=CONDITIONAL, trials=16), tmp_path)
    for number in range(16):
        asked = study.ask()
        assert asked is not None
        study.note(run=f"run {number}", scores={"top1": 0.5, "recall": 0.4, "loss": 1.25}, seconds=1.5)
        if number == 5:
            study.report(1, 0.25)
            study.note(reason="pruned at epoch 1")
            study.tell("pruned")
        elif number == 6:
            study.note(reason="it broke")
            study.tell("failed")
        elif number == 7:
            study.lost("stopped")
        else:
            study.tell("complete", score(asked.values))
    assert drawn(study, tmp_path) >= {"history", "importances", "parallel_coordinates", "slices"}
    assert plots.interactive(study.optuna, "top-1", tmp_path / "page.html")
    assert "plotly" in (tmp_path / "page.html").read_text()
    rows = rows_of(study)
    assert [row["state"] for row in rows[5:8]] == ["PRUNED", "FAIL", "LOST"]
    assert [row["reason"] for row in rows[5:8]] == ["pruned at epoch 1", "it broke", "stopped"]
    assert [row["baseline"] for row in rows][:2] == ["yes", ""]
    assert rows[0]["value"] == repr(study.trials()[0].value)
    assert rows[5]["value"] == "0.25"
    assert (rows[3]["val/loss"], rows[3]["run"], rows[3]["seconds"]) == ("1.25", "run 3", "1.50")
    for row, trial in zip(rows, study.trials(), strict=True):
        assert float(row["optim.lr"]) == trial.params["optim.lr"]
        assert (row["optim.momentum"] != "") == (row["optim.name"] == "sgd")
    assert plots.importances(study.optuna)
