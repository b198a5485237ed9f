"""Search spaces: which settings of an experiment a study varies, over which values.

They are read from YAML files and checked against the settings before anything runs:

optim.lr: {low: 3e-5, high: 3e-3, log: true}            a range; whole numbers if the setting takes only those
train.batch_size: [32, 64, 128]                         choices
model.pool: [3, [1, 2], [1, 2, 3]]                      choices of which some are lists
optim.momentum: {low: 0.8, high: 0.99, when: {optim.name: sgd}}     searched only if the condition holds
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from runner.config.metadata import table
from runner.config.schema import Experiment
from runner.config.tree import as_tree, check_setting, flatten
from runner.config.validation import is_file
from runner.utils.errors import UserError
from runner.utils.paths import EXPERIMENTS
from runner.utils.safe_yaml import read_yaml
from runner.utils.text import did_you_mean, one_line

Value: TypeAlias = bool | int | float | str | None
"""What storages take. A list of numbers is its JSON text: `[1, 2]`."""


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
    lists: tuple[str, ...] = ()
    """The choices that stand for lists."""
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()
    """Names of other settings, each with the values for which this one is searched."""

    def contains(self, value: object) -> bool:
        """Whether the dimension has a value."""
        if self.choices:
            return any(same(as_value(value), choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if not self.low <= value <= self.high:
            return False
        step = self.step or (1 if self.whole else 0)
        steps = (value - self.low) / step if step else 0
        return abs(steps - round(steps)) <= 1e-8

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether its condition holds. A setting that is not among the values fulfils no condition but `null`."""
        return all(any(same(values.get(name), value) for value in allowed) for name, allowed in self.when)

    def setting_of(self, value: Value) -> Any:
        """What a value is as the setting's."""
        return json.loads(value) if isinstance(value, str) and value in self.lists else value

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
            if dimension.applies(current):
                picked[dimension.setting] = suggest(dimension)
        return picked

    def settings_of(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """Values of dimensions as those of settings."""
        known = {dimension.setting: dimension for dimension in self.dimensions}
        return {name: known[name].setting_of(value) for name, value in values.items()}

    def within(self, settings: Mapping[str, Any]) -> Space:
        """The dimensions that can be searched around a baseline, with conditions on searched settings only.

        Args:
            settings: The baseline's settings by dotted name.
        """
        kept: dict[str, Dimension] = {}
        not_picked = {**settings, **dict.fromkeys(self.settings)}
        for dimension in self.dimensions:
            searched = tuple(each for each in dimension.when if each[0] in kept)
            others = tuple(each for each in dimension.when if each[0] not in kept)
            if replace(dimension, when=others).applies(not_picked):
                kept[dimension.setting] = replace(dimension, when=searched)
        return Space(tuple(kept.values()))

    def as_plain(self) -> dict[str, Any]:
        """As JSON-like values: setting → dimension."""
        return {dimension.setting: dimension.as_plain() for dimension in self.dimensions}


def same(one: object, other: object) -> bool:
    """Equality in which True is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def as_value(setting: Any) -> Value:
    """A setting's value as that of a dimension."""
    value: Value = json.dumps(setting) if isinstance(setting, list | tuple) else setting
    return value


SPACES = EXPERIMENTS / "spaces"
LIMIT = 1e300
"""Bound of all numbers. It excludes infinity, and whole numbers that no floating-point number represents."""
KEYS_OF_A_RANGE = ("low", "high", "log", "step", "when")
KEYS_OF_CHOICES = ("choices", "when")

Condition: TypeAlias = tuple[tuple[str, tuple[Value, ...]], ...]


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
    tree = read_yaml(path)
    try:
        return _Reader(baseline, checked).space(tree)
    except UserError as error:
        raise UserError(one_line(f"{path}: {error}")) from None  # it may quote a value from the file


@dataclass(frozen=True)
class _Reader:
    """Reads the content of a file. All methods raise `UserError` for what they find wrong."""

    baseline: Experiment
    checked: bool

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The baseline's settings by dotted name."""
        return flatten(as_tree(self.baseline))

    def space(self, tree: Any) -> Space:
        if not tree:
            raise UserError("it is empty; name settings, as optim.lr: {low: 1e-4, high: 1e-2, log: true}.")
        if not isinstance(tree, dict):
            raise UserError("it is no search space; name settings, as train.batch_size: [32, 64].")
        dimensions = {str(name): self.dimension(str(name), value) for name, value in tree.items()}
        weights = self.baseline.model.weights
        if "model.arch" in dimensions and "model.weights" not in dimensions and weights and is_file(weights):
            raise UserError(
                f"model.arch cannot be searched while model.weights is a file ({weights}), which is for one"
                " architecture; set --model.weights to null, or leave it out for the usual weights of each."
            )
        space = Space(self.ordered(dimensions))
        space.pick(self.settings, self.baseline_value)
        return space

    def dimension(self, name: str, value: Any) -> Dimension:
        if name not in table():
            raise UserError(f"{name} is no setting{did_you_mean(name, table())}; --help lists them all.")
        if reason := table()[name].not_searchable:
            raise UserError(f"{name} cannot be searched: {reason}.")
        entry = {"choices": value} if isinstance(value, list) else value
        if not isinstance(entry, dict):
            raise UserError(f"{name} must be a list, or a range as {{low: 1, high: 9}}; it is {value!r}.")
        keys = KEYS_OF_CHOICES if "choices" in entry else KEYS_OF_A_RANGE
        if unknown := [str(key) for key in entry if key not in keys]:
            guess = did_you_mean(unknown[0], keys)
            raise UserError(f"{name} has {unknown[0]!r}, which is none of {', '.join(keys)}{guess}.")
        when = _condition(name, entry.get("when", {}))
        return (self.choices if "choices" in entry else self.range)(name, entry, when)

    def choices(self, name: str, entry: dict[str, Any], when: Condition) -> Dimension:
        choices = entry["choices"]
        if not isinstance(choices, list) or len(choices) < 2:
            raise UserError(f"{name} needs two values or more to choose from; it has {choices!r}.")
        if wrong := [choice for choice in choices if not (_is_value(choice) or _is_list(choice))]:
            one_value = "a text, true, false, null, a finite number or a list of such numbers"
            raise UserError(f"{name}: each choice must be one value ({one_value}); {wrong[0]!r} is not.")
        if any(same(one, other) for one, other in itertools.combinations(choices, 2)):
            raise UserError(f"{name} has a value twice: {choices!r}.")
        self.check(name, choices)
        if (number := table()[name].number) is not None:
            choices = [number(choice) for choice in choices]  # 32.0 would break what counts with 32
        lists = tuple(json.dumps(choice) for choice in choices if isinstance(choice, list))
        return Dimension(name, choices=tuple(map(as_value, choices)), lists=lists, when=when)

    def range(self, name: str, entry: dict[str, Any], when: Condition) -> Dimension:
        numbers = {key: entry[key] for key in ("low", "high", "step") if entry.get(key) is not None}
        if "low" not in numbers or "high" not in numbers:
            raise UserError(f"{name} needs low and high, or choices.")
        number, takes = table()[name].number, table()[name].takes
        if number is None:
            raise UserError(f"{name} cannot have a range, because it takes {takes}; list choices.")
        for key, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LIMIT:
                raise UserError(f"{name}: {key} must be a number; it is {value!r}.")
            if number is int and int(value) != value:
                raise UserError(f"{name} takes whole numbers; {key} is {value}.")
        low, high = number(numbers["low"]), number(numbers["high"])
        step, log = numbers.get("step"), entry.get("log", False)
        if not isinstance(log, bool):
            raise UserError(f"{name}: log must be true or false; it is {log!r}.")
        if not low < high:
            raise UserError(f"{name}: low ({low}) must be less than high ({high}).")
        if log and low <= 0:
            raise UserError(f"{name}: a range on a log scale must start above 0; low is {low}.")
        if step is not None and (log or step <= 0):
            raise UserError(f"{name}: step must be above 0, and is for linear ranges only.")
        self.check(name, [low, high])
        return Dimension(name, low, high, number is int, log, step and number(step), when=when)

    def check(self, name: str, values: list[Any]) -> None:
        """Check that the setting takes the values."""
        for value in () if self.checked else values:
            check_setting(name, self.baseline, name, value)

    def ordered(self, dimensions: Mapping[str, Dimension]) -> tuple[Dimension, ...]:
        """Each dimension after those that its condition names; every condition must be able to hold."""
        placed: dict[str, Dimension] = {}

        def place(dimension: Dimension, path: tuple[str, ...]) -> None:
            where = f"the condition of {dimension.setting}"
            if dimension.setting in path:
                raise UserError(f"{where} leads back to itself: conditions must not form a circle.")
            for name, values in dimension.when:
                if name in dimensions:
                    place(dimensions[name], (*path, dimension.setting))
                    if not any(map(dimensions[name].contains, values)):
                        raise UserError(f"{where} never holds: {name} is never {values[0]!r}.")
                elif name not in self.settings:
                    guess = did_you_mean(name, self.settings)
                    raise UserError(f"{where} names {name}, which is no setting{guess}.")
            placed.setdefault(dimension.setting, dimension)

        for dimension in dimensions.values():
            place(dimension, ())
        return tuple(placed.values())

    def baseline_value(self, dimension: Dimension) -> Value:
        """The baseline's value of a dimension, which must contain it."""
        value = as_value(self.settings[dimension.setting])
        if not dimension.contains(value):
            values = list(dimension.choices) or f"{dimension.low} to {dimension.high}"
            raise UserError(
                f"the baseline's {dimension.setting} is {value!r}, which the space does not contain ({values});"
                " widen the space, or change the baseline: a study searches around it."
            )
        return value


def _condition(name: str, entry: Any) -> Condition:
    if not isinstance(entry, dict):
        raise UserError(f"{name}: when must be as {{optim.name: sgd}}; it is {entry!r}.")
    condition = {str(key): value if isinstance(value, list) else [value] for key, value in entry.items()}
    for setting, values in condition.items():
        if not values:
            raise UserError(f"{name}: when has no value of {setting}; list one or more.")
        if not all(map(_is_value, values)):
            raise UserError(f"{name}: when must have values that a setting can have; it is {entry!r}.")
    return tuple((setting, tuple(values)) for setting, values in condition.items())


def _is_list(value: object) -> bool:
    """Whether it is a list of finite numbers."""
    return isinstance(value, list) and all(
        isinstance(each, int | float) and _is_value(each) for each in value
    )


def _is_value(value: object) -> bool:
    """Whether a setting could have a value: a single one, and of numbers a finite one."""
    return abs(value) < LIMIT if isinstance(value, (int, float)) else value is None or isinstance(value, str)
