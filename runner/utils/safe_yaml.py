"""YAML files that a person writes: looked through before anything reads them.

A few lines of YAML can stand for more values than a memory holds (aliases of aliases), nest deeper than a stack
goes, or name a setting twice, of which the parser would keep the last without a word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from runner.utils.errors import UserError
from runner.utils.text import brief

DEPTH = 20
"""Levels of groups and lists."""
VALUES = 10_000
"""Names and values, each counted wherever an alias repeats it."""


@dataclass
class _Level:
    """A group or list that is being read."""

    anchor: str | None = None
    is_group: bool = False
    names: set[str] = field(default_factory=set)
    values: int = 1
    at_name: bool = True


def read_yaml(path: Path) -> str:
    """The text of a YAML file.

    Raises `UserError` where it is none, nests too deep, stands for too many values, or gives a name twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        fault = _fault(text)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: its encoding, or an escape in it
        raise UserError(f"{path} is not a YAML file: {brief(str(error), 300)}.") from None
    if fault:
        raise UserError(f"{path} {fault}.")
    return text


def _fault(text: str) -> str | None:
    """Why a text of YAML is not to be read; None where it may be. It is looked through without being built."""
    levels = [_Level()]
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, yaml.SafeLoader):
        name = None
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            if len(levels) > DEPTH:
                return f"nests deeper than {DEPTH} levels; settings need two or three"
            levels.append(_Level(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            continue
        if isinstance(event, yaml.AliasEvent):
            called = event.anchor or ""
            if called not in sizes:
                return f"repeats *{brief(called, 50)} before its value is complete"
            anchor, size = None, sizes[called]
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size, name = event.anchor, 1, event.value
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            level = levels.pop()
            anchor, size = level.anchor, level.values
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        above = levels[-1]
        above.values += size
        if above.values > VALUES:
            return f"stands for more than {VALUES:,} values; settings are far fewer"
        if above.is_group:
            if above.at_name and name is not None:
                if name in above.names:
                    return f"names {brief(name, 100)!r} twice; one of them would be lost"
                above.names.add(name)
            above.at_name = not above.at_name
    return None
