"""Search spaces in YAML files, checked against the settings before anything runs.

optim.lr: {low: 3e-5, high: 3e-3, log: true}            a range; whole numbers if the setting takes only those
train.batch_size: [32, 64, 128]                         choices
optim.momentum: {low: 0.8, high: 0.99, when: {optim.name: sgd}}     searched only if the condition holds
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runner.config.metadata import table
from runner.config.schema import Experiment
from runner.config.tree import as_tree, check_setting, flatten
from runner.study.space import Dimension, Space, Value, same
from runner.utils.errors import UserError
from runner.utils.paths import EXPERIMENTS
from runner.utils.safe_yaml import read_yaml
from runner.utils.text import did_you_mean, one_line

SPACES = EXPERIMENTS / "spaces"
LIMIT = 1e300
"""Bound of all numbers. It excludes infinity, and whole numbers that no floating-point number represents."""
KEYS = ("low", "high", "log", "step", "choices", "when")
"""What a dimension in a file may have."""

Condition: typing.TypeAlias = tuple[tuple[str, tuple[Value, ...]], ...]


def find_space(name: str) -> Path:
    """The space file called `name`: a path, or the name of one in experiments/spaces/. Raises `UserError`."""
    for path in (Path(name), SPACES / name, SPACES / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = sorted(path.stem for path in SPACES.glob("*.yaml"))
    raise UserError(
        f"There is no search space {name!r}{did_you_mean(Path(name).stem, shipped)};"
        f" give a path, or one of {', '.join(shipped)}."
    )


def read_space(path: Path, baseline: Experiment, checked: bool = False) -> Space:
    """The search space in a file.

    Args:
        path: The file.
        baseline: The experiment around which the study searches.
        checked: Leave out validating each value as its setting, because a coordinator has done so.

    Raises `UserError` if the space is empty, names an unknown setting, has values that a setting does not take, or
    does not contain the baseline.
    """
    try:
        return _Reader(path, baseline, checked).space()
    except UserError as error:
        raise UserError(one_line(str(error))) from None  # it may quote a value from the file


@dataclass(frozen=True)
class _Reader:
    """Reads a file. All methods raise `UserError` for what they find wrong."""

    path: Path
    baseline: Experiment
    checked: bool

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The baseline's settings by dotted name."""
        return flatten(as_tree(self.baseline))

    def space(self) -> Space:
        tree = read_yaml(self.path)
        if not tree:
            raise UserError(
                f"The space {self.path} is empty; name settings, as optim.lr: {{low: 1e-4, high: 1e-2, log: true}}."
            )
        if not isinstance(tree, dict):
            raise UserError(f"{self.path} is no search space: name settings, as train.batch_size: [32, 64].")
        dimensions = [self.dimension(str(name), value) for name, value in tree.items()]
        space = Space(self.ordered({dimension.setting: dimension for dimension in dimensions}))
        space.pick(self.settings, self.baseline_value)
        return space

    def dimension(self, name: str, value: Any) -> Dimension:
        where = f"{self.path}: {name}"
        if name not in table():
            raise UserError(
                f"{where} is no setting{did_you_mean(name, list(table()))}; --help lists them all."
            )
        if reason := table()[name].not_searchable:
            raise UserError(f"{where} cannot be searched: {reason}.")
        entry = {"choices": value} if isinstance(value, list) else value
        if not isinstance(entry, dict):
            raise UserError(
                f"{where} must be a list of values, or a range as {{low: 1, high: 9}}; it is {value!r}."
            )
        for key in entry:
            if key not in KEYS:
                raise UserError(
                    f"{where} has {key!r}, which is none of {', '.join(KEYS)}{did_you_mean(str(key), KEYS)}."
                )
        when = _condition(where, entry.get("when", {}))
        return (self.choices if "choices" in entry else self.range)(where, name, entry, when)

    def choices(self, where: str, name: str, entry: dict[str, Any], when: Condition) -> Dimension:
        choices = entry["choices"]
        if not isinstance(choices, list) or len(choices) < 2:
            raise UserError(f"{where} needs two values or more to choose from; it has {choices!r}.")
        if extra := [key for key in ("low", "high", "log", "step") if key in entry]:
            raise UserError(f"{where} has both choices and {extra[0]}; remove one of them.")
        if not all(map(_is_value, choices)):
            raise UserError(
                f"{where}: each choice must be one value (a text, true, false, null or a finite number); they are"
                f" {choices!r}."
            )
        if any(same(one, other) for index, one in enumerate(choices) for other in choices[:index]):
            raise UserError(f"{where} has a value twice: {choices!r}.")
        self.check(where, name, choices)
        if (number := table()[name].number) is not None:
            choices = [number(choice) for choice in choices]  # 32.0 would break what counts with 32
        return Dimension(name, choices=tuple(choices), when=when)

    def range(self, where: str, name: str, entry: dict[str, Any], when: Condition) -> Dimension:
        if "low" not in entry or "high" not in entry:
            raise UserError(f"{where} needs low and high, or choices.")
        number, takes = table()[name].number, table()[name].takes
        if number is None:
            raise UserError(
                f"{where} cannot have a range, because it takes {takes}; list choices: {name}: [one, another]."
            )
        low, high, step, log = entry["low"], entry["high"], entry.get("step"), entry.get("log", False)
        for key, value in (("low", low), ("high", high), ("step", 1 if step is None else step)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LIMIT:
                raise UserError(f"{where}: {key} must be a number; it is {value!r}.")
            if number is int and int(value) != value:
                raise UserError(f"{where} takes whole numbers; {key} is {value}.")
        if not isinstance(log, bool):
            raise UserError(f"{where}: log must be true or false; it is {log!r}.")
        if not low < high:
            raise UserError(f"{where}: low ({low}) must be less than high ({high}).")
        if log and low <= 0:
            raise UserError(f"{where}: a range on a log scale must start above 0; low is {low}.")
        if step is not None and (log or step <= 0):
            raise UserError(f"{where}: step must be above 0, and is for linear ranges only.")
        low, high, step = number(low), number(high), None if step is None else number(step)
        self.check(where, name, [low, high])
        return Dimension(name, low, high, number is int, log, step, when=when)

    def check(self, where: str, name: str, values: list[Any]) -> None:
        """Check that the setting takes the values."""
        for value in () if self.checked else values:
            check_setting(where, self.baseline, name, value)

    def ordered(self, dimensions: Mapping[str, Dimension]) -> tuple[Dimension, ...]:
        """Each dimension after those that its condition names; every condition must be able to hold."""
        placed: dict[str, Dimension] = {}

        def place(dimension: Dimension, path: tuple[str, ...]) -> None:
            if dimension.setting in path:
                raise UserError(f"{self.path}: the conditions of {dimension.setting} form a circle.")
            for name, values in dimension.when:
                where = f"{self.path}: the condition of {dimension.setting}"
                if name in dimensions:
                    place(dimensions[name], (*path, dimension.setting))
                    if not any(map(dimensions[name].contains, values)):
                        raise UserError(f"{where} never holds: {name} is never {values[0]!r}.")
                elif name not in self.settings:
                    guess = did_you_mean(name, list(self.settings))
                    raise UserError(f"{where} names {name}, which is no setting{guess}.")
            placed.setdefault(dimension.setting, dimension)

        for dimension in dimensions.values():
            place(dimension, ())
        return tuple(placed.values())

    def baseline_value(self, dimension: Dimension) -> Value:
        """The baseline's value of a dimension, which must contain it."""
        value: Value = self.settings[dimension.setting]
        if not dimension.contains(value):
            values = list(dimension.choices) or f"{dimension.low} to {dimension.high}"
            raise UserError(
                f"{self.path}: the baseline's {dimension.setting} is {value!r}, which the space does not contain"
                f" ({values}); widen the space, or change the baseline: a study searches around it."
            )
        return value


def _condition(where: str, entry: Any) -> Condition:
    if not isinstance(entry, dict):
        raise UserError(
            f"{where}: when must name settings and values, as {{optim.name: sgd}}; it is {entry!r}."
        )
    condition = {str(name): value if isinstance(value, list) else [value] for name, value in entry.items()}
    for name, values in condition.items():
        if not values:
            raise UserError(f"{where}: when has no value of {name}; list one or more.")
        if not all(map(_is_value, values)):
            raise UserError(f"{where}: when must have values that a setting can have; it is {entry!r}.")
    return tuple((name, tuple(values)) for name, values in condition.items())


def _is_value(value: object) -> bool:
    """Whether a setting could have a value: a single one, and of numbers a finite one."""
    if isinstance(value, (int, float)):
        return abs(value) < LIMIT
    return value is None or isinstance(value, str)
