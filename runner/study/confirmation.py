"""Is the best experiment better than the baseline? Both are trained on new seeds, to be compared seed by seed."""

from __future__ import annotations

import dataclasses

from runner.config.schema import Experiment
from runner.config.tree import as_tree, override
from runner.study.comparison import Comparison, Results
from runner.study.session import StudySession
from runner.training import resume, run
from runner.utils.console import Terminal
from runner.utils.hashing import digest


def confirm(session: StudySession, best: Experiment, seeds: int) -> Comparison:
    """Train best and baseline on seeds that no trial had. Trainings that were done before are not repeated.

    Args:
        session: What the process works with. All processes call this.
        best: The best experiment of the study.
        seeds: Number of seeds.
    """
    baseline = session.plan.baseline
    first = baseline.seed.train + session.plan.seeds
    results: dict[str, list[Results]] = {"baseline": [], "best": []}
    with session.terminal.progress("confirm", 2 * seeds, "trainings") as advance:
        for seed in range(first, first + seeds):
            for side, experiment in (("baseline", baseline), ("best", best)):
                results[side].append(_train(session, side, experiment, seed))
                advance(1)
    return Comparison(results["best"], results["baseline"], is_same=best == baseline)


def _train(session: StudySession, side: str, experiment: Experiment, seed: int) -> Results:
    """Results of one training as a child run, which is resumed if it was interrupted."""
    seeded = override(experiment, {"seed.train": seed})
    key = f"confirmed {digest(session.plan.identity(), dataclasses.asdict(seeded))}"
    known: Results | None = session.on_rank_0(lambda study: study.optuna.user_attrs.get(key))
    if known is not None:
        return known
    quiet, study_run = Terminal(enabled=False), session.study_run
    lean, start = resume.resolve_child(
        _lean(seeded), as_tree(_lean(experiment)), study_run.run_id, session.accelerator, quiet
    )
    title = f"confirm {side}, seed {seed}"
    with session.tracking.start_run(title, study_run, system_metrics=False, resume=start.run_id) as tracker:
        tracker.set_tags({"runner.study": study_run.name, "runner.confirms": side})
        result = run.train(lean, session.accelerator, tracker, quiet, start, study_run.run_id)
    results = {**result.best_epoch.val.metrics("val"), **result.best.metrics("test")}
    if session.study is not None:
        session.study.optuna.set_user_attr(key, results)
    return results


def _lean(experiment: Experiment) -> Experiment:
    """Without model and gallery: these runs are for comparison, and the luckiest seed must not become champion."""
    return override(experiment, {"tracking.model": False, "tracking.gallery": 0})
