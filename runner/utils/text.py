"""Text for messages: on one line, printable, of limited length; suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Collection

MAX_LENGTH = 1000
"""Characters of a message."""


def one_line(text: str, max_length: int = MAX_LENGTH) -> str:
    """`text` on one line, cut to `max_length` characters, with � for unprintable characters."""
    line = "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))
    return line if len(line) <= max_length else f"{line[: max_length - 1]}…"


def printable(text: str) -> str:
    """`text` with line breaks and other unprintable characters escaped, for file names."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def did_you_mean(name: str, known: Collection[str]) -> str:
    """` (did you mean 'x'?)` with the known name most similar to `name`; empty if none is similar.

    Dotted names are compared whole first, then by their last part: `lr` suggests `optim.lr`.
    """
    by_last_part = {known_name.rpartition(".")[2]: known_name for known_name in known}
    if similar := difflib.get_close_matches(name, known, 1):
        return f" (did you mean {similar[0]!r}?)"
    if similar := difflib.get_close_matches(name.rpartition(".")[2], by_last_part, 1):
        return f" (did you mean {by_last_part[similar[0]]!r}?)"
    return ""
