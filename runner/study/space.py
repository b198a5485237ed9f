"""Search spaces: which settings of an experiment a study varies, read from YAML and checked before anything runs.

optim.lr: {low: 3e-5, high: 3e-3, log: true}            a range; whole numbers where the setting is one
train.batch_size: [32, 64, 128]                           categories
optim.momentum: {low: 0.8, high: 0.99, when: {optim.name: sgd}}     searched only where that holds
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from runner.config.parser import check_setting
from runner.config.schema import Experiment, as_tree, flatten
from runner.utils.errors import UserError
from runner.utils.paths import EXPERIMENTS
from runner.utils.safe_yaml import read_yaml
from runner.utils.text import did_you_mean, one_line

Value: TypeAlias = bool | int | float | str | None
Suggest: TypeAlias = Callable[["Dimension"], Value]

SPACES = EXPERIMENTS / "spaces"
MOST = 1e300
"""What a number must be less than: not infinite, nor an integer that no floating-point number comes near."""
FIXED = {
    "name": "it names the records",
    "data": "trials would be judged on other images",
    "split": "trials would be judged on other images",
    "seed": "luck would be searched; to average over fit seeds use --fits",
    "tracking": "it changes no result",
    "cache": "it changes no result",
    "features": "it changes no result",
    "train.precision": "it belongs to the device",
    "train.best": "trials would be judged by different scores",
}
"""Settings, or groups of them, that a study must not vary, with the reason."""


@dataclass(frozen=True)
class Dimension:
    """A searched setting: a range (`low`, `high`), or categories (`choices`)."""

    setting: str
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    step: float | None = None
    choices: tuple[Value, ...] = ()
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()
    """Other settings, and the values of theirs under which this one is searched."""

    def holds(self, value: object) -> bool:
        """Whether a value could be suggested."""
        if self.choices:
            return any(same(value, choice) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.whole and int(value) != value:
            return False
        if self.step and abs((value - self.low) / self.step - round((value - self.low) / self.step)) > 1e-8:
            return False
        return self.low <= value <= self.high

    def as_plain(self) -> dict[str, Any]:
        """As JSON-like values, to store and to compare."""
        kept: dict[str, Any] = (
            {"when": {name: list(values) for name, values in self.when}} if self.when else {}
        )
        if self.choices:
            return {"choices": list(self.choices), **kept}
        step = {"step": self.step} if self.step else {}
        return {"low": self.low, "high": self.high, "log": self.log, "whole": self.whole, **step, **kept}


@dataclass(frozen=True)
class Space:
    """The dimensions of a study, those that others hang on first."""

    dimensions: tuple[Dimension, ...]
    _names: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_names", frozenset(each.setting for each in self.dimensions))

    def pick(self, baseline: Mapping[str, Any], suggest: Suggest) -> dict[str, Value]:
        """Values for the dimensions whose conditions hold, in order.

        Args:
            baseline: The experiment's settings by dotted name, for conditions on settings that are not searched.
            suggest: Gives a dimension's value.
        """
        picked: dict[str, Value] = {}
        for each in self.dimensions:
            if self._applies(each, {**baseline, **dict.fromkeys(self._names), **picked}):
                picked[each.setting] = suggest(each)
        return picked

    @staticmethod
    def _applies(dimension: Dimension, settings: Mapping[str, Any]) -> bool:
        return all(any(same(settings[name], value) for value in values) for name, values in dimension.when)

    def as_plain(self) -> dict[str, Any]:
        """As JSON-like values: setting → dimension."""
        return {each.setting: each.as_plain() for each in self.dimensions}


def same(one: object, other: object) -> bool:
    """Equality in which True is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def applied(experiment: Experiment, values: Mapping[str, Value]) -> Experiment:
    """An experiment with some settings changed, to the last bit of each value.

    Raises `UserError` where the combination cannot work.
    """
    try:
        return _replaced(experiment, values)
    except ValueError as error:
        raise UserError(f"{error}.") from None


def _replaced(node: Any, values: Mapping[str, Value]) -> Any:
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Value]] = {}
    for name, value in values.items():
        head, _, rest = name.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    own.update({name: _replaced(getattr(node, name), below) for name, below in inner.items()})
    return dataclasses.replace(node, **own)


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


def read(path: Path, baseline: Experiment, checked: bool = False) -> Space:
    """The search space in a file, checked against the experiment that it is searched around.

    `checked` leaves out trying each bound on the setting's type, which takes a second: a launcher has done it.

    Raises `UserError` for a space that is empty, names unknown settings, holds values that a setting does not
    take, or does not hold the baseline.
    """
    try:
        return _read(path, read_yaml(path), baseline, checked)
    except UserError as error:
        raise UserError(one_line(str(error))) from None  # it may hold a value as it stands in the file


def _read(path: Path, text: str, baseline: Experiment, checked: bool) -> Space:
    try:
        tree = YAML(typ="safe", pure=True).load(text)
    except (
        YAMLError,
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # ValueError: of a value that is said to be a date
        raise UserError(f"{path} is not a YAML file: {one_line(str(error), 300)}.") from None
    if not tree:
        raise UserError(
            f"The space {path} is empty; name settings, as optim.lr: {{low: 1e-4, high: 1e-2, log: true}}."
        )
    if not isinstance(tree, dict):
        raise UserError(f"{path} is no search space: it must name settings, as train.batch_size: [32, 64].")
    settings = flatten(as_tree(baseline))
    dimensions = [
        _dimension(path, str(name), words, baseline, settings, checked) for name, words in tree.items()
    ]
    space = Space(_ordered(path, dimensions, settings))
    space.pick(settings, lambda each: _baseline_value(path, each, settings))
    return space


def _dimension(
    path: Path, name: str, words: Any, baseline: Experiment, settings: Mapping[str, Any], checked: bool
) -> Dimension:
    where = f"{path}: {name}"
    if name not in settings:
        raise UserError(f"{where} is no setting{did_you_mean(name, list(settings))}; --help lists them all.")
    for fixed, reason in FIXED.items():
        if name == fixed or name.startswith(f"{fixed}."):
            raise UserError(f"{where} cannot be searched: {reason}.")
    if isinstance(words, list):
        words = {"choices": words}
    known = ("low", "high", "log", "step", "choices", "when")
    if not isinstance(words, dict):
        raise UserError(
            f"{where} must be a list of values, or a range as {{low: 1, high: 9}}; it is {words!r}."
        )
    for word in words:
        if word not in known:
            raise UserError(
                f"{where} says {word!r}, which is none of {', '.join(known)}{did_you_mean(str(word), known)}."
            )
    when = _conditions(where, words.get("when", {}))
    if "choices" in words:
        return _categories(where, name, words, when, baseline, checked)
    return _range(where, name, words, when, baseline, checked)


def _conditions(where: str, words: Any) -> tuple[tuple[str, tuple[Value, ...]], ...]:
    if not isinstance(words, dict):
        raise UserError(
            f"{where}: when must name settings and values, as {{optim.name: sgd}}; it is {words!r}."
        )
    if empty := [name for name, value in words.items() if value == []]:
        raise UserError(f"{where}: when names no value of {empty[0]}; name one or more.")
    values = [each for value in words.values() for each in (value if isinstance(value, list) else [value])]
    if not all(map(_is_value, values)):
        raise UserError(f"{where}: when must name values that a setting can have; it is {words!r}.")
    return tuple(
        (str(name), tuple(value) if isinstance(value, list) else (value,)) for name, value in words.items()
    )


def _is_value(value: object) -> bool:
    """Whether a setting could have a value: a single one, and of numbers a finite one."""
    if isinstance(value, (int, float)):
        return abs(value) < MOST
    return value is None or isinstance(value, str)


def _categories(
    where: str, name: str, words: Any, when: Any, baseline: Experiment, checked: bool
) -> Dimension:
    choices = words["choices"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise UserError(f"{where} needs two values or more to choose from; it has {choices!r}.")
    if extra := [word for word in ("low", "high", "log", "step") if word in words]:
        raise UserError(f"{where} has both choices and {extra[0]}; a setting has categories or a range.")
    if any(isinstance(choice, (list, dict)) for choice in choices):
        raise UserError(f"{where}: a category must be one value; {choices!r} holds lists or groups.")
    if not all(map(_is_value, choices)):
        raise UserError(
            f"{where}: a category must be a word, true, false, null or a finite number; it has {choices!r}."
        )
    if any(same(one, other) for place, one in enumerate(choices) for other in choices[:place]):
        raise UserError(f"{where} names a value twice: {choices!r}.")
    for choice in () if checked else choices:
        check_setting(where, baseline, name, choice)
    if (kind := _kind(baseline, name)) is not None:
        choices = [kind(choice) for choice in choices]  # 32.0 for 32 would break what counts with it
    return Dimension(name, choices=tuple(choices), when=when)


def _range(where: str, name: str, words: Any, when: Any, baseline: Experiment, checked: bool) -> Dimension:
    if "low" not in words or "high" not in words:
        raise UserError(f"{where} needs low and high, or choices.")
    kind = _kind(baseline, name)
    if kind is None:
        raise UserError(f"{where} is not a number alone; name its categories: {name}: [one, another].")
    low, high, step = words["low"], words["high"], words.get("step")
    log = words.get("log", False)
    for word, value in (("low", low), ("high", high), ("step", 1 if step is None else step)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < MOST:
            raise UserError(f"{where}: {word} must be a number; it is {value!r}.")
        if kind is int and int(value) != value:
            raise UserError(f"{where} takes whole numbers; {word} is {value}.")
    if not isinstance(log, bool):
        raise UserError(f"{where}: log must be true or false; it is {log!r}.")
    if not low < high:
        raise UserError(f"{where}: low ({low}) must be less than high ({high}).")
    if log and low <= 0:
        raise UserError(f"{where}: a log range must begin above 0; low is {low}.")
    if step is not None and (log or step <= 0):
        raise UserError(f"{where}: step must be above 0, and is for linear ranges only.")
    for value in () if checked else (low, high):
        check_setting(where, baseline, name, kind(value))
    return Dimension(
        name, kind(low), kind(high), kind is int, log, None if step is None else kind(step), when=when
    )


def _kind(baseline: Experiment, name: str) -> type[int] | type[float] | None:
    """int or float, where that is what a setting's type is; None where it is something else, or more."""
    node: Any = type(baseline)
    hint: Any = None
    for part in name.split("."):
        if not dataclasses.is_dataclass(node):
            return None
        hint = node = typing.get_type_hints(node).get(part)
    if not isinstance(hint, type) or hint is bool:
        return None
    return int if issubclass(hint, int) else float if issubclass(hint, float) else None


def _ordered(
    path: Path, dimensions: Sequence[Dimension], settings: Mapping[str, Any]
) -> tuple[Dimension, ...]:
    """Conditions first: a setting is searched behind those that it hangs on."""
    by_name = {each.setting: each for each in dimensions}
    placed: dict[str, Dimension] = {}

    def place(each: Dimension, above: tuple[str, ...]) -> None:
        if each.setting in above:
            raise UserError(f"{path}: the conditions of {each.setting} lead back to itself.")
        for name, values in each.when:
            if name in by_name:
                place(by_name[name], (*above, each.setting))
                if not any(by_name[name].holds(value) for value in values):
                    raise UserError(
                        f"{path}: {each.setting} hangs on {name} being {values[0]!r}, which it never is."
                    )
            elif name not in settings:
                raise UserError(
                    f"{path}: {each.setting} hangs on {name}, which is no setting{did_you_mean(name, list(settings))}."
                )
        placed.setdefault(each.setting, each)

    for each in dimensions:
        place(each, ())
    return tuple(placed.values())


def _baseline_value(path: Path, dimension: Dimension, settings: Mapping[str, Any]) -> Value:
    value = settings[dimension.setting]
    if not dimension.holds(value):
        range_ = list(dimension.choices) or f"{dimension.low} to {dimension.high}"
        raise UserError(
            f"{path}: the baseline's {dimension.setting} is {value!r}, which the space does not hold ({range_});"
            " a study searches around its baseline: widen the space, or set the baseline inside it."
        )
    return typing.cast(Value, value)
