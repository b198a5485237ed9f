"""Two runs that should be the same: what of their environments changed, and whether their figures are alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from runner.config.schema import flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient

FIGURES = ("train/", "val/", "test/best/", "test/last/", "lr", "best_epoch")
"""Beginnings of the metrics that a reproduction must have alike: not those of time, machine and store."""
COUNTED = ("top1", "top5", "balanced_accuracy", "best_epoch")
"""Metrics that come from counts: another value is another count, however near."""
TOLERANCE = 1e-5
"""Relative difference up to which losses count as the same: sums in another order stay far below."""
WATCHED = ("python", "platform", "device", "processes", "threads", "precision")
"""What of environment.json may change last bits, beside packages and code."""

LONGEST = 500
"""Characters of a word of environment.json."""
MOST = 1024
"""Processes or threads that a run can have had."""


@dataclass(frozen=True)
class Change:
    """Something of a run's environment that is not what it was."""

    what: str
    then: str
    now: str


def is_environment(told: Any) -> bool:
    """Whether something read from environment.json is what the runner writes, as far as it is looked at."""
    if not isinstance(told, dict) or not isinstance(told.get("packages", {}), dict):
        return False
    words = [told[name] for name in ("python", "platform", "device", "precision") if name in told]
    words += [told["git_commit"]] if told.get("git_commit") is not None else []
    words += [*told.get("packages", {}), *told.get("packages", {}).values()]
    counts = [told[name] for name in ("processes", "threads") if name in told]
    return all(
        isinstance(word, str) and word.isprintable() and len(word) < LONGEST for word in words
    ) and all(type(count) is int and 0 < count <= MOST for count in counts)


def processes_of(then: Mapping[str, Any]) -> int:
    """The processes that a run was trained on, by its environment."""
    return int(then.get("processes", 1))


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What of two environments differs and may matter; only what both tell of is compared."""
    old, new = flatten(dict(then)), flatten(dict(now))
    names = [name for name in new if name in WATCHED or name.startswith("packages.")]
    found = [
        Change(name.removeprefix("packages."), str(old[name]), str(new[name]))
        for name in names
        if name in old and old[name] != new[name]
    ]
    if old.get("git_commit") and new.get("git_commit"):
        before, after = _code(old), _code(new)
        if before != after or old.get("git_dirty"):  # what was not committed cannot be known to be the same
            found.append(Change("code", before, after))
    return found


def _code(environment: Mapping[str, Any]) -> str:
    return environment["git_commit"][:12] + " with uncommitted changes" * bool(environment.get("git_dirty"))


@dataclass(frozen=True)
class Difference:
    """A figure that is not the same to the last bit. Step 0: of the whole run; None: there is no such point."""

    metric: str
    step: int
    original: float | None
    reproduced: float | None

    @property
    def relative(self) -> float | None:
        """The difference, over the larger of the two."""
        if self.original is None or self.reproduced is None:
            return None
        return abs(self.reproduced - self.original) / max(abs(self.original), abs(self.reproduced))

    @property
    def tolerated(self) -> bool:
        """Whether only the order of a sum need be another."""
        if self.relative is None or self.metric.rpartition("/")[2] in COUNTED:
            return False
        return self.relative <= TOLERANCE

    @property
    def place(self) -> str:
        """Metric and epoch, for a person."""
        return f"{self.metric} in epoch {self.step}" if self.step else self.metric


@dataclass(frozen=True)
class Verdict:
    """What came of comparing so many figures; the differences in the order in which they arose."""

    figures: int
    differences: tuple[Difference, ...]

    @property
    def identical(self) -> bool:
        """Whether all figures are the same to the last bit."""
        return not self.differences

    @property
    def same(self) -> bool:
        """Whether they are the same but for the order of sums."""
        return not self.beyond

    @cached_property
    def beyond(self) -> list[Difference]:
        """The differences that are not tolerated."""
        return [each for each in self.differences if not each.tolerated]

    @property
    def largest(self) -> float:
        """The largest relative difference of figures that both have."""
        return max((each.relative or 0.0 for each in self.differences), default=0.0)

    def sentence(self) -> str:
        """The verdict, for a person."""
        if self.identical:
            return f"identical: all {self.figures:,} figures are the same to the last bit"
        counted = f"{len(self.differences):,} of {self.figures:,} figures"
        if self.same:
            return (
                f"the same to {self.largest:.1e} relative: {counted} differ in their last bits, first"
                f" {self.differences[0].place}; all counts are equal"
            )
        return (
            f"differs: {len(self.beyond):,} of {self.figures:,} figures are another count, or beyond {TOLERANCE:g}"
            f" relative; first {self.beyond[0].place}"
        )


Points = Mapping[tuple[str, int], float]
"""Value by metric and step."""


def figures(client: MlflowClient, run_id: str) -> Points:
    """A run's figures; of points of the same step the newest."""
    found: dict[tuple[str, int], float] = {}
    for name in client.get_run(run_id).data.metrics:
        if name.startswith(FIGURES):
            for point in sorted(client.get_metric_history(run_id, name), key=lambda each: each.timestamp):
                found[name, point.step] = point.value
    return found


def compare(original: Points, reproduced: Points) -> Verdict:
    """Compare figures point by point: epoch by epoch, then those of the whole run."""
    keys = sorted(original.keys() | reproduced.keys(), key=lambda key: (key[1] or float("inf"), key[0]))
    pairs = [(*key, original.get(key), reproduced.get(key)) for key in keys]
    return Verdict(len(pairs), tuple(Difference(*pair) for pair in pairs if pair[2] != pair[3]))
