"""YAML files that a person writes, read as YAML 1.2 into plain values, with limits.

A few lines of YAML can stand for more values than fit in memory (aliases of aliases), nest deeper than the stack
allows, or name a key twice, where parsers silently keep the last one. A file is checked for that before it is loaded.

YAML 1.2 differs from PyYAML's YAML 1.1 where it matters here: `1e-4` is a number; `no`, `off` and dates are text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from runner.utils.errors import UserError
from runner.utils.text import one_line

MAX_DEPTH = 20
"""Levels of mappings and lists that a file may nest."""
MAX_VALUES = 10_000
"""Keys and values that a file may stand for; what an alias repeats counts each time."""

# The scalars of YAML 1.2: tag, pattern, first characters, value.
_SCALARS: tuple[tuple[str, str, str, Callable[[str], Any]], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN", lambda text: None),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    ("int", r"[-+]?[0-9]+", "-+0123456789", int),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
        lambda text: float(re.sub(r"\.(?=[inIN])", "", text)),
    ),
)


class _RefusedError(ValueError):
    """A text that must not be loaded. The message says why, beginning with its verb."""


class _Loader(yaml.SafeLoader):
    """Knows the scalars above, text, lists and mappings: a tag that names anything else is an error.

    PyYAML composes a graph of nodes, where an alias costs nothing, before it builds values from them. The limits are
    checked while it composes.
    """

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (PyYAML's way)
    yaml_constructors = {  # noqa: RUF012
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (None, *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")))
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.values = 1
        """Values that the text stands for up to here; the document itself counts as one."""
        self.sizes: dict[yaml.Node, int] = {}
        """How many values each completed node stands for."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose the next value and what it contains. Raises `_RefusedError`."""
        event: Any = self.peek_event()
        before = self.values
        if isinstance(event, yaml.CollectionStartEvent) and self.depth == MAX_DEPTH:
            raise _RefusedError(f"nests deeper than {MAX_DEPTH} levels; settings need two or three")
        self.depth += 1
        node: Any = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent) and node not in self.sizes:
            raise _RefusedError(f"repeats *{one_line(str(event.anchor), 50)} before its value is complete")
        self.values += self.sizes.get(node, 1)
        if self.values > MAX_VALUES:
            raise _RefusedError(f"stands for more than {MAX_VALUES:,} values; settings are far fewer")
        self.sizes.setdefault(node, self.values - before)
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if keys.total() > len(keys):
                twice = keys.most_common(1)[0][0]
                raise _RefusedError(f"names {one_line(twice, 100)!r} twice; one of them would be lost")
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or YAML 1.2 would read as something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Unicode's line breaks are kept as escapes only: elsewhere YAML reads them as spaces."""
        style = '"' if any(each in data for each in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)

for _kind, _pattern, _first, _value in _SCALARS:
    _tag, _whole = f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$")
    _starts = [*_first, *([""] if _kind == "null" else [])]
    _Loader.add_implicit_resolver(_tag, _whole, _starts)
    _Dumper.add_implicit_resolver(_tag, _whole, _starts)
    _Loader.add_constructor(
        _tag,
        lambda loader, node, value=_value: value(loader.construct_scalar(node)),  # type: ignore[misc]
    )


def read_yaml(path: Path) -> Any:
    """The content of a YAML file: dictionaries, lists, text, numbers, booleans and None.

    Raises `UserError` if it is not valid YAML, nests too deep, stands for too many values, or gives a key twice.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except ValueError as error:  # not UTF-8
        raise UserError(f"{path} is not valid YAML: {one_line(str(error), 300)}.") from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises `UserError` as `read_yaml`; the sentence begins with its verb."""
    try:
        return _Loader(text).get_single_data()
    except _RefusedError as error:
        raise UserError(f"{error}.") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # ValueError: `!!int x`
        raise UserError(f"is not valid YAML: {one_line(str(error), 300)}.") from None


def dump_yaml(value: Any, flow: bool = False) -> str:
    """Plain values as YAML that `parse_yaml`, and any reader of YAML 1.1, reads back equal.

    `flow` puts lists and mappings on one line, in brackets.
    """
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=flow,
        width=10**6 if flow else 80,
    )
    return text.removesuffix("...\n").strip() if flow else text
