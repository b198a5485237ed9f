"""Is the best experiment better than the baseline? Both are trained on new seeds, and compared seed by seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from runner.config.identity import Identity
from runner.config.schema import Experiment
from runner.config.tree import as_tree, override
from runner.evaluation.metrics import METRICS
from runner.study.session import StudySession
from runner.training import resume, run
from runner.utils.console import Terminal
from runner.utils.hashing import digest
from runner.utils.intervals import PairedDifference, paired_difference

Results: TypeAlias = dict[str, float]
"""Metrics of one training: `val/top1`, `test/loss`, …"""
DECIDING_METRIC = "test/top1"
COMPARED = {
    f"{split}/{name}": f"{label} {metric.label}"
    for split, label in (("val", "validation"), ("test", "test"))
    for name, metric in METRICS.items()
}
"""Logged name of what is compared → how people read it."""


@dataclass(frozen=True)
class Comparison:
    """Results of best and baseline, one for each seed, in the same order."""

    best: list[Results]
    baseline: list[Results]
    is_same: bool
    """Whether the best experiment is the baseline."""

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len(self.best)

    @property
    def verdict(self) -> str:
        """The conclusion, in one or two sentences."""
        if self.is_same:
            return "No gain: the baseline is the best experiment."
        difference = self.difference(DECIDING_METRIC)
        points = f"{_points(difference.mean)} pt test {METRICS['top1'].label}"
        if self.seeds < 2:
            return f"No significant gain: {points} (one seed, so no interval). Keep the baseline."
        interval = f"95 % CI {_points(difference.low)} to {_points(difference.high)}"
        if not difference.significant:
            return f"No significant gain: {points} ({interval}). Keep the baseline."
        if difference.mean > 0:
            return f"Significant gain: {points} ({interval}). Use the best experiment."
        return f"Significant loss: {points} ({interval}). Keep the baseline."

    def difference(self, metric: str) -> PairedDifference:
        """Best minus baseline, paired by seed."""
        return paired_difference(self.values("best", metric), self.values("baseline", metric))

    def values(self, side: str, metric: str) -> list[float]:
        """A metric of "best" or "baseline" for each seed."""
        return [results[metric] for results in getattr(self, side)]

    def rows(self) -> Iterator[tuple[str, ...]]:
        """For each split and metric: what it is, baseline, best, difference and its interval."""
        for key, label in COMPARED.items():
            difference = self.difference(key)
            interval = f"[{difference.low:+.4f}, {difference.high:+.4f}]"
            yield (
                label,
                _mean_and_sd(self.values("baseline", key)),
                _mean_and_sd(self.values("best", key)),
                f"{difference.mean:+.4f}",
                interval if self.seeds > 1 else "none for one seed",
            )

    def metrics(self) -> dict[str, float]:
        """Means and differences, to be logged: `confirm/test/top1/difference`."""
        logged: dict[str, float] = {}
        for key in COMPARED:
            difference = self.difference(key)
            for side in ("best", "baseline"):
                logged[f"confirm/{key}/{side}"] = statistics.fmean(self.values(side, key))
            logged[f"confirm/{key}/difference"] = difference.mean
            if self.seeds > 1:
                logged[f"confirm/{key}/difference_low"] = difference.low
                logged[f"confirm/{key}/difference_high"] = difference.high
        return logged

    def to_json(self) -> str:
        """Results of each seed, and the verdict."""
        return json.dumps({"best": self.best, "baseline": self.baseline, "verdict": self.verdict}, indent=1)


def _points(share: float) -> str:
    """A share as signed percentage points, with a minus sign: `−0.50`."""
    return f"{100 * share:+.2f}".replace("-", "−")


def _mean_and_sd(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


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
    key = f"confirmed {digest(session.plan.identity(), Identity.of(as_tree(seeded)).settings)}"
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
