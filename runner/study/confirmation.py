"""Is the best better? Best and baseline, trained again on new fit seeds, compared seed by seed."""

from __future__ import annotations

import dataclasses
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from runner.config.schema import Experiment, as_tree
from runner.study.study import Study
from runner.tracking.sessions import Records
from runner.tracking.tracker import Tracker
from runner.training import resume, run
from runner.utils.console import Terminal
from runner.utils.hashing import digest

Figures = dict[str, float]
"""`val/top1`, `test/loss`, … → value of one training."""


def _lean(experiment: Experiment) -> Experiment:
    """Without model and gallery: these runs are there to be compared, and the luckiest seed is no champion."""
    tracking = dataclasses.replace(experiment.tracking, model=False, gallery=0)
    return dataclasses.replace(experiment, tracking=tracking)


def confirm(
    best: Experiment,
    baseline: Experiment,
    first: int,
    seeds: int,
    study: Study | None,
    accelerator: Accelerator,
    records: Records,
    parent: Tracker,
    terminal: Terminal,
) -> tuple[list[Figures], list[Figures]]:
    """Train both on fit seeds that no trial saw: figures of validation and test, by seed. What was done counts.

    Args:
        best: The study's best experiment.
        baseline: What it is compared with.
        first: The first of the fit seeds.
        seeds: Their number.
        study: Keeps what was done; None on ranks beyond the first.
        accelerator: Device and peers.
        records: Begins the runs.
        parent: The study's run.
        terminal: Says how it goes on.
    """
    sides: dict[str, list[Figures]] = {"baseline": [], "best": []}
    with terminal.progress("confirm", 2 * seeds, "trainings") as advance:
        for seed in range(first, first + seeds):
            for name, experiment in (("baseline", baseline), ("best", best)):
                seeded = dataclasses.replace(
                    experiment, seed=dataclasses.replace(experiment.seed, train=seed)
                )
                key = (
                    f"confirmed {digest(study.plan.identity(), dataclasses.asdict(seeded))}" if study else ""
                )
                known: Any = study.optuna.user_attrs.get(key) if study else None
                figures: Figures | None = broadcast_object_list([known])[0]
                if figures is None:
                    lean, start = _lean(seeded), as_tree(_lean(experiment))
                    quiet = Terminal(enabled=False)
                    lean, going = resume.child(lean, start, parent.run_id, accelerator, quiet)
                    title = f"confirm {name}, seed {seed}"
                    with records.begin(title, parent, works=False, again=going.run_id) as tracker:
                        tracker.tags({"runner.study": parent.name, "runner.confirms": name})
                        result = run.train(lean, accelerator, tracker, quiet, going, parent.run_id)
                    figures = {**result.best_epoch.val.metrics("val"), **result.best.metrics("test")}
                    if study is not None:
                        study.optuna.set_user_attr(key, figures)
                sides[name].append(figures)
                advance(1)
    return sides["best"], sides["baseline"]
