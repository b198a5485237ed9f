"""Mean and standard deviation of the results of a run that trains several times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from runner.config.repeat import Over
from runner.evaluation.metrics import METRICS
from runner.training.results import RunResult

CHECKPOINTS = ("best", "last")


@dataclass(frozen=True)
class Spread:
    """Mean of a figure over all trainings, and its (n - 1) standard deviations."""

    mean: float
    sd: float
    """Over the folds, if there are folds, else over the repetitions."""
    sd_repeats: float | None = None
    """Over the repetitions of a cross-validation: of their means over the folds. None: it is not repeated."""


@dataclass(frozen=True)
class Results:
    """The results of trainings, in the order of `Repeat.experiments`: all folds of a repetition, then the next one."""

    runs: Sequence[RunResult]
    folds: int = 1
    """Folds of a cross-validation; 1: none."""
    over: Over = "seed"

    @property
    def repeats(self) -> str:
        """What the repetitions of a cross-validation are."""
        return "training seeds" if self.over == "seed" else "divisions"

    @property
    def explanation(self) -> str:
        """What the standard deviations of a repeated cross-validation are of, in sentences; else empty."""
        if self.folds == 1 or len(self.runs) == self.folds:
            return ""
        folds = "of the folds' means over the training seeds" if self.over == "seed" else "of all folds"
        return f"± is the sd {folds}. The sd over the {self.repeats} is that of their means over the folds."

    def describe(self, over: str) -> str:
        """The description of the run; `over` says what differs between the trainings."""
        return f"Mean ± sd of {over}. {self.explanation}".removesuffix(". ")

    def spread(self, figure: Callable[[RunResult], float]) -> Spread:
        """Of a figure. If all repetitions have the same folds, `sd` is that of the folds' means over the repetitions;
        with other divisions it is that of all folds of all of them."""
        values = [figure(run) for run in self.runs]
        mean = statistics.fmean(values)
        if self.folds == 1:
            return Spread(mean, _sd(values))
        rounds = [values[start : start + self.folds] for start in range(0, len(values), self.folds)]
        by_fold = [statistics.fmean(fold) for fold in zip(*rounds, strict=True)]
        sd = _sd(by_fold if self.over == "seed" else values)
        return Spread(mean, sd, _sd([*map(statistics.fmean, rounds)]) if len(rounds) > 1 else None)

    def figures(self) -> Iterator[tuple[str, str, Callable[[RunResult], float]]]:
        """The figures that are summarized: the name of the checkpoint's scores, the metric's, and the function."""
        for which in CHECKPOINTS:
            for metric in METRICS:
                yield f"test/{which}", metric, _test_metric(which, metric)
        if self.folds > 1:
            for metric in METRICS:
                yield "val/best", metric, _val_metric(metric)

    def metrics(self) -> dict[str, float]:
        """As they are logged: means under the names that the single runs use, to be compared with them."""
        logged: dict[str, float] = {}
        for scores, metric, figure in self.figures():
            spread, name = self.spread(figure), f"{scores}/{metric}"
            logged |= {name: spread.mean, f"{name}_sd": spread.sd}
            if spread.sd_repeats is not None:
                logged[f"{name}_sd_over_{self.repeats.split()[-1]}"] = spread.sd_repeats
        return logged


def _sd(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _test_metric(which: str, metric: str) -> Callable[[RunResult], float]:
    return lambda run: float(getattr(run, which)[metric])


def _val_metric(metric: str) -> Callable[[RunResult], float]:
    return lambda run: float(run.best_epoch.val[metric])
