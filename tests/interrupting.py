"""Ways to interrupt fits and runs, and what a run that went on must have in common with one that never stopped."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import torch
from accelerate import Accelerator
from helpers import QUIET, Matrix
from mlflow.tracking.client import TrackingServiceClient
from sqlalchemy.engine.default import DefaultDialect
from torch import Tensor

from runner import train
from runner.config.schema import CheckpointsConfig, Experiment
from runner.models.transfer_model import TransferModel
from runner.training import run, snapshot
from runner.training import seeds as repeat
from runner.training.loop import EpochResult, LabeledFeatures, fit
from runner.training.snapshot_policy import Keeping
from runner.utils.errors import UserError
from runner.utils.exit_status import run_main
from runner.utils.signals import interrupt_on_signals, stop_signals

__all__ = ["repeat", "run"]  # loaded before processes are forked

# Fits


@dataclass(frozen=True)
class Stop:
    """Where a fit is interrupted, and how.

    Args:
        where: train: while the batch `number` (of all, from 1) is fetched; val: while epoch `number` (from 1) is
            judged; epoch: by `on_epoch` of it.
        number: See there.
        how: signal, or error.
    """

    where: str
    number: int
    how: str = "signal"

    def now(self) -> None:
        """Interrupt."""
        if self.how == "signal":
            signal.raise_signal(signal.SIGTERM)
        else:
            raise UserError("The image cannot be read.")


class Interruptible:
    """Inputs that interrupt."""

    def __init__(self, values: Sequence[Tensor], labels: list[int], stop: Stop | None) -> None:
        self.values = values
        self.labels = labels
        self.stop = stop
        self.fetched = 0
        self.judged = 0

    def train(self, epoch: int) -> Any:
        return _Rows(self, Matrix(self.values[epoch % len(self.values)]))

    def val(self, epoch: int) -> Matrix:
        self.judged = epoch + 1
        if self.stop and (self.stop.where, self.stop.number) == ("val", self.judged):
            self.stop.now()
        return Matrix(_noisy(self.values[0], epoch))


def _noisy(values: Tensor, epoch: int) -> Tensor:
    """Harder in every other epoch: scores that go up and down."""
    if not values.is_floating_point():
        return values.flip(0)
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(epoch))
    return values + 20 * (epoch % 2) * noise


@dataclass
class _Rows:
    whose: Interruptible
    rows: Matrix

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        for values in self.rows.batches(batches):
            self.whose.fetched += 1
            stop = self.whose.stop
            if stop and (stop.where, stop.number) == ("train", self.whose.fetched):
                stop.now()
            yield values


@contextmanager
def interruptible() -> Iterator[None]:
    """Signals interrupt within the block, as in a command."""
    before = {each: signal.getsignal(each) for each in stop_signals()}
    interrupt_on_signals()
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@dataclass
class Fitted:
    """What came of a fit, or of a part of one."""

    history: list[EpochResult]
    learned: dict[str, Tensor]
    raised: BaseException | None = None

    def agrees(self, other: Fitted) -> None:
        """See that it is the same to the last bit."""
        assert plain(self.history) == plain(other.history)
        for mine, theirs in zip(self.history, other.history, strict=True):
            if mine.number == max(each.number for each in self.history if each.best):
                assert torch.equal(mine.judged, theirs.judged)
        assert self.learned.keys() == other.learned.keys()
        for name, value in self.learned.items():
            assert torch.equal(value, other.learned[name]), name


def plain(history: Sequence[EpochResult]) -> list[dict[str, Any]]:
    """Epochs without how long they took."""
    return [
        {k: v for k, v in each.as_json().items() if k not in ("seconds", "images_per_second")}
        for each in history
    ]


def part_of_a_fit(
    experiment: Experiment,
    network: TransferModel,
    values: Sequence[Tensor],
    labels: list[int],
    accelerator: Accelerator,
    folder: Path | None = None,
    stop: Stop | None = None,
    settings: CheckpointsConfig | None = None,
    changed: bool = False,
    damaged: bool = False,
) -> Fitted:
    """Fit until it is over or interrupted; from the newest snapshot in a folder, where there is one.

    Only where `damaged` is expected may a snapshot be passed over.
    """
    rows, heard = Interruptible(values, labels, stop), []
    keeper = None
    if folder is not None:
        resumed, faults = snapshot.newest(folder)
        assert bool(faults) == damaged
        keeper = Keeping(folder, settings or CheckpointsConfig(minutes="never"), lambda: ({}, {}), resumed, changed)
        if resumed is not None:
            rows.fetched = 0

    def on_epoch(epoch: EpochResult) -> None:
        heard.append(epoch)
        if stop and (stop.where, stop.number) == ("epoch", epoch.number):
            stop.now()

    def outcome(history: list[EpochResult], raised: BaseException | None = None) -> Fitted:
        learned = {name: value.detach().clone() for name, value in network.trainable_state().items()}
        return Fitted(history, learned, raised)

    with interruptible():
        try:
            history = fit(
                experiment,
                network,
                LabeledFeatures(rows.train, labels),
                LabeledFeatures(rows.val, labels),
                accelerator,
                8,
                on_epoch,
                QUIET,
                keeper,
            )
        except BaseException as error:
            return outcome(heard, error)
    return outcome(history)


# Runs, in processes of their own that are killed


@dataclass(frozen=True)
class Kill:
    """When a process kills itself.

    Args:
        pattern: Of the file operation at which it does; empty: none.
        nth: So many of them, from 1.
        after: Rather than before it.
        seconds: From the start of the command; 0: never.
    """

    pattern: str = ""
    nth: int = 1
    after: bool = False
    seconds: float = 0.0


@dataclass
class _Trap:
    """Counts operations, notes them down, and kills."""

    kill: Kill
    log: Path
    seen: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def at(self, what: str, after: bool) -> None:
        with self.lock:
            if not after:
                with self.log.open("a") as file:
                    file.write(f"{what}\n")
            if self.kill.pattern and after == self.kill.after and re.search(self.kill.pattern, what):
                self.seen += 1
                if self.seen == self.kill.nth:
                    with self.log.open("a") as file:
                        file.write(f"killed {'after' if after else 'before'} {what}\n")
                    os.kill(os.getpid(), signal.SIGKILL)
                    time.sleep(10)

    def wrap(self, where: Any, name: str, say: Callable[..., str]) -> None:
        inner = getattr(where, name)

        def outer(*given: Any, **named: Any) -> Any:
            what = f"{name} {say(*given)}"
            self.at(what, False)
            result = inner(*given, **named)
            self.at(what, True)
            return result

        setattr(where, name, outer)


def _opened(handle: int, *_: object) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")


def _child(words: list[str], kill: Kill, log: Path) -> None:
    """Train, as a command would."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    with log.with_suffix(".said").open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    trap = _Trap(kill, log)
    trap.wrap(os, "fsync", _opened)
    trap.wrap(os, "replace", lambda a, b, *_: str(b))
    trap.wrap(os, "unlink", lambda a, *_: str(a))
    trap.wrap(os, "rename", lambda a, b, *_: str(b))
    trap.wrap(shutil, "rmtree", lambda a, *_: str(a))
    trap.wrap(DefaultDialect, "do_commit", lambda *_: "")
    for name in ("log_batch", "set_terminated", "create_run"):
        trap.wrap(TrackingServiceClient, name, lambda *_: "")
    trap.wrap(mlflow.MlflowClient, "log_artifact", lambda a, b, c, *_: str(c))
    if kill.seconds:
        timer = threading.Timer(kill.seconds, lambda: os.kill(os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    interrupt_on_signals()
    os._exit(run_main(lambda: train.main(words)))


def forks() -> Any:
    """Where processes come from that have loaded everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["interrupting"])
    return context


def command_in_a_fork(words: list[str], log: Path, kill: Kill | None = None, patience: float = 120) -> int:
    """The exit status of `runner train WORDS`; what it said and did is in `log`.said and `log`."""
    process = forks().Process(target=_child, args=(words, kill or Kill(), log))
    process.start()
    process.join(patience)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"it hangs: {log.with_suffix('.said').read_text()[-3000:]}")
    return int(process.exitcode)


# What is in a store


LOOSE = ("epoch_seconds", "images_per_second", "system/", "features/", "checkpoints/")
"""Metrics that say how long something took."""


def points(client: Any, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Each metric's points but of those that tell of time."""
    names = [name for name in client.get_run(run_id).data.metrics if not name.startswith(LOOSE)]
    return {
        name: [(each.step, each.value) for each in client.get_metric_history(run_id, name)]
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


def times(client: Any, run_id: str, name: str) -> list[int]:
    """When a metric's points were taken, by step."""
    history = sorted(client.get_metric_history(run_id, name), key=lambda each: each.step)
    return [each.timestamp for each in history]


def copied(snapshot_: snapshot.Snapshot) -> snapshot.Snapshot:
    """A snapshot whose tensors are its own."""
    return dataclasses.replace(snapshot_, tensors={n: v.clone() for n, v in snapshot_.tensors.items()})
