"""Runs in MLflow: a single one, or several as children of a parent run: with other seeds, on the folds of a split."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from runner.config.effective import decisive_settings
from runner.config.identity import Identity
from runner.config.repeat import Repeat
from runner.config.schema import Experiment
from runner.config.tree import as_tree
from runner.data.images import SPLITS
from runner.data.manifest import Manifest
from runner.features.in_memory import InMemoryFeatures
from runner.models.dropout import remember_masks
from runner.tracking.interrupted_runs import STATE_FOLDER, RunRecord, resolved_settings, write_record
from runner.tracking.sessions import TrackingSession, reproduced_run
from runner.tracking.tracker import Tracker
from runner.training import devices, fold_results, run, summary
from runner.training.build_model import check_model
from runner.training.error_translation import translate_errors
from runner.training.fold_results import FoldStore
from runner.training.preflight import check_workers, warn_about_images, warn_about_statistics
from runner.training.results import RunResult
from runner.training.resume import ResumePoint, resolve_child
from runner.training.run_names import run_name
from runner.training.setup import SharedSetup, prepare
from runner.training.side_by_side import train_side_by_side
from runner.training.spread import Results
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.errors import NotResumableError
from runner.utils.long_wait import long_wait
from runner.utils.signals import handle_signals


def train(
    experiment: Experiment,
    repeat: Repeat,
    accelerator: Accelerator,
    terminal: Terminal,
    start: ResumePoint | None = None,
    workers: int = 1,
) -> list[RunResult]:
    """Train an experiment once, or several times: with seeds that count up from its own, on all folds of its split.

    Prints the results.

    Args:
        experiment: What to train.
        repeat: How often, and with which other seeds.
        accelerator: Device, precision and processes.
        terminal: Shows progress and results.
        start: Where an interrupted run continues; None: a new run.
        workers: How many of several runs are trained at a time, each on its share of the CPU's cores.

    Raises `UserError` as `run.train` does, and if another process works on the run to resume.
    """
    runs = len(repeat.experiments(experiment))
    check_workers(workers, runs, accelerator.num_processes, accelerator.device.type == "cpu")
    check_model(experiment)
    start = start or ResumePoint(as_tree(experiment))
    session = TrackingSession(experiment, accelerator, terminal)
    original = reproduced_run()[1]
    own_name = run_name(experiment) + f" repeat={repeat.count}" * (repeat.count > 1)
    name = f"reproduction of {original}" if original else start.name or own_name
    if repeat.experiments(experiment) == [experiment]:
        with session.start_run(name, resume=start.run_id) as tracker:
            result = run.train(experiment, accelerator, tracker, terminal, start)
        with handle_signals(signal.SIG_IGN):  # it is finished
            summary.print_result(result, terminal)
            summary.print_run(experiment, tracker, terminal)
        return [result]
    over = repeat.describe(experiment)
    with session.start_run(name, system_metrics=False, resume=start.run_id) as parent:
        training = _RepeatedTraining(accelerator, terminal, session, parent, start, workers)
        with translate_errors(experiment, accelerator):
            children = training.train(experiment, repeat)
        results = [result for result, _ in children]
        spread = Results(results, len(results) // repeat.count, repeat.over)
        parent.log_metrics(spread.metrics())
        parent.log_params({"repeat": repeat.count, "repeat_over": repeat.over})
        parent.set_tags({"mlflow.note.content": spread.describe(over)})
        summary.print_spread(spread, over, terminal)
        if experiment.split.is_cross_validation:
            training.report_folds(repeat)
    if experiment.split.is_cross_validation:
        summary.print_cross_validation(experiment, parent, children[0][1], terminal)
        return results
    scores = [(result.best_epoch.val["top1"], -result.best_epoch.val["loss"]) for result in results]
    # Scores on other splits are of other images: then none of the runs is the best.
    best = scores.index(max(scores)) if repeat.over == "seed" else 0
    summary.print_run(experiment, children[best][1], terminal)
    return results


@dataclass
class _RepeatedTraining:
    """Trains an experiment several times, as children of a run."""

    accelerator: Accelerator
    terminal: Terminal
    session: TrackingSession
    parent: Tracker
    start: ResumePoint
    workers: int = 1
    """Runs at a time."""
    shared: SharedSetup = field(default_factory=SharedSetup)
    """Scanned images and features of all children."""
    state: Path | None = None
    """The parent's state folder; None on ranks other than 0."""
    runs: list[tuple[Experiment, str]] = field(default_factory=list)
    """Experiment and label of each child."""

    def train(self, experiment: Experiment, repeat: Repeat) -> list[tuple[RunResult, Tracker]]:
        """Train all; those that were finished before an interruption are not trained again.

        Raises `NotResumableError` if images or weights are not those of the runs before.
        """
        # The accelerator has resolved the precision; the children resolve the rest.
        resolved = dataclasses.replace(experiment.train, precision=self.accelerator.mixed_precision)
        if experiment.split.is_cross_validation:
            remember_masks()
        each_run = repeat.experiments(dataclasses.replace(experiment, train=resolved))
        self.runs = [(_without_model(each), repeat.label(each)) for each in each_run]
        known = self._identity(self.runs[0][0])
        self.parent.log_params(decisive_settings(experiment))
        self.state = self.parent.local_folder(STATE_FOLDER) if self.accelerator.is_main_process else None
        if self.state is not None:
            record = RunRecord(
                self.parent.name,
                self.start.requested,
                resolved_settings(each_run[0]),
                repeat=repeat.count,
                repeat_over=repeat.over,
                manifest=known.manifest,
                weights=known.weights,
            )
            write_record(self.state, record)
            if self.workers > 1 and self._count_finished() < len(self.runs):
                self._train_side_by_side(known.weights)
        children = []
        for each, label in self.runs:
            result, tracker = self.train_one(each, label, known.weights)
            children.append((result, tracker))
            summary.print_result(result, self.terminal)
        return children

    def _train_side_by_side(self, weights: str) -> None:
        """Train what is not finished in processes of its own. What these leave, since they failed, is left here too."""
        self._compute_features()
        assert self.state is not None  # noqa: S101 (for types: this is rank 0)
        work = _SharedWork(self.runs, weights, self.parent.run_id, self.parent.name, self.start, self.state)
        workers = min(self.workers, len(self.runs))
        self.terminal.line(f"training {len(self.runs)} runs, {workers} at a time", style="bold")
        train_side_by_side(work.open, len(self.runs), workers, self._count_finished, self.terminal)

    def _compute_features(self) -> None:
        """Compute what the store lacks on all cores, before each worker has a share of them."""
        experiment = self.runs[0][0]
        shared = dataclasses.replace(self.shared, in_memory=InMemoryFeatures(), features={})
        setup = prepare(experiment, self.accelerator, self.terminal, shared)
        for features, wanted in setup.required_features:
            if experiment.split.folds is not None:  # in other folds, each image is one to train on
                wanted = list({(split, view): None for split in SPLITS for _, view in wanted})
            if features.stored and features.reserve_space(wanted).features:
                for split, view in wanted:
                    features.get(split, view)
                self.parent.log_metrics(features.stats.metrics())

    def _count_finished(self) -> int:
        assert self.state is not None  # noqa: S101 (for types: only rank 0 counts)
        return sum(self._result_file(self.state, label).exists() for _, label in self.runs)

    def report_folds(self, repeat: Repeat) -> None:
        """Log and print the out-of-fold predictions of all children, on rank 0."""
        if self.state is None:
            return
        manifests = {label: self.shared.manifest(each, self.terminal) for each, label in self.runs}
        result = fold_results.collect(self.runs, manifests, FoldStore(self.state))
        fold = manifests[self.runs[0][1]].fold
        fold_results.report(result, repeat, fold, self.parent, self.terminal)

    def _identity(self, experiment: Experiment) -> Identity:
        """Images and weights of the first run, which a run that is resumed must still have."""
        with long_wait(), self.accelerator.local_main_process_first():
            manifest = self.shared.manifest(experiment, self.terminal)
            warn_about_images(manifest, self.terminal)
        if experiment.split.folds is not None:
            warn_about_statistics(experiment, self.terminal)
        now = Identity.on_images(experiment, manifest.digest)
        for has_changed, what in (
            (self.start.identity.has_other_images(now), f"The images in {manifest.root}, or their split,"),
            (self.start.identity.has_other_weights(now), "The pretrained weights"),
        ):
            if has_changed:
                raise NotResumableError(
                    f"{what} are not those of run {self.start.run_id[:8]}; restore them, or start a new run."
                )
        self.parent.set_tags(now.tags())
        return now

    def train_one(self, experiment: Experiment, label: str, weights: str) -> tuple[RunResult, Tracker]:
        """Train one of the runs.

        Args:
            experiment: With its seeds and its fold.
            label: What distinguishes it from the others.
            weights: Digest of the pretrained weights that it must have.
        """
        terminal, name = self.terminal, f"{label} of {self.parent.name}"
        with long_wait(), self.accelerator.local_main_process_first():
            manifest = self.shared.manifest(experiment, terminal)
        with long_wait():  # rank 0 may still upload the run before
            experiment, start = resolve_child(
                experiment, self.start.requested, self.parent.run_id, self.accelerator, terminal
            )
        if not start.run_id:
            start = dataclasses.replace(start, identity=Identity(manifest=manifest.digest, weights=weights))
        finished = broadcast_object_list([self._read_finished(label, manifest)])[0]
        if finished is not None and not start.run_id:
            terminal.line(f"{label} is finished: run {finished['run_id'][:8]}")
            return RunResult.from_dict(finished["result"]), _tracker_of(finished["run_id"], name)
        terminal.line(f"training {label}", style="bold")
        with self.session.start_run(name, self.parent, resume=start.run_id) as tracker:
            result = run.train(experiment, self.accelerator, tracker, terminal, start, self.shared)
            self._save_finished(
                label, tracker.run_id, result
            )  # before it ends: then it can no longer be resumed
        return RunResult.from_dict(result.to_dict()), tracker

    def _save_finished(self, label: str, run_id: str, result: RunResult) -> None:
        if self.state is None:
            return
        if result.on_fold is not None:
            FoldStore(self.state).save(label, result.on_fold)
        content = json.dumps({"run_id": run_id, "result": result.to_dict()})
        write_text(self._result_file(self.state, label), content)

    def _read_finished(self, label: str, manifest: Manifest) -> dict[str, Any] | None:
        """Run id and result of a run that was finished; None if it was not, and on ranks other than 0."""
        if self.state is None:
            return None
        try:
            finished: dict[str, Any] = json.loads(
                self._result_file(self.state, label).read_text(encoding="utf-8")
            )
            RunResult.from_dict(finished["result"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if manifest.fold and FoldStore(self.state).load(label, manifest) is None:
            return None
        return finished

    @staticmethod
    def _result_file(state: Path, label: str) -> Path:
        return state / f"{label.replace(' ', '-')}.json"


@dataclass(frozen=True)
class _SharedWork:
    """What a worker needs to train the runs of a repeated run."""

    runs: list[tuple[Experiment, str]]
    """Experiment and label of each."""
    weights: str
    """Digest of the pretrained weights."""
    parent_id: str
    parent_name: str
    start: ResumePoint
    state: Path

    def open(self) -> Callable[[int], object]:
        """In a worker: the function that trains the run with an index."""
        experiment, quiet = self.runs[0][0], Terminal(enabled=False)
        if experiment.split.folds is not None:
            remember_masks()
        accelerator = devices.create_accelerator(experiment)
        session = TrackingSession(experiment, accelerator, quiet)
        parent = _tracker_of(self.parent_id, self.parent_name)
        training = _RepeatedTraining(accelerator, quiet, session, parent, self.start, state=self.state)
        return lambda index: training.train_one(*self.runs[index], self.weights)


def _without_model(experiment: Experiment) -> Experiment:
    """The experiment; on a fold it keeps no model to use, which would lack the images of the fold."""
    if experiment.split.folds is None:
        return experiment
    tracking = dataclasses.replace(experiment.tracking, model=False, gallery=0)
    return dataclasses.replace(experiment, tracking=tracking)


def _tracker_of(run_id: str, name: str) -> Tracker:
    """A tracker that logs nothing, of a run that another process logs."""
    tracker = Tracker()
    tracker.run_id, tracker.name = run_id, name
    return tracker
