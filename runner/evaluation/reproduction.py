"""Compares a run with its reproduction: their environments, and their metrics point by point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from runner.config.tree import flatten
from runner.evaluation.metrics import metric_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

COMPARED = ("train/", "val/", "test/best/", "test/last/", "lr", "best_epoch")
"""Prefixes of the metrics that a reproduction must repeat. Times, and use of machine and cache, may differ."""
TOLERANCE = 1e-5
"""Relative difference up to which metrics that are not counted are the same: a different order of sums stays below."""
ENVIRONMENT = ("python", "platform", "device", "processes", "threads", "precision")
"""Entries of environment.json that can change the last bits, besides packages and code."""

MAX_LENGTH = 500
"""Maximum length of a string in environment.json."""
MAX_COUNT = 1024
"""Maximum number of processes or threads in environment.json."""


@dataclass(frozen=True)
class Change:
    """A difference between two environments."""

    what: str
    then: str
    now: str


def is_environment(value: Any) -> bool:
    """Whether the content of environment.json was written by the runner, as far as it is used."""
    if not isinstance(value, dict) or not isinstance(value.get("packages", {}), dict):
        return False
    texts = [value.get(name, "") for name in ("python", "platform", "device", "precision")]
    texts += [value.get("git_commit") or "", *chain.from_iterable(value.get("packages", {}).items())]
    counts = [value.get(name, 1) for name in ("processes", "threads")]
    return all(
        isinstance(text, str) and text.isprintable() and len(text) < MAX_LENGTH for text in texts
    ) and all(type(count) is int and 0 < count <= MAX_COUNT for count in counts)


def environment_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The differences between two environments that may change results, among the entries that both have."""
    old, new = flatten(dict(then)), flatten(dict(now))
    names = [name for name in new if name in ENVIRONMENT or name.startswith("packages.")]
    changes = [
        Change(name.removeprefix("packages."), str(old[name]), str(new[name]))
        for name in names
        if name in old and old[name] != new[name]
    ]
    if old.get("git_commit") and new.get("git_commit"):
        before, after = _code(old), _code(new)
        if before != after or old.get("git_dirty"):  # uncommitted code cannot be known to be the same
            changes.append(Change("code", before, after))
    return changes


def _code(environment: Mapping[str, Any]) -> str:
    return environment["git_commit"][:12] + " with uncommitted changes" * bool(environment.get("git_dirty"))


@dataclass(frozen=True)
class Difference:
    """A point of a metric that is not bit-identical in both runs."""

    metric: str
    step: int
    """Epoch; 0 for metrics of the whole run."""
    original: float | None
    """None if the original has no such point."""
    reproduced: float | None
    """None if the reproduction has no such point."""

    @property
    def relative(self) -> float | None:
        """The absolute difference divided by the larger absolute value."""
        if self.original is None or self.reproduced is None:
            return None
        return abs(self.reproduced - self.original) / max(abs(self.original), abs(self.reproduced))

    @property
    def tolerated(self) -> bool:
        """Whether a different order of sums explains the difference; it never explains one of counts."""
        metric = metric_of(self.metric)
        if self.relative is None or self.metric == "best_epoch" or (metric is not None and metric.counted):
            return False
        return self.relative <= TOLERANCE

    @property
    def label(self) -> str:
        """Metric and epoch."""
        return f"{self.metric} in epoch {self.step}" if self.step else self.metric


@dataclass(frozen=True)
class Verdict:
    """Result of comparing two runs."""

    points: int
    """Number of compared points."""
    differences: tuple[Difference, ...]
    """In order of epochs."""

    @property
    def identical(self) -> bool:
        """Whether all points are bit-identical."""
        return not self.differences

    @property
    def same(self) -> bool:
        """Whether all differences are tolerated."""
        return not self.beyond

    @cached_property
    def beyond(self) -> list[Difference]:
        """The differences that are not tolerated."""
        return [difference for difference in self.differences if not difference.tolerated]

    @property
    def largest(self) -> float:
        """The largest relative difference of points that both runs have."""
        return max((difference.relative or 0.0 for difference in self.differences), default=0.0)

    def sentence(self) -> str:
        """The result in words, without a period."""
        if self.identical:
            return f"identical: all {self.points:,} values are the same to the last bit"
        if self.same:
            return (
                f"the same to {self.largest:.1e} relative: {len(self.differences):,} of {self.points:,} values differ"
                f" in their last bits, first {self.differences[0].label}; all counts are equal"
            )
        return (
            f"different: {len(self.beyond):,} of {self.points:,} values have another count, or differ by more than"
            f" {TOLERANCE:g} relative; first {self.beyond[0].label}"
        )


Points = Mapping[tuple[str, int], float]
"""Values by metric and step."""


def metric_points(client: MlflowClient, run_id: str) -> Points:
    """The points of a run's compared metrics; the newest of points with the same step."""
    points: dict[tuple[str, int], float] = {}
    for name in client.get_run(run_id).data.metrics:
        if name.startswith(COMPARED):
            for point in sorted(client.get_metric_history(run_id, name), key=lambda point: point.timestamp):
                points[name, point.step] = point.value
    return points


def compare_points(original: Points, reproduced: Points) -> Verdict:
    """Compare two runs point by point: epoch by epoch, then the metrics of the whole run."""
    keys = sorted(original.keys() | reproduced.keys(), key=lambda key: (key[1] or float("inf"), key[0]))
    pairs = [(*key, original.get(key), reproduced.get(key)) for key in keys]
    return Verdict(len(pairs), tuple(Difference(*pair) for pair in pairs if pair[2] != pair[3]))
