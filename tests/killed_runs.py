"""Runs in processes that kill themselves at a given moment, and what MLflow must have when they were resumed."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from commands import client_of, runs_of
from pictures import small_experiment
from stores import copy_store

from runner import train
from runner.tracking.interrupted_runs import RunRecord, write_record
from runner.tracking.journal import Journal
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.moved_records import adopt_records
from runner.tracking.recovery import recover_runs
from runner.utils.console import Terminal
from runner.utils.exit_status import run_main
from runner.utils.signals import interrupt_on_signals

PRELOADED = ["runner.train", "runner.training.repeated", "mlflow.tracking.client"]
"""Loaded once, before processes are forked. Only installed packages: the server that forks has no other path."""
EVERY_STEP = ("--checkpoints.minutes", "0")
"""A snapshot at every step."""
DURATIONS = ("epoch_seconds", "images_per_second", "system/")
"""Starts of the names of metrics that say how long something took, or what the cache did."""


@dataclass(frozen=True)
class Kill:
    """When a process kills itself.

    Args:
        pattern: Of the operation at which it does; empty: none.
        nth: The how-manieth such operation, from 1.
        after: After the operation, not before.
        seconds: After this time; 0: never.
    """

    pattern: str = ""
    nth: int = 1
    after: bool = False
    seconds: float = 0.0


@dataclass
class _Trap:
    """Logs operations on files and stores, and kills the process at one of them."""

    kill: Kill
    log: Path
    seen: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def wrap(self, owner: Any, name: str, describe: Callable[..., str]) -> None:
        """Log a function's calls as its name and `describe` of its arguments."""
        function = getattr(owner, name)

        def wrapped(*args: Any, **named: Any) -> Any:
            operation = f"{name} {describe(*args)}"
            self._pass(operation, after=False)
            result = function(*args, **named)
            self._pass(operation, after=True)
            return result

        setattr(owner, name, wrapped)

    def _pass(self, operation: str, after: bool) -> None:
        with self.lock:
            if not after:
                self._write(operation)
            if self.kill.pattern and after == self.kill.after and re.search(self.kill.pattern, operation):
                self.seen += 1
                if self.seen == self.kill.nth:
                    self._write(f"killed {'after' if after else 'before'} {operation}")
                    os.kill(os.getpid(), signal.SIGKILL)
                    time.sleep(10)

    def _write(self, line: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{line}\n")


def _train(words: list[str], kill: Kill, log: Path) -> None:
    """`runner/train.py` in a forked process, whose output goes to a file beside `log`."""
    import mlflow
    from mlflow.tracking.client import TrackingServiceClient
    from sqlalchemy.engine.default import DefaultDialect

    os.environ["ACCELERATE_USE_CPU"] = "true"
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    torch.set_num_threads(1)
    with log.with_suffix(".output").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    trap = _Trap(kill, log)
    trap.wrap(os, "fsync", lambda handle, *_: os.readlink(f"/proc/self/fd/{handle}"))
    trap.wrap(os, "replace", lambda source, target, *_: str(target))
    trap.wrap(os, "rename", lambda source, target, *_: str(target))
    trap.wrap(os, "unlink", lambda path, *_: str(path))
    trap.wrap(shutil, "rmtree", lambda path, *_: str(path))
    trap.wrap(DefaultDialect, "do_commit", lambda *_: "")
    for name in ("log_batch", "set_terminated", "create_run"):
        trap.wrap(TrackingServiceClient, name, lambda *_: "")
    trap.wrap(mlflow.MlflowClient, "log_artifact", lambda client, run_id, path, *_: str(path))
    if kill.seconds:
        timer = threading.Timer(kill.seconds, lambda: os.kill(os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    interrupt_on_signals()
    os._exit(run_main(lambda: train.main(words)))


@dataclass
class Workspace:
    """A store, a cache, and the words of a small experiment that uses them."""

    folder: Path
    words: list[str]

    @property
    def journals(self) -> Path:
        return self.folder / "mlruns" / "journals"

    @property
    def states(self) -> list[Path]:
        """The state folders of the runs that have a journal."""
        return sorted(self.journals.glob("*/state"))

    @property
    def output(self) -> str:
        """What the trainings here have printed."""
        return (self.folder / "log.output").read_text()

    @property
    def client(self) -> Any:
        return client_of(self.folder)

    @property
    def interrupted(self) -> str:
        """Id of the run that can be resumed; empty if there is none."""
        return next((state.parent.name for state in self.states if (state / "run.json").exists()), "")

    @property
    def has_finished_run(self) -> bool:
        """Whether a run is finished, or at least its end is in its journal."""
        ended = (journal for journal in Journal.find_all(self.journals) if journal.ended)
        return any(journal.events()[-1]["status"] == "FINISHED" for journal in ended) or any(
            each.info.status == "FINISHED" for each in runs_of(self.client)
        )

    def train(self, *more: str, kill: Kill | None = None, timeout: float = 120) -> int:
        """Train in a process forked from one that has loaded everything already; its exit status."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        arguments = ([*self.words, *more], kill or Kill(), self.folder / "log")
        process = context.Process(target=_train, args=arguments)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError(f"it hangs: {self.output[-3000:]}")
        return int(process.exitcode)

    def finish(self) -> None:
        """Bring a killed run to its end: deliver it if it is finished, otherwise resume it."""
        if self.has_finished_run:
            self.recover()
        else:
            assert self.train(*EVERY_STEP, "--resume", "auto") == 0, self.output

    def recover(self) -> None:
        """What the next command does with the records of dead processes."""
        server = tracking_server(str(self.folder / "mlruns"))
        recover_runs(server, server.connect(), Terminal(enabled=False))

    def change_record(self, **values: Any) -> None:
        """Change what the record of the only run says."""
        content = json.loads((self.states[0] / "run.json").read_text())
        del content["digest"]
        write_record(self.states[0], replace(RunRecord.from_dict(content), **values))

    def copy(self, folder: Path) -> Workspace:
        """A copy of the workspace, whose store knows its new place."""
        shutil.copytree(self.folder, folder)
        adopt_records(folder / "mlruns")
        old, new = str(self.folder), str(folder)
        return Workspace(folder, [word.replace(old, new) for word in self.words])


def new_workspace(folder: Path, images: Path, mlflow_template: Path) -> Workspace:
    """A workspace with an empty store and an empty cache."""
    root = copy_store(mlflow_template, folder / "mlruns")
    words = [
        *small_experiment(images, folder / "cache", root),
        *("--features.compile", "false", "--schedule.kind", "reduce_on_drop"),
        *("--tracking.gallery", "2", "--tracking.gallery_every", "2"),
    ]
    return Workspace(folder, words)


@dataclass(frozen=True)
class WholeRun:
    """What MLflow has of a run that nothing interrupted."""

    points: dict[str, list[tuple[int, float]]]
    artifacts: list[str]
    params: dict[str, str]
    operations: list[str]
    """The logged operations of its process."""


def train_whole(workspace: Workspace) -> WholeRun:
    """Train a run without interruption."""
    assert workspace.train(*EVERY_STEP) == 0, workspace.output
    (finished,) = runs_of(workspace.client)
    assert finished.info.status == "FINISHED"
    run_id = finished.info.run_id
    return WholeRun(
        points(workspace.client, run_id),
        artifacts(workspace.client, run_id),
        _params(finished),
        (workspace.folder / "log").read_text().splitlines(),
    )


def assert_same_run(workspace: Workspace, whole: WholeRun, run_id: str = "") -> None:
    """Check that the store has one finished run with all that an uninterrupted one has, and nothing else is left.

    Args:
        workspace: The store.
        whole: The uninterrupted run.
        run_id: Of the finished run, which must be the only one. Empty: others may have been killed before there was
            anything to resume from.
    """
    client = workspace.client
    everything = runs_of(client)
    finished = [each for each in everything if each.info.status == "FINISHED"]
    assert len(finished) == 1, [(each.info.status, each.data.tags) for each in everything]
    (found,) = finished
    assert {each.info.status for each in everything} <= {"FINISHED", "KILLED"}
    if run_id:
        assert [each.info.run_id for each in everything] == [run_id]
    assert not {"runner.reason", "runner.refused"} & found.data.tags.keys()
    assert points(client, found.info.run_id) == whole.points
    assert artifacts(client, found.info.run_id) == whole.artifacts
    assert _params(found) == whole.params
    assert [path.name for path in workspace.journals.iterdir()] == []
    # A partial file in the cache stays until its folder is used again; there may be none among the records.
    assert not list((workspace.folder / "mlruns").rglob("*.partial"))


def _params(found: Any) -> dict[str, str]:
    return {k: v for k, v in found.data.params.items() if k not in ("cache", "tracking.root")}


def points(client: Any, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Each metric's points, without metrics that differ between equal runs."""
    names = [name for name in client.get_run(run_id).data.metrics if not name.startswith(DURATIONS)]
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in sorted(names)
    }


def artifacts(client: Any, run_id: str, folder: str | None = None) -> list[str]:
    """Paths of all artifacts, without times and identifiers in the pictures' names."""
    found: list[str] = []
    for each in client.list_artifacts(run_id, folder):
        if each.is_dir:
            found += artifacts(client, run_id, each.path)
        else:
            found.append(re.sub(r"timestamp\+\d+\+[0-9a-f-]+", "", each.path))
    return sorted(found)


def timestamps(client: Any, run_id: str, name: str) -> list[int]:
    """When a metric's points were logged, by step."""
    history = sorted(client.get_metric_history(run_id, name), key=lambda point: point.step)
    return [point.timestamp for point in history]
