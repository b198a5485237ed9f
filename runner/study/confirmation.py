"""Is the best experiment better than the baseline? Both are trained on new seeds, and compared seed by seed.

Training seeds play no part where a head is solved: there each seed is of another division of the study's training
and validation images. The test images stay those that no trial has seen.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from runner.config.identity import Identity
from runner.config.schema import Experiment
from runner.config.tree import as_tree, override
from runner.evaluation.metrics import METRICS, Metric, shown_metrics
from runner.study.session import StudySession
from runner.training import resume, run
from runner.utils.console import Terminal
from runner.utils.hashing import digest
from runner.utils.intervals import CONFIDENCE, PairedDifference, paired_difference

Results: TypeAlias = dict[str, float]
"""Metrics of one training: `val/top1`, `test/loss`, …"""


@dataclass(frozen=True)
class Comparison:
    """Results of best and baseline, one for each seed, in the same order."""

    best: list[Results]
    baseline: list[Results]
    objective: str = "top1"
    """The study's objective: on the test images it decides which of them wins."""
    classes: int = 0
    """Classes of the images; 0: not known."""
    over: str = "seed"
    """What the results differ in: the training seed, or the division into training and validation images."""

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len(self.best)

    @property
    def best_wins(self) -> bool:
        """Whether the best is significantly better by the objective, and not significantly worse by another metric."""
        return self._gain(METRICS[self.objective]) > 0 and not self._worse()

    @property
    def verdict(self) -> str:
        """The conclusion, in two sentences."""
        objective = METRICS[self.objective]
        gain, change = self._gain(objective), self._change(objective)
        if not gain:
            return f"No significant gain: {change}. Keep the baseline."
        if gain < 0:
            return f"Significant loss: {change}. Keep the baseline."
        if worse := self._worse():
            losses = " and ".join(map(self._change, worse))
            return f"Significant gain: {change}, but a significant loss: {losses}. Keep the baseline, or weigh them."
        return f"Significant gain: {change}. Use the best experiment."

    def _gain(self, metric: Metric) -> int:
        """1 if the best is significantly better on the test images, -1 if it is significantly worse, 0 otherwise."""
        difference = self.difference(f"test/{metric.name}")
        return (1 if metric.sign * difference.mean > 0 else -1) if difference.significant else 0

    def _worse(self) -> list[Metric]:
        """The metrics by which the best is significantly worse on the test images."""
        return [metric for metric in shown_metrics(self.classes) if self._gain(metric) < 0]

    def _change(self, metric: Metric) -> str:
        """`+0.20 pt test top-1 (95 % CI −0.48 to +0.88)`."""
        difference = self.difference(f"test/{metric.name}")
        mean, low, high = (
            _signed(value, metric) for value in (difference.mean, difference.low, difference.high)
        )
        interval = (
            f"{100 * CONFIDENCE:.0f} % CI {low} to {high}"
            if self.seeds > 1
            else f"one {self.over}, so no interval"
        )
        return f"{mean}{' pt' if metric.counted else ''} test {metric.label} ({interval})"

    def difference(self, metric: str) -> PairedDifference:
        """Best minus baseline, paired by seed."""
        return paired_difference(self.values("best", metric), self.values("baseline", metric))

    def values(self, side: str, metric: str) -> list[float]:
        """A metric of "best" or "baseline" for each seed."""
        return [results[metric] for results in getattr(self, side)]

    def rows(self) -> Iterator[tuple[str, ...]]:
        """For each split and metric: what it is, baseline, best, difference and its interval."""
        for key, label in _compared(self.classes).items():
            difference = self.difference(key)
            interval = f"[{difference.low:+.4f}, {difference.high:+.4f}]"
            yield (
                label,
                _mean_and_sd(self.values("baseline", key)),
                _mean_and_sd(self.values("best", key)),
                f"{difference.mean:+.4f}",
                interval if self.seeds > 1 else f"none for one {self.over}",
            )

    def metrics(self) -> dict[str, float]:
        """Means and differences, to be logged: `confirm/test/top1/difference`."""
        logged: dict[str, float] = {}
        for key in _compared():
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


def _compared(classes: int = 0) -> dict[str, str]:
    """Logged name of what is compared → how people read it; without metrics that cannot differ for so many classes."""
    return {
        f"{split}/{metric.name}": f"{label} {metric.label}"
        for split, label in (("val", "validation"), ("test", "test"))
        for metric in shown_metrics(classes)
    }


def _signed(value: float, metric: Metric) -> str:
    """A difference with a sign: of shares in percentage points, `−0.50`; of others as it is, `+0.0123`."""
    return (f"{100 * value:+.2f}" if metric.counted else f"{value:+.4f}").replace("-", "−")


def _mean_and_sd(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def confirm(session: StudySession, best: Experiment, seeds: int) -> Comparison:
    """Train best and baseline on seeds that no trial had. Trainings that were done before are not repeated.

    Where heads are solved, the seeds divide the training and validation images. They are not refit: the refit sees the
    same images in each division. If the data give the validation images, all results are the same: then one counts.

    Args:
        session: What the process works with. All processes call this.
        best: The best experiment of the study, other than the baseline.
        seeds: Number of seeds.
    """
    baseline = session.plan.baseline
    over, setting, first = "seed", "seed.train", baseline.seed.train + session.plan.seeds
    if "gradient" not in (baseline.train.solver, best.train.solver):
        known = baseline.seed.val if baseline.seed.val is not None else baseline.seed.split
        over, setting, first = "division", "seed.val", known + 1
        baseline, best = (override(each, {"train.refit": False}) for each in (baseline, best))
    results: dict[str, list[Results]] = {"baseline": [], "best": []}
    with session.terminal.progress("confirm", 2 * seeds, "trainings") as advance:
        for seed in range(first, first + seeds):
            for side, experiment in (("baseline", baseline), ("best", best)):
                seeded = override(experiment, {setting: seed})
                results[side].append(_train(session, side, experiment, seeded, f"{over} {seed}"))
                advance(1)
    if over == "division" and all(each == of_side[0] for of_side in results.values() for each in of_side):
        results = {side: of_side[:1] for side, of_side in results.items()}
    plan = session.plan
    return Comparison(results["best"], results["baseline"], plan.objective, plan.classes, over)


def _train(
    session: StudySession, side: str, experiment: Experiment, seeded: Experiment, label: str
) -> Results:
    """Results of one training as a child run, which is resumed if it was interrupted."""
    key = f"confirmed {digest(session.plan.identity(), Identity.of(as_tree(seeded)).settings)}"
    known: Results | None = session.on_rank_0(lambda study: study.optuna.user_attrs.get(key))
    if known is not None:
        return known
    quiet, study_run = Terminal(enabled=False), session.study_run
    lean, start = resume.resolve_child(
        _lean(seeded), as_tree(_lean(experiment)), study_run.run_id, session.accelerator, quiet
    )
    title = f"confirm {side}, {label}"
    with session.tracking.start_run(title, study_run, system_metrics=False, resume=start.run_id) as tracker:
        tracker.set_tags({"runner.study": study_run.name, "runner.confirms": side})
        result = run.train(lean, session.accelerator, tracker, quiet, start)
    results = {**result.best_epoch.val.metrics("val"), **result.best.metrics("test")}
    if session.study is not None:
        session.study.optuna.set_user_attr(key, results)
    return results


def _lean(experiment: Experiment) -> Experiment:
    """Without model and gallery: these runs are for comparison, and the luckiest seed must not become champion."""
    return override(experiment, {"tracking.model": False, "tracking.gallery": 0})
