"""Runs in MLflow: a single one, or several as children of a parent run: with other seeds, on the folds of a split."""

from __future__ import annotations

import dataclasses
import json
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
from runner.data.manifest import Manifest
from runner.tracking.interrupted_runs import STATE_FOLDER, RunRecord, resolved_settings, write_record
from runner.tracking.sessions import TrackingSession, reproduced_run
from runner.tracking.tracker import Tracker
from runner.training import fold_results, run, summary
from runner.training.error_translation import translate_errors
from runner.training.fold_results import FoldStore
from runner.training.preflight import warn_about_images, warn_about_statistics
from runner.training.results import RunResult
from runner.training.resume import ResumePoint, resolve_child
from runner.training.run_names import run_name
from runner.training.setup import SharedSetup
from runner.training.spread import Results
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.errors import NotResumableError
from runner.utils.long_wait import long_wait


def train(
    experiment: Experiment,
    repeat: Repeat,
    accelerator: Accelerator,
    terminal: Terminal,
    start: ResumePoint | None = None,
) -> list[RunResult]:
    """Train an experiment once, or several times: with seeds that count up from its own, on all folds of its split.

    Prints the results.

    Args:
        experiment: What to train.
        repeat: How often, and with which other seeds.
        accelerator: Device, precision and processes.
        terminal: Shows progress and results.
        start: Where an interrupted run continues; None: a new run.

    Raises `UserError` as `run.train` does, and if another process works on the run to resume.
    """
    start = start or ResumePoint(as_tree(experiment))
    session = TrackingSession(experiment, accelerator, terminal)
    original = reproduced_run()[1]
    own_name = run_name(experiment) + f" repeat={repeat.count}" * (repeat.count > 1)
    name = f"reproduction of {original}" if original else start.name or own_name
    if repeat.experiments(experiment) == [experiment]:
        with session.start_run(name, resume=start.run_id) as tracker:
            result = run.train(experiment, accelerator, tracker, terminal, start)
        summary.print_result(result, terminal)
        summary.print_run(experiment, tracker, terminal)
        return [result]
    over = repeat.describe(experiment)
    with session.start_run(name, system_metrics=False, resume=start.run_id) as parent:
        training = _RepeatedTraining(accelerator, terminal, session, parent, start)
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
    shared: SharedSetup = field(default_factory=SharedSetup)
    """Scanned images and features of all children."""
    state: Path | None = None
    """The parent's state folder; None on ranks other than 0."""
    runs: list[tuple[Experiment, str]] = field(default_factory=list)
    """Experiment and label of each child."""

    def train(self, experiment: Experiment, repeat: Repeat) -> list[tuple[RunResult, Tracker]]:
        """Train one after the other; those that were finished before an interruption are not trained again.

        Raises `NotResumableError` if images or weights are not those of the runs before.
        """
        self.runs = [(each, repeat.label(each)) for each in repeat.experiments(experiment)]
        known = self._identity(self.runs[0][0])
        self.parent.log_params(decisive_settings(experiment))
        self.state = self.parent.local_folder(STATE_FOLDER) if self.accelerator.is_main_process else None
        # The accelerator has resolved the precision; the children resolve the rest.
        resolved = dataclasses.replace(experiment.train, precision=self.accelerator.mixed_precision)
        if self.state is not None:
            record = RunRecord(
                self.parent.name,
                self.start.requested,
                resolved_settings(dataclasses.replace(experiment, train=resolved)),
                repeat=repeat.count,
                repeat_over=repeat.over,
                manifest=known.manifest,
                weights=known.weights,
            )
            write_record(self.state, record)
        children = []
        for each, label in self.runs:
            tracking = each.tracking
            if each.split.folds is not None:  # a model that lacks the images of a fold is not one to use
                tracking = dataclasses.replace(tracking, model=False, gallery=0)
            child = dataclasses.replace(each, train=resolved, tracking=tracking)
            result, tracker = self._train_one(child, label, known.weights)
            children.append((result, tracker))
            summary.print_result(result, self.terminal)
        return children

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

    def _train_one(self, experiment: Experiment, label: str, weights: str) -> tuple[RunResult, Tracker]:
        """Train one of the runs.

        Args:
            experiment: With its seeds and its fold.
            label: What distinguishes it from the others.
            weights: Digest of the pretrained weights that it must have.
        """
        terminal, name = self.terminal, f"{label} of {self.parent.name}"
        terminal.line(f"training {label}", style="bold")
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
            tracker = Tracker()
            tracker.run_id, tracker.name = finished["run_id"], name
            terminal.line(f"run {tracker.run_id[:8]} was finished before")
            return RunResult.from_dict(finished["result"]), tracker
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
