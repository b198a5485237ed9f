"""The table of settings: one `Setting` per field of the schema, by dotted name."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from runner.config.fields import Metadata
from runner.config.schema import Experiment

PLAIN = Metadata()


@dataclass(frozen=True, kw_only=True)
class Setting(Metadata):
    """A setting, with what it inherits from its group."""

    name: str
    """Dotted name, as "optim.lr"."""
    type: Any
    default: Any
    owner: Any
    """The class that it is a field of."""

    @property
    def help(self) -> str:
        """Its docstring in the schema on one line, and what its choices mean."""
        text = docstrings(self.owner)[self.name.rpartition(".")[2]]
        if self.choices is None or self.choices.is_open:
            return text
        return f"{text} {'; '.join(f'{each.name}: {each.description}' for each in self.choices.choices.values())}."

    @property
    def takes(self) -> str:
        """The values that it takes, in words, as "a whole number > 0, in px"."""
        words = (
            describe(self.type)
            if self.choices is None or self.choices.is_open
            else _listed([*self.choices.choices])
        )
        return f"{words}, in {self.unit}" if self.unit else words

    @property
    def searchable(self) -> bool:
        """Whether a study may vary it."""
        return not self.not_searchable

    @property
    def number(self) -> type[int] | type[float] | None:
        """int or float if it takes numbers of that type and nothing else: then a study can search a range."""
        plain = _plain(self.type)[0]
        return plain if plain in (int, float) else None

    def admits(self, kind: type) -> bool:
        """Whether its type is `kind`, or a union with it."""
        return kind in _members(self.type)


@cache
def table(owner: type = Experiment, prefix: str = "", group: Metadata = PLAIN) -> dict[str, Setting]:
    """The settings of a class by dotted name, in the order of the schema.

    `prefix` and `group` are those of a group within the experiment.
    """
    settings: dict[str, Setting] = {}
    hints = typing.get_type_hints(owner, include_extras=True)
    for field in dataclasses.fields(owner):
        own = field.metadata.get("setting", PLAIN)
        changes = own.changes_results and group.changes_results
        fixed = own.not_searchable or group.not_searchable or ("" if changes else "it changes no result")
        notes = dataclasses.replace(own, changes_results=changes, not_searchable=fixed)
        name, kind = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(kind):
            settings |= table(typing.cast(type, kind), f"{name}.", notes)
        else:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            settings[name] = Setting(**vars(notes), name=name, type=kind, default=default, owner=owner)
    return settings


@cache
def groups() -> dict[str, str]:
    """The groups of settings by name, each with its docstring without the final period."""
    fields = typing.get_type_hints(Experiment)
    return {
        name: (kind.__doc__ or "").rstrip(".")
        for name, kind in fields.items()
        if dataclasses.is_dataclass(kind)
    }


def changes_results(name: str) -> bool:
    """Whether another value of a setting can change a result. False: runs may be resumed, and studies shared, with
    another value.

    `name` may lead into a setting, as optim.groups.features. An unknown name counts as one that can.
    """
    while name:
        if name in table():
            return table()[name].changes_results
        name = name.rpartition(".")[0]
    return True


def describe(kind: Any) -> str:
    """The values of a type, in words."""
    return _listed(_words(kind))


def _words(kind: Any) -> Sequence[str]:
    """The alternatives of a type, in words."""
    plain, bounds = _plain(kind)
    origin, parts = typing.get_origin(plain), typing.get_args(plain)
    if origin is Literal:
        return parts
    if len(members := _members(plain)) > 1:
        return [word for member in members for word in _words(member)]
    if origin is tuple:
        item, bounds = _plain(parts[0])
        count = "" if parts[-1] is Ellipsis else f"{len(parts)} "
        if dataclasses.is_dataclass(item):
            return [f"a list of {describe(item)}"]
        plural = {int: "whole numbers", float: "numbers", str: "words"}[item]
        return [f"a list of {count}{plural}{_range(bounds)}"]
    if origin is dict:
        return [f"{{name: {describe(parts[1])}}}"]
    if dataclasses.is_dataclass(plain):
        hints = typing.get_type_hints(plain, include_extras=True)
        return ["{" + ", ".join(f"{name}: {describe(hint)}" for name, hint in hints.items()) + "}"]
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return [words[plain] + _range(bounds)]


def _range(bounds: Sequence[Any]) -> str:
    """Bounds in words: " > 0", " from 0 to 1", " from 0 to below 1"."""
    match bounds:
        case [Gt(gt=low)]:
            return f" > {low}"
        case [Gt(gt=low), Le(le=high)]:
            return f" > {low}, at most {high}"
        case [Gt(gt=low), Lt(lt=high)]:
            return f" > {low}, below {high}"
        case [Ge(ge=low)]:
            return f" ≥ {low}"
        case [Ge(ge=low), Le(le=high)]:
            return f" from {low} to {high}"
        case [Ge(ge=low), Lt(lt=high)]:
            return f" from {low} to below {high}"
    return ""


def _plain(kind: Any) -> tuple[Any, list[Any]]:
    """A type without its annotations, and its bounds."""
    if typing.get_origin(kind) is not typing.Annotated:
        return kind, []
    plain, *notes = typing.get_args(kind)
    return plain, [note for note in notes if isinstance(note, (Ge, Gt, Le, Lt))]


def _members(kind: Any) -> tuple[Any, ...]:
    """The types of a union; of another type itself."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def _listed(words: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


@cache
def docstrings(owner: type) -> dict[str, str]:
    """The docstrings below the fields of a class, each on one line, by the field's name."""
    tree = _syntax(owner.__module__)
    (body,) = (
        each.body for each in tree.body if isinstance(each, ast.ClassDef) and each.name == owner.__name__
    )
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


@cache
def _syntax(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(sys.modules[module]))
