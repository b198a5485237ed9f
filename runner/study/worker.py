"""A worker of a study: asks for a trial, trains it on the training split, judges it on validation, and tells.

Rank 0 asks and decides; what it decided reaches its peers as exact values.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from runner.config.schema import Experiment, as_tree, as_yaml, flatten
from runner.evaluation.metrics import Scores
from runner.models import checkpoint
from runner.serving import packaging
from runner.study.plan import Plan
from runner.study.space import Value, applied
from runner.study.storage import HEARTBEAT
from runner.study.study import Asked, Study
from runner.tracking.sessions import Records
from runner.tracking.tracker import Pruned, Tracker
from runner.training import curves, run
from runner.training.loop import EpochResult
from runner.training.setup import Setup, SharedSetup, prepare
from runner.utils.console import Terminal
from runner.utils.cpu import cpu_count
from runner.utils.errors import UserError, user_message
from runner.utils.redaction import redact

T = TypeVar("T")


@dataclass
class Worker:
    """A long-lived process, or launch of several, that runs trials one after the other.

    Args:
        plan: The study's.
        study: In its storage; None on ranks beyond the first.
        accelerator: Device and peers.
        records: Begins the trials' runs.
        parent: The study's run.
        terminal: Shows the computing of features.
        stopping: Asked before each trial: whether to end.
    """

    plan: Plan
    study: Study | None
    accelerator: Accelerator
    records: Records
    parent: Tracker
    terminal: Terminal
    stopping: Callable[[], bool]
    shared: SharedSetup = field(default_factory=SharedSetup)

    def work(self) -> int:
        """Run trials until there are no more, or it is told to stop: their number.

        Raises `UserError` when too many trials failed in a row, or what every trial needs is out of reach.
        """
        done = 0
        over = threading.Event()
        if self.study is not None:
            threading.Thread(target=_beat, args=(self.study, over), name="heartbeat", daemon=True).start()
        try:
            while (asked := self._ask()) is not None:
                self._trial(asked)
                done += 1
        except BaseException as error:
            if self.study is not None:
                self.study.lost(f"stopped: {user_message(error) or error or type(error).__name__}")
            raise
        finally:
            over.set()
        return done

    def _ask(self) -> Asked | None:
        def choose() -> tuple[int, dict[str, Value], bool] | None:
            assert self.study is not None  # noqa: S101 (for types: rank 0 has one)
            if self.stopping():
                return None
            while True:
                try:
                    asked = self.study.ask()
                except UserError as error:  # a combination that cannot work
                    if not self.study.running:
                        raise
                    self._fail(str(error))
                    continue
                return None if asked is None else (asked.number, asked.values, asked.baseline)

        chosen = self._agreed(choose)
        if chosen is None:
            return None
        number, values, is_baseline = chosen
        experiment = self.plan.baseline if is_baseline else applied(self.plan.baseline, values)
        return Asked(number, values, experiment, is_baseline)

    def _trial(self, asked: Asked) -> None:
        study, began = self.study, time.monotonic()
        fitted = _Stopwatch()
        value = None
        try:
            with self.records.begin(asked.name, self.parent, works=False) as tracker:
                tracker.params(flatten(as_tree(asked.experiment)))
                tracker.tags({"runner.trial": str(asked.number), "runner.study": self.plan.name})
                if study is not None:
                    study.note(run=tracker.run_id)
                value = self._fits(asked, tracker, fitted)
        except Pruned as reason:
            self._tell("pruned", None, fitted, began, str(reason))
            return
        except Exception as error:
            if not self._only_this_trial(error):
                raise
            text = user_message(error) or f"{type(error).__name__}: {error}"
            if user_message(error) is None:
                print(redact(traceback.format_exc()), end="", file=sys.stderr)
            self._fail(text)
            return
        self._tell("complete", value, fitted, began)

    def _only_this_trial(self, error: Exception) -> bool:
        """Whether other trials may do better: not where the disk is full, nor where a peer may have gone on."""
        if isinstance(error, OSError):
            return False
        return isinstance(error, UserError) or self.accelerator.num_processes == 1

    def _fits(self, asked: Asked, tracker: Tracker, fitted: _Stopwatch) -> float:
        """Train the trial's fits: the mean of their scores."""
        best: list[Scores] = []
        first: tuple[Setup, list[EpochResult], dict[str, Tensor]] | None = None
        for place in range(self.plan.fits):
            seed = dataclasses.replace(asked.experiment.seed, train=asked.experiment.seed.train + place)
            ready = self._prepare(dataclasses.replace(asked.experiment, seed=seed))
            history, weights = self._learn(ready, place, tracker, fitted)
            best.append(next(epoch for epoch in reversed(history) if epoch.best).val)
            first = first or (ready, history, weights)
            if self.plan.fits > 1:
                self._report(place, best[-1][self.plan.objective], f"after fit {place + 1}")
        values = [scores[self.plan.objective] for scores in best]
        value = statistics.fmean(values)
        assert first is not None  # noqa: S101 (for types: there is a fit at least)
        ready, history, weights = first
        spread = {"objective_sd": statistics.stdev(values)} if len(values) > 1 else {}
        tracker.metrics({"objective": value, **spread, **best[0].metrics("val/best")})
        tracker.metrics({"best_epoch": next(epoch.number for epoch in reversed(history) if epoch.best)})
        if self.study is not None:
            self.study.note(
                scores=dict(best[0].values)
            )
            if self.study.better(value):
                _keep(ready, history, weights, tracker)
        return value

    def _prepare(self, experiment: Experiment) -> Setup:
        ready = prepare(experiment, self.accelerator, self.terminal, self.shared)
        needed = [each for each in run.wanted(experiment) if each[0] != "test"]
        if ready.features.reserve(needed).images and ready.features.stored:
            with whole_machine():
                for split, view in needed:
                    ready.features.rows(split, view)
        return ready

    def _learn(
        self, ready: Setup, place: int, tracker: Tracker, fitted: _Stopwatch
    ) -> tuple[list[EpochResult], dict[str, Tensor]]:
        history: list[EpochResult] = []
        weights: dict[str, Tensor] = {}
        prefix = f"fit{place}/" if place else ""

        def on_epoch(epoch: EpochResult) -> None:
            history.append(epoch)
            if epoch.best:
                weights.update(
                    {name: value.detach().clone() for name, value in ready.network.parts()[0].items()}
                )
            values = {f"{prefix}{name}": value for name, value in epoch.metrics().items()}
            tracker.metrics(values, epoch.number)
            if self.plan.fits == 1:
                self._report(
                    epoch.number, epoch.val[self.plan.objective], f"at epoch {epoch.number}"
                )

        with fitted:
            run.learn(ready, self.accelerator, on_epoch, Terminal(enabled=False))
        return history, weights

    def _report(self, step: int, value: float, when: str) -> None:
        """Tell the study; all processes give the trial up together where it says so."""
        if self._agreed(lambda: self.study is not None and self.study.report(step, value)):
            raise Pruned(f"pruned {when}, at {value:.4f}")

    def _agreed(self, decide: Callable[[], T]) -> T:
        """What rank 0 decides, on every rank."""
        decided: T = broadcast_object_list([decide() if self.study is not None else None])[0]
        return decided

    def _tell(
        self, state: str, value: float | None, fitted: _Stopwatch, began: float, reason: str = ""
    ) -> None:
        if self.study is not None:
            self.study.note(fit_seconds=fitted.seconds, seconds=time.monotonic() - began)
            if reason:
                self.study.note(reason=reason)
            self.study.tell(state, value)

    def _fail(self, reason: str) -> None:
        if self.study is not None:
            self.study.note(reason=reason)
            self.study.tell("failed")


def _keep(ready: Setup, history: list[EpochResult], weights: dict[str, Tensor], tracker: Tracker) -> None:
    """Checkpoint and pictures of the best trial so far."""
    network = ready.network
    network.load_state_dict(weights, strict=False)
    best = next(epoch for epoch in reversed(history) if epoch.best)
    path = tracker.stage("checkpoints/best.safetensors")
    checkpoint.save_frozen(network, path.parent)
    use = packaging.inference_settings(ready.experiment)
    checkpoint.save(network, path, best.number, best.val.to_dict(), checkpoint.frozen_digest(network), use)
    for file in (path, path.parent / checkpoint.FROZEN):
        tracker.artifact(file, "checkpoints")
    tracker.text("experiment.yaml", as_yaml(ready.experiment))
    loss, accuracy = (tracker.stage(f"figures/{name}.png") for name in ("loss", "accuracy"))
    curves.curves(history, f"{ready.experiment.name}, {tracker.name}", loss, accuracy)
    for file in (loss, accuracy):
        tracker.artifact(file, "figures")
    tracker.tags({"runner.best_when_run": "true"})


class _Stopwatch:
    """Adds up the seconds of the blocks that it is entered for."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self._began


def _beat(study: Study, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT):
        study.beat()


ALL_CORES: set[int] = set()
"""The cores that this worker may use while it computes features: its share is meant for fitting."""


def pin(worker: int, workers: int, threads: int | None) -> None:
    """Give this process its share of the host's cores, `threads` of them or an even part."""
    if not hasattr(os, "sched_setaffinity"):
        torch.set_num_threads(threads or max(1, cpu_count() // workers))
        return
    ALL_CORES.update(os.sched_getaffinity(0))
    here = sorted(ALL_CORES)
    share = threads or max(1, len(here) // workers)
    os.sched_setaffinity(0, {here[(worker * share + place) % len(here)] for place in range(share)})
    torch.set_num_threads(share)


@contextmanager
def whole_machine() -> Iterator[None]:
    """Compute with all cores of the host: the other workers wait for the same features, or read kept ones."""
    if not ALL_CORES:
        yield
        return
    own, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, ALL_CORES)
    torch.set_num_threads(len(ALL_CORES))
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)
        torch.set_num_threads(threads)
