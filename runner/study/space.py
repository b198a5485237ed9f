"""Search spaces: which settings of an experiment a study varies, over which values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

Value: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True)
class Dimension:
    """A searched setting: a range (`low`, `high`), or a list of values (`choices`)."""

    setting: str
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    """Only whole numbers."""
    log: bool = False
    """Drawn on a logarithmic scale."""
    step: float | None = None
    choices: tuple[Value, ...] = ()
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()
    """Names of other settings, each with the values for which this one is searched."""

    def contains(self, value: object) -> bool:
        """Whether the dimension has a value."""
        if self.choices:
            return any(same(value, choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if not self.low <= value <= self.high:
            return False
        step = self.step or (1 if self.whole else 0)
        steps = (value - self.low) / step if step else 0
        return abs(steps - round(steps)) <= 1e-8

    def as_plain(self) -> dict[str, Any]:
        """As JSON-like values, to be stored and compared."""
        if self.choices:
            plain: dict[str, Any] = {"choices": list(self.choices)}
        else:
            plain = {"low": self.low, "high": self.high, "log": self.log, "whole": self.whole}
            if self.step:
                plain["step"] = self.step
        if self.when:
            plain["when"] = {name: list(values) for name, values in self.when}
        return plain


@dataclass(frozen=True)
class Space:
    """The dimensions of a study, each after those that its condition names."""

    dimensions: tuple[Dimension, ...]

    @cached_property
    def settings(self) -> list[str]:
        """Names of the searched settings."""
        return [dimension.setting for dimension in self.dimensions]

    def pick(self, settings: Mapping[str, Any], suggest: Callable[[Dimension], Value]) -> dict[str, Value]:
        """Values for the dimensions whose conditions hold, in order.

        Args:
            settings: The baseline's settings by dotted name, for conditions on settings that are not searched. A
                searched setting that is left out of a trial fulfils no condition but `null`.
            suggest: Gives the value of a dimension.
        """
        not_picked = {**settings, **dict.fromkeys(self.settings)}
        picked: dict[str, Value] = {}
        for dimension in self.dimensions:
            current = {**not_picked, **picked}
            if all(any(same(current[name], value) for value in values) for name, values in dimension.when):
                picked[dimension.setting] = suggest(dimension)
        return picked

    def as_plain(self) -> dict[str, Any]:
        """As JSON-like values: setting → dimension."""
        return {dimension.setting: dimension.as_plain() for dimension in self.dimensions}


def same(one: object, other: object) -> bool:
    """Equality in which True is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
