"""Runs that are killed, stopped, and gone on with: the same records as if nothing had happened, once each."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import RUNNER, client_of, command, environment, one_sentence, runs_of
from interrupting import Kill, artifacts, command_in_a_fork, points, times

from runner import train
from runner.tracking import interrupted_runs
from runner.tracking.interrupted_runs import RunRecord
from runner.tracking.journal import Journal
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.process_identity import ProcessIdentity
from runner.tracking.recovery import recover_runs
from runner.training import snapshot
from runner.utils.console import Terminal
from runner.utils.exit_status import run_main

__all__ = ["images", "refused"]  # fixtures

CLI = (sys.executable, "-m", "runner.cli.main", "train")
EVERY = ("--checkpoints.minutes", "0")
"""A snapshot at every step."""
LONG = ("--train.epochs", "100000", "--schedule.kind", "constant")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor, and no store but the one that a test names."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a store without runs, which takes seconds to make."""
    root = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking_server(str(root)).connect()
    return root / "mlflow.db"


@dataclass
class Place:
    """A store, a cache, and the words of a small experiment there."""

    folder: Path
    words: list[str]

    @property
    def journals(self) -> Path:
        return self.folder / "mlruns" / "journals"

    @property
    def states(self) -> list[Path]:
        return sorted(self.journals.glob("*/state"))

    def train(self, *more: str, kill: Kill | None = None) -> int:
        return command_in_a_fork([*self.words, *more], self.folder / "log", kill)

    @property
    def said(self) -> str:
        return (self.folder / "log.said").read_text()

    @property
    def client(self) -> Any:
        return client_of(self.folder)


Make = Callable[..., Place]


@pytest.fixture(scope="module")
def make_place(template: Path, images: Path) -> Make:
    def build(folder: Path, cache: Path | None = None) -> Place:
        (folder / "mlruns").mkdir(parents=True)
        with sqlite3.connect(template) as source, sqlite3.connect(folder / "mlruns" / "mlflow.db") as target:
            source.backup(target)
        words = [
            *("--name", "small", "--data.kind", "folder", "--data.root", str(images)),
            *("--cache", str(cache or folder / "cache"), "--tracking.root", str(folder / "mlruns")),
            *("--tracking.system_metrics", "false", "--model.arch", "vgg11", "--model.pool", "1"),
            *(
                "--model.width",
                "16",
                "--augment.resize",
                "36",
                "--augment.crop",
                "32",
                "--augment.views",
                "2",
            ),
            *(
                "--train.epochs",
                "3",
                "--train.batch_size",
                "8",
                "--train.precision",
                "no",
                "--features.batch_size",
                "8",
            ),
            *("--features.compile", "false", "--tracking.model", "false", "--tracking.gallery", "2"),
            *("--tracking.gallery_every", "2", "--schedule.kind", "report"),
        ]
        return Place(folder, words)

    return build


@pytest.fixture
def place(make_place: Make, tmp_path: Path) -> Place:
    """One with an empty store and an empty cache."""
    return make_place(tmp_path / "place")


@dataclass
class Told:
    """What MLflow has of a run that nothing interrupted."""

    points: dict[str, list[tuple[int, float]]]
    artifacts: list[str]
    params: dict[str, str]
    operations: list[str]
    place: Place


@pytest.fixture(scope="module")
def whole(make_place: Make, tmp_path_factory: pytest.TempPathFactory) -> Told:
    place = make_place(tmp_path_factory.mktemp("whole") / "place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        assert place.train(*EVERY) == 0, place.said
    (run,) = runs_of(place.client)
    assert run.info.status == "FINISHED"
    log = (place.folder / "log").read_text().splitlines()
    run_id = run.info.run_id
    return Told(
        points(place.client, run_id), artifacts(place.client, run_id), dict(run.data.params), log, place
    )


def own(params: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in params.items() if k not in ("cache", "tracking.root")}


def check(place: Place, told: Told, expected: str = "") -> None:
    """See that the store has one finished run with all that an uninterrupted one has, and nothing else lies about.

    Args:
        place: The store.
        told: Of the uninterrupted run.
        expected: Id of the run; empty: any; others were killed before there was anything to go on from.
    """
    client = place.client
    everything = runs_of(client)
    finished = [run for run in everything if run.info.status == "FINISHED"]
    assert len(finished) == 1, [(run.info.status, run.data.tags) for run in everything]
    (run,) = finished
    assert {each.info.status for each in everything} <= {"FINISHED", "KILLED"}
    if expected:
        assert run.info.run_id == expected
        assert len(everything) == 1
    assert "runner.reason" not in run.data.tags
    assert "runner.refused" not in run.data.tags
    assert points(client, run.info.run_id) == told.points
    assert artifacts(client, run.info.run_id) == told.artifacts
    assert own(run.data.params) == own(told.params)
    left = [path.name for path in place.journals.iterdir()]
    assert left == [], left
    aside = [str(path) for path in place.folder.rglob("*.partial")]
    # What a killed process had half written stays until the store's folder is used again; never in the records.
    assert not [path for path in aside if "mlruns" in path]


def begun(place: Place) -> str:
    """Id of the run that there is something to go on from of; empty: there is none."""
    found = [path.parent.name for path in place.states if (path / "run.json").exists()]
    return found[0] if found else ""


def finished(place: Place) -> bool:
    """Whether the run's end was written down: only its delivery is left to do."""
    return any(
        journal.ended and journal.events()[-1]["status"] == "FINISHED"
        for journal in Journal.find_all(place.journals)
    ) or any(run.info.status == "FINISHED" for run in runs_of(place.client))


def deliver(place: Place) -> None:
    """What the next command does with the records of dead processes."""
    here = tracking_server(str(place.folder / "mlruns"))
    recover_runs(here, here.connect(), Terminal(enabled=False))


def go_on(place: Place) -> None:
    """Bring a killed run to its end."""
    if finished(place):
        deliver(place)
    else:
        assert place.train(*EVERY, "--resume", "auto") == 0, place.said


# Killed at a moment

KILLS = {
    "while a snapshot is flushed": Kill(r"fsync .*/state/\.0", 3),
    "before the journal is flushed": Kill(r"fsync .*events\.jsonl", 9),
    "when its end is delivered": Kill(r"set_terminated", 1, after=True),
    "when a snapshot has its name": Kill(r"replace .*/state/0", 5, after=True),
    "while the store commits": Kill(r"do_commit", 12, after=True),
    "while the best checkpoint is written": Kill(r"replace .*best\.safetensors", 1),
    "while the scan is kept": Kill(r"replace .*cache/scans", 1),
    "while features are written": Kill(r"replace .*cache/features", 2),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (place > 0)) for place, name in enumerate(KILLS)],
)
def test_a_killed_run_goes_on(place: Place, whole: Told, name: str) -> None:
    kill = KILLS[name]
    status = place.train(*EVERY, kill=kill)
    assert status == -signal.SIGKILL, place.said
    expected = begun(place)
    go_on(place)
    check(place, whole, expected)


@pytest.mark.slow
def test_a_finished_run_whose_records_wait_is_not_gone_on_with(place: Place, whole: Told) -> None:
    assert place.train(*EVERY, kill=Kill(r"set_terminated", 1, after=True)) == -signal.SIGKILL
    first = begun(place)
    assert place.train(*EVERY, "--resume", "auto") == 0, place.said
    assert "beginning a new one" in place.said
    assert [run.info.status for run in runs_of(place.client)] == ["FINISHED"] * 2
    for run in runs_of(place.client):
        assert points(place.client, run.info.run_id) == whole.points
    assert first in [run.info.run_id for run in runs_of(place.client)]


@pytest.mark.slow
def test_a_journal_goes_at_once(place: Place, whole: Told) -> None:
    """A process that dies while it removes the journal of its finished run leaves nothing to go on with."""
    place.train(*EVERY, kill=Kill(r"set_terminated", 1, after=True))
    (journal,) = Journal.find_all(place.journals)
    kept = place.folder / "journal"
    journal.folder.rename(kept)

    def torn(path: Path, **_: Any) -> None:
        raise KeyboardInterrupt

    shutil.copytree(kept, journal.folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", torn)
        with pytest.raises(KeyboardInterrupt):
            journal.remove()
    assert Journal.find_all(place.journals) == [], "whatever is left of it"
    shutil.rmtree(kept)
    assert place.train(*EVERY, "--train.epochs", "1", "--resume", "auto") == 0, place.said
    assert list(place.journals.iterdir()) == []
    first_run, _new = runs_of(place.client)
    assert first_run.info.status == "FINISHED"
    assert points(place.client, first_run.info.run_id) == whole.points


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("part", range(6))
def test_a_run_that_is_killed_anywhere_goes_on(
    make_place: Make, tmp_path: Path, whole: Told, part: int
) -> None:
    """Six times six operations of the uninterrupted run, evenly over all of them, before or after each."""
    count = len(whole.operations)
    for number in range(part, 36, 6):
        place = make_place(tmp_path / str(number))
        nth = 1 + (number * 2 + 1) * count // 72
        status = place.train(*EVERY, kill=Kill(".", nth, after=number % 2 == 1))
        expected = begun(place) if status else ""
        if status:
            go_on(place)
        check(place, whole, expected)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_is_killed_again_and_again_goes_on(place: Place, whole: Told, seed: int) -> None:
    chance = random.Random(seed)
    expected = ""
    for _ in range(6):
        if finished(place):
            break
        if place.train(*EVERY, "--resume", "auto", kill=Kill(seconds=chance.uniform(0.3, 4))) == 0:
            break
        assert expected in ("", begun(place)), "a run that was begun is the one that goes on"
        expected = begun(place)
    go_on(place)
    check(place, whole, expected)


@pytest.mark.slow
def test_a_run_that_others_have_closed_goes_on(place: Place, whole: Told) -> None:
    assert place.train(*EVERY, kill=Kill(r"replace .*/state/0", 5)) == -signal.SIGKILL
    expected = begun(place)
    deliver(place)
    run = place.client.get_run(expected)
    assert (run.info.status, run.data.tags["runner.reason"]) == ("KILLED", "its process died without a word")
    assert place.train(*EVERY, "--resume", "auto") == 0, place.said
    check(place, whole, expected)


@pytest.mark.slow
def test_times_do_not_go_back_with_the_clock(
    place: Place, whole: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = time.time, iter(range(10**9))
    monkeypatch.setattr("runner.tracking.journal.time.time", lambda: now() - 60 * next(looks))
    assert run_main(lambda: train.main([*place.words, *EVERY])) == 0
    monkeypatch.undo()
    (run,) = runs_of(place.client)
    assert points(place.client, run.info.run_id) == whole.points
    for name in ("train/loss", "val/top1"):
        taken = times(place.client, run.info.run_id, name)
        assert taken == sorted(taken)
    assert run.info.end_time >= max(times(place.client, run.info.run_id, "train/loss"))


# What is refused, and what is not


@pytest.fixture(scope="module")
def interrupted(make_place: Make, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with a run that was killed in its second epoch."""
    place = make_place(tmp_path_factory.mktemp("interrupted") / "place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        assert place.train(*EVERY, kill=Kill(r"replace .*/state/000001", 2, after=True)) == -signal.SIGKILL
    assert begun(place)
    return place


@pytest.fixture
def interrupted_copy(interrupted: Place, tmp_path: Path) -> Place:
    """The same, to be changed."""
    target = tmp_path / "place"
    shutil.copytree(interrupted.folder, target)
    words = [word.replace(str(interrupted.folder), str(target)) for word in interrupted.words]
    place = Place(target, words)
    (owner,) = place.journals.glob("*/owner.json")
    owner.write_text(owner.read_text().replace(str(interrupted.folder), str(target)))
    with sqlite3.connect(target / "mlruns" / "mlflow.db") as base:
        base.execute(
            "UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)",
            (str(interrupted.folder), str(target)),
        )
        base.execute(
            "UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)",
            (str(interrupted.folder), str(target)),
        )
    return place


def change(place: Place, **values: Any) -> None:
    """Change what `run.json` of the only run tells."""
    told = json.loads((place.states[0] / "run.json").read_text())
    del told["digest"]
    interrupted_runs.write_record(place.states[0], RunRecord.from_dict({**told, **values}))


def test_other_experiments_are_refused(interrupted: Place, refused: Callable[..., str]) -> None:
    run_id, words = begun(interrupted), interrupted.words
    said = refused(["train", *words, "--optim.lr", "0.5", "--train.epochs", "9", "--resume", run_id[:8]])
    assert "optim.lr is 0.5, was " in said
    assert "train.epochs is 9, was 3" in said
    assert "--branch" in said
    assert "--repeat 1" in refused(["train", *words, "--repeat", "2", "--resume", run_id])


def test_unknown_runs_are_refused(interrupted: Place, refused: Callable[..., str]) -> None:
    said = refused(["train", *interrupted.words, "--resume", "nowhere"])
    assert "no interrupted run 'nowhere'" in said
    assert begun(interrupted)[:8] in said, "it names those that there are"
    assert "no interrupted run 'nowhere'" in refused(
        ["train", "--tracking.root", str(interrupted.folder / "mlruns"), "--resume", "nowhere"]
    )


def test_a_branch_needs_a_run(interrupted: Place, refused: Callable[..., str]) -> None:
    assert "--resume RUN" in refused(["train", *interrupted.words, "--resume", "auto", "--branch"])
    assert "--resume RUN" in refused(["train", *interrupted.words, "--branch"])
    said = refused(["train", *interrupted.words, "--resume", begun(interrupted), "--branch", "--repeat", "2"])
    assert "--repeat" in said


def test_a_run_of_another_store_is_refused(
    interrupted: Place, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    said = refused(["train", *interrupted.words, "--resume", begun(interrupted)])
    assert "MLFLOW_TRACKING_URI" in said


def test_a_living_run_is_refused(interrupted_copy: Place, refused: Callable[..., str]) -> None:
    (owner,) = interrupted_copy.journals.glob("*/owner.json")
    now, told = ProcessIdentity.current(), json.loads(owner.read_text())
    owner.write_text(json.dumps({**told, "host": now.host, "pid": now.pid, "started": now.started}))
    said = refused(["train", *interrupted_copy.words, "--resume", begun(interrupted_copy)])
    assert f"still runs: process {os.getpid()} on" in said


@pytest.mark.slow
def test_a_diverged_run_is_refused(interrupted_copy: Place, refused: Callable[..., str]) -> None:
    change(interrupted_copy, diverged=True)
    said = refused(["train", *interrupted_copy.words, "--resume", begun(interrupted_copy)])
    assert "diverged" in said
    assert "--branch" in said
    assert interrupted_copy.train(*EVERY, "--resume", "auto") == 0, interrupted_copy.said
    assert "beginning a new one" in interrupted_copy.said


@pytest.mark.slow
def test_a_run_that_diverged_says_so(place: Place) -> None:
    words = ("--optim.lr", "1e30", "--optim.name", "sgd")
    assert place.train(*EVERY, *words) == 2
    assert "training diverged" in place.said
    (state,) = place.states
    assert json.loads((state / "run.json").read_text())["diverged"]
    kept, _ = snapshot.newest(state)
    assert kept is None or kept.finite
    (run,) = runs_of(place.client)
    assert run.info.status == "FAILED"
    assert "at step" in run.data.tags["runner.reason"]


@pytest.mark.slow
def test_changed_images_are_refused(interrupted_copy: Place, images: Path, tmp_path: Path) -> None:
    other = tmp_path / "images"
    shutil.copytree(images, other)
    place, run_id = interrupted_copy, begun(interrupted_copy)
    same = [*place.words, *EVERY, "--data.root", str(other), "--resume", run_id]
    shutil.copy(other / "red" / "00.png", other / "blue" / "00.png")
    tags = place.client.get_run(run_id).data.tags
    assert Place(place.folder, same).train() == 2
    assert f"are not those of run {run_id[:8]}" in place.said
    now = place.client.get_run(run_id).data.tags
    assert now["runner.manifest"] == tags["runner.manifest"], "its records stay what they were"
    assert "runner.resumed" not in now
    assert "Traceback" not in place.said
    shutil.copy(images / "blue" / "00.png", other / "blue" / "00.png")
    assert Place(place.folder, same).train() == 0, place.said  # another folder of the same images is none


@pytest.mark.slow
def test_changed_frozen_weights_are_refused(place: Place, tmp_path: Path) -> None:
    import torch
    import torchvision

    file = tmp_path / "vgg11.pth"

    def write(seed: int) -> None:
        torch.manual_seed(seed)
        layers = torchvision.models.vgg11(num_classes=2).features.state_dict()
        torch.save({f"features.{name}": value for name, value in layers.items()}, file)

    write(1)
    more = (*EVERY, "--model.weights", str(file), "--model.normalize", "statistics")
    assert place.train(*more, kill=Kill(r"replace .*/state/000001", 1, after=True)) == -signal.SIGKILL, (
        place.said
    )
    write(2)
    assert place.train(*more, "--resume", "auto") == 2, place.said
    assert "The frozen weights are not those of run" in place.said
    assert place.train(*more, "--resume", begun(place), "--branch") == 2, place.said
    write(1)
    assert place.train(*more, "--resume", "auto") == 0, place.said


@pytest.mark.slow
def test_harmless_settings_may_differ(interrupted_copy: Place, whole: Told) -> None:
    place, run_id = interrupted_copy, begun(interrupted_copy)
    harmless = ("--data.workers", "1", "--checkpoints.keep", "1", "--features.memory", "0.5")
    assert place.train(*harmless, "--resume", run_id[:6]) == 0, place.said
    (run,) = runs_of(place.client)
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert points(place.client, run_id) == whole.points


@pytest.mark.slow
def test_a_run_brings_its_own_experiment(interrupted_copy: Place, whole: Told) -> None:
    place, run_id = interrupted_copy, begun(interrupted_copy)
    (name,) = [run.info.run_name for run in runs_of(place.client)]
    root = str(place.folder / "mlruns")
    asked = interrupted_runs.list_interrupted_runs(tracking_server(root))[0].record.requested  # it names the folder that it was copied from
    asked["tracking"]["root"], asked["cache"] = root, str(place.folder / "cache")
    change(place, requested=asked)
    words = ["--tracking.root", root, "--resume", name]
    assert Place(place.folder, words).train() == 0, place.said
    check(place, whole, run_id)


@pytest.mark.slow
def test_a_branch_is_a_run_of_its_own(interrupted_copy: Place, whole: Told) -> None:
    place, run_id = interrupted_copy, begun(interrupted_copy)
    kept = {path.name: path.read_bytes() for path in place.states[0].iterdir()}
    more = ("--optim.lr", "0.0001", "--resume", run_id, "--branch")
    assert place.train(*more) == 0, place.said
    old, new = runs_of(place.client)
    assert (old.info.run_id, new.info.status) == (run_id, "FINISHED")
    assert old.info.status == "KILLED"
    assert re.match(rf"{run_id} at step \d+", new.data.tags["runner.branch_of"])
    assert {path.name: path.read_bytes() for path in place.states[0].iterdir()} == kept
    got = points(place.client, new.info.run_id)
    assert [step for step, _ in got["train/loss"]] == [1, 2, 3]
    assert got["train/loss"][0] == whole.points["train/loss"][0]
    assert got["lr"][1][1] == pytest.approx(0.0001)
    assert place.train(*EVERY, "--resume", run_id) == 0, place.said
    assert points(place.client, run_id) == whole.points


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed.split", "7"], "or their split, are not those of run"),
        (["--train.epochs", "1"], "nothing is left to train"),
    ],
)
def test_a_branch_that_would_lie_is_refused(interrupted_copy: Place, words: list[str], said: str) -> None:
    """With another split it would be judged on images that it was trained on."""
    place, run_id = interrupted_copy, begun(interrupted_copy)
    assert place.train(*words, "--resume", run_id, "--branch") == 2
    assert said in place.said
    assert "Traceback" not in place.said
    _, branch = runs_of(place.client)
    assert branch.info.status == "FAILED"
    assert not [name for name in branch.data.metrics if name.startswith("test/")]


@pytest.mark.slow
def test_what_a_device_decided_is_kept_by_a_resume_that_fails(interrupted_copy: Place) -> None:
    place = interrupted_copy
    before = (place.states[0] / "run.json").read_bytes()
    words = [*place.words, "--data.root", str(place.folder / "nowhere"), "--resume", "auto"]
    assert Place(place.folder, words).train() == 2, place.said
    assert (place.states[0] / "run.json").read_bytes() == before


@pytest.mark.slow
def test_damaged_snapshots_are_passed_over(interrupted_copy: Place, whole: Told) -> None:
    place, run_id = interrupted_copy, begun(interrupted_copy)
    newest, *_ = snapshot.paths(place.states[0])
    newest.write_bytes(newest.read_bytes()[:-1])
    assert place.train(*EVERY, "--resume", "auto") == 0, place.said
    assert "taking an earlier one" in place.said
    check(place, whole, run_id)


@pytest.mark.slow
def test_without_a_whole_snapshot_a_run_begins_again(interrupted_copy: Place, whole: Told) -> None:
    place, run_id = interrupted_copy, begun(interrupted_copy)
    for path in snapshot.paths(place.states[0]):
        path.write_bytes(b"")
    assert place.train(*EVERY, "--resume", "auto") == 0, place.said
    assert "at the beginning" in place.said
    check(place, whole, run_id)


@pytest.mark.slow
def test_repeated_runs_go_on_in_the_seed_that_they_were_in(make_place: Make, tmp_path: Path) -> None:
    one, two = (make_place(tmp_path / name) for name in ("whole", "killed"))
    repeat = (*EVERY, "--repeat", "3")
    assert one.train(*repeat) == 0, one.said
    kill = Kill(r"replace .*/state/000001", 5, after=True)
    assert two.train(*repeat, kill=kill) == -signal.SIGKILL
    before = {run.info.run_id: run.info.status for run in runs_of(two.client)}
    assert sorted(before.values()) == ["FINISHED", "RUNNING", "RUNNING"]
    assert two.train(*repeat, "--resume", "auto") == 0, two.said
    assert "has finished before" in two.said
    told = []
    for place in (one, two):
        found = sorted(
            runs_of(place.client), key=lambda run: run.data.params["seed.train"] + run.info.run_name[:1]
        )
        assert {run.info.status for run in found} == {"FINISHED"}
        told.append(
            [
                (run.data.params["seed.train"], points(place.client, run.info.run_id))
                for run in sorted(
                    found,
                    key=lambda run: ("mlflow.parentRunId" in run.data.tags, run.data.params["seed.train"]),
                )
            ]
        )
        assert list(place.journals.iterdir()) == []
    assert told[0] == told[1]
    assert before.keys() <= {run.info.run_id for run in runs_of(two.client)}
    assert len(runs_of(two.client)) == 4


# Commands, and several processes


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """`started(words, folder)`: a command, which is gone after the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
        with (folder / "said").open("ab") as said:
            process = subprocess.Popen(words, env=environment(), stdout=said, stderr=said)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


def until_snapshot(place: Place, process: subprocess.Popen[bytes], which: str = "00000[2-9]-*") -> None:
    deadline = time.monotonic() + 150
    while not any(state.glob(which) for state in place.states if list(state.glob(which))):
        said = (place.folder / "said").read_text()
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.02)


def ranks(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that train, by rank."""
    found = [
        each
        for each in psutil.Process(process.pid).children(recursive=True)
        if "train.py" in " ".join(each.cmdline()) and "RANK" in each.environ()
    ]
    return sorted(
        (each for each in found if "accelerate.commands" not in " ".join(each.cmdline())),
        key=lambda each: int(each.environ()["RANK"]),
    )


LASTING = ("--train.epochs", "40", "--schedule.kind", "constant", "--tracking.gallery", "0")


@pytest.mark.slow
def test_a_command_that_is_told_to_stop_keeps_its_very_step(
    place: Place, make_place: Make, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    reference = make_place(place.folder / "reference")
    assert reference.train(*LASTING) == 0, reference.said
    process = started([*CLI, *place.words, *LASTING, *EVERY], place.folder)
    until_snapshot(place, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    (run,) = runs_of(place.client)
    assert (run.info.status, run.data.tags["runner.reason"]) == ("KILLED", "stopped by SIGTERM")
    kept, _ = snapshot.newest(place.states[0])
    assert kept is not None
    assert kept.step < 120
    assert place.train(*LASTING, "--resume", "auto") == 0, place.said
    (run,) = runs_of(place.client)
    assert run.info.status == "FINISHED"
    assert run.data.tags["runner.resumed"] == f"step {kept.step}"
    (other,) = runs_of(reference.client)
    assert points(place.client, run.info.run_id) == points(reference.client, other.info.run_id)


@pytest.fixture(scope="module")
def on_two(make_place: Make, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = make_place(tmp_path_factory.mktemp("two") / "place")
    outcome = command([*CLI, *place.words, *LASTING, "-n", "2"])
    assert outcome.returncode == 0, outcome.stderr
    return place


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("who", ["asked", "rank 1", "rank 0", "launcher", "asked, on one"])
def test_two_processes_go_on(
    place: Place, on_two: Place, started: Callable[..., subprocess.Popen[bytes]], who: str
) -> None:
    process = started([*CLI, *place.words, *LASTING, *EVERY, "-n", "2"], place.folder)
    until_snapshot(place, process)
    training = ranks(process)
    assert len(training) == 2
    if who.startswith("asked"):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    elif who == "launcher":
        process.kill()
        process.wait(10)
    else:
        training[int(who[-1])].kill()
        process.wait(60)
    _, alive = psutil.wait_procs(training, timeout=60)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE], "nothing hangs"
    said = (place.folder / "said").read_text()
    (run,) = runs_of(place.client)
    if who == "rank 1":
        assert process.returncode == 2, said
        assert "--resume auto" in one_sentence(said)
        assert run.info.status == "FAILED"
        assert "has ended without a word" in run.data.tags["runner.reason"]
    elif who == "rank 0":
        assert process.returncode in (2, 128 + signal.SIGKILL), said
        assert "--resume auto" in one_sentence(said)
        assert run.info.status in ("KILLED", "FAILED")
    else:
        assert run.info.status == "KILLED", said
    count = "1" if who.endswith("one") else "2"
    outcome = command([*CLI, *place.words, *LASTING, "-n", count, "--resume", "auto"])
    assert outcome.returncode == 0, outcome.stderr
    (run,) = runs_of(place.client)
    (other,) = runs_of(on_two.client)
    assert run.info.status == "FINISHED"
    got, wanted = points(place.client, run.info.run_id), points(on_two.client, other.info.run_id)
    if count == "2":
        assert got == wanted
    else:
        assert got.keys() == wanted.keys()
        for name in ("train/loss", "val/loss"):
            for (step, value), (other_step, other_value) in zip(got[name], wanted[name], strict=True):
                assert step == other_step
                assert value == pytest.approx(other_value, rel=1e-5 if step < 6 else 1e-3)
    assert list(place.journals.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 1.0, 3.0])
def test_a_launch_that_is_killed_while_it_starts_leaves_nobody_behind(
    place: Place, started: Callable[..., subprocess.Popen[bytes]], seconds: float
) -> None:
    process = started([*CLI, *place.words, *LONG], place.folder)
    until = time.monotonic() + 60
    while not any("train.py" in line for line in family(process).values()):
        assert process.poll() is None
        assert time.monotonic() < until
    time.sleep(seconds)
    launched = list(family(process))
    process.kill()
    _, alive = psutil.wait_procs(launched, timeout=30)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    words = [*CLI, *place.words, "--train.epochs", "1"]
    outcome = command(words)
    assert outcome.returncode == 0, outcome.stderr
    assert {run.info.status for run in runs_of(place.client)} <= {"FINISHED", "KILLED"}


def family(process: subprocess.Popen[bytes]) -> dict[psutil.Process, str]:
    """The processes that a command has started, with their command lines; those that end meanwhile are left out."""
    found = {}
    for each in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            found[each] = " ".join(each.cmdline())
    return found


SLOW_RANK = """
import os, sys, time
from runner import train
from runner.features import sources
if os.environ["RANK"] == "1":
    batches = sources.InMemorySource.batches
    def slow(self, asked):
        for rows in batches(self, asked):
            time.sleep(0.02)
            yield rows
    sources.InMemorySource.batches = slow
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_slow_process_changes_nothing(place: Place, on_two: Place, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW_RANK)
    words = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", "2"),
        *("--num_cpu_threads_per_process", "1", str(script), *place.words, *LASTING, *EVERY),
    ]
    outcome = subprocess.run(
        words,
        env={**environment(), "PYTHONPATH": str(RUNNER.parent)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    (run,), (other,) = runs_of(place.client), runs_of(on_two.client)
    assert points(place.client, run.info.run_id) == points(on_two.client, other.info.run_id)
