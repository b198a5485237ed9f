"""Runs in MLflow: a single one, or several with other seeds as children of a parent run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from runner.config.effective import decisive_settings
from runner.config.identity import Identity
from runner.config.repeat import Repeat
from runner.config.schema import Experiment
from runner.config.tree import as_tree
from runner.data.manifest import build_manifest
from runner.evaluation.metrics import METRICS
from runner.tracking.interrupted_runs import STATE_FOLDER, RunRecord, resolved_settings, write_record
from runner.tracking.sessions import TrackingSession, reproduced_run
from runner.tracking.tracker import Tracker
from runner.training import run, summary
from runner.training.error_translation import translate_errors
from runner.training.results import RunResult
from runner.training.resume import ResumePoint, resolve_child
from runner.training.run_names import run_name
from runner.training.summary import mean_and_sd
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.errors import NotResumableError
from runner.utils.long_wait import long_wait

CHECKPOINTS = ("best", "last")


def train(
    experiment: Experiment,
    repeat: Repeat,
    accelerator: Accelerator,
    terminal: Terminal,
    start: ResumePoint | None = None,
) -> list[RunResult]:
    """Train an experiment once, or several times with seeds that count up from its own, and print the results.

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
    own_name = run_name(experiment) + (f" repeat={repeat.count}" if repeat.count > 1 else "")
    name = f"reproduction of {original}" if original else start.name or own_name
    if repeat.count == 1:
        with session.start_run(name, resume=start.run_id) as tracker:
            result = run.train(experiment, accelerator, tracker, terminal, start)
        summary.print_result(result, terminal)
        summary.print_run(experiment, tracker, terminal)
        return [result]
    with session.start_run(name, system_metrics=False, resume=start.run_id) as parent:
        training = _RepeatedTraining(accelerator, terminal, session, parent, start)
        with translate_errors(experiment, accelerator):
            children = training.train(experiment, repeat)
        results = [result for result, _ in children]
        parent.log_metrics(_statistics(results))
        parent.log_params({"repeat": repeat.count, "repeat_over": repeat.over})
        parent.set_tags({"mlflow.note.content": f"Mean ± sd of {repeat.description}"})
    summary.print_spread(results, repeat.description, terminal)
    scores = [(result.best_epoch.val["top1"], -result.best_epoch.val["loss"]) for result in results]
    # Scores on other splits are of other images: then none of the runs is the best.
    best = scores.index(max(scores)) if repeat.over == "seed" else 0
    summary.print_run(experiment, children[best][1], terminal)
    return results


@dataclass(frozen=True)
class _RepeatedTraining:
    """Trains an experiment several times, as children of a run."""

    accelerator: Accelerator
    terminal: Terminal
    session: TrackingSession
    parent: Tracker
    start: ResumePoint

    def train(self, experiment: Experiment, repeat: Repeat) -> list[tuple[RunResult, Tracker]]:
        """Train one after the other; those that were finished before an interruption are not trained again.

        Raises `NotResumableError` if images or weights are not those of the runs before.
        """
        known = self._identity(experiment)
        self.parent.log_params(decisive_settings(experiment))
        state = self.parent.local_folder(STATE_FOLDER) if self.accelerator.is_main_process else None
        # The accelerator has resolved the precision; the children resolve the rest.
        resolved = dataclasses.replace(experiment.train, precision=self.accelerator.mixed_precision)
        experiment = dataclasses.replace(experiment, train=resolved)
        if state is not None:
            record = RunRecord(
                self.parent.name,
                self.start.requested,
                resolved_settings(experiment),
                repeat=repeat.count,
                repeat_over=repeat.over,
                manifest=known.manifest,
                weights=known.weights,
            )
            write_record(state, record)
        if repeat.over != "seed":  # every run has another split of the same images
            known = Identity(weights=known.weights)
        children = []
        for each in repeat.experiments(experiment):
            result, tracker = self._train_one(each, repeat.label(each.seed), known, state)
            children.append((result, tracker))
            summary.print_result(result, self.terminal)
        return children

    def _identity(self, experiment: Experiment) -> Identity:
        """Images and weights of the first run, which a run that is resumed must still have."""
        with long_wait(), self.accelerator.local_main_process_first():
            manifest = build_manifest(experiment, self.terminal)
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

    def _train_one(
        self, experiment: Experiment, label: str, known: Identity, state: Path | None
    ) -> tuple[RunResult, Tracker]:
        """Train one of the runs.

        Args:
            experiment: With its seeds.
            label: What distinguishes it from the others.
            known: Images and weights that it must have.
            state: The parent's state folder; None on ranks other than 0.
        """
        terminal, name = self.terminal, f"{label} of {self.parent.name}"
        terminal.line(f"training {label}", style="bold")
        with long_wait():  # rank 0 may still upload the seed before
            experiment, start = resolve_child(
                experiment, self.start.requested, self.parent.run_id, self.accelerator, terminal
            )
        if not start.run_id:
            start = dataclasses.replace(start, identity=known)
        path = state / f"{label.replace(' ', '-')}.json" if state is not None else None
        finished = broadcast_object_list([_read_finished(path) if path is not None else None])[0]
        if finished is not None and not start.run_id:
            tracker = Tracker()
            tracker.run_id, tracker.name = finished["run_id"], name
            terminal.line(f"run {tracker.run_id[:8]} was finished before")
            return RunResult.from_dict(finished["result"]), tracker
        with self.session.start_run(name, self.parent, resume=start.run_id) as tracker:
            result = run.train(
                experiment, self.accelerator, tracker, terminal, start, parent_id=self.parent.run_id
            )
            if path is not None:  # before the run ends: then it can no longer be resumed
                write_text(path, json.dumps({"run_id": tracker.run_id, "result": result.to_dict()}))
        return result, tracker


def _read_finished(path: Path) -> dict[str, Any] | None:
    """Run id and result of a run that was finished; None if it was not."""
    try:
        finished: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        RunResult.from_dict(finished["result"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return finished


def _statistics(results: Sequence[RunResult]) -> dict[str, float]:
    """Mean (under the name that children use, to be compared with them) and standard deviation of each test metric."""
    logged = {}
    for which in CHECKPOINTS:
        for metric in METRICS:
            mean, sd = mean_and_sd([getattr(result, which)[metric] for result in results])
            logged[f"test/{which}/{metric}"] = mean
            logged[f"test/{which}/{metric}_sd"] = sd
    return logged
