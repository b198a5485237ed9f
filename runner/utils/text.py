"""Text for messages: on one line, printable, of limited length; suggestions for misspelled names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import islice

MAX_LENGTH = 1000
"""Characters of a message."""


def one_line(text: str, max_length: int = MAX_LENGTH) -> str:
    """`text` on one line, cut to `max_length` characters, with � for unprintable characters."""
    line = "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))
    return line if len(line) <= max_length else f"{line[: max_length - 1]}…"


def valid_unicode(text: str) -> str:
    """`text` with the bytes of a file name that is not valid UTF-8 written as `\\xe9`: databases take no others."""
    with suppress(UnicodeEncodeError):
        text.encode()
        return text
    shown = (f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else char for char in text)
    return "".join(shown).encode("utf-8", "replace").decode()


def printable(text: str) -> str:
    """`text` with line breaks and other unprintable characters escaped, for file names."""
    valid = valid_unicode(text)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in valid)


def markdown_text(text: str) -> str:
    """`text` on one line, as Markdown shows it literally."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", one_line(printable(text)))


def named(names: Collection[str], most: int = 5) -> str:
    """The first names, printable, and how many more there are: `a, b and 3 more`."""
    shown = ", ".join(printable(name) for name in islice(names, most))
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def joined(names: Sequence[str]) -> str:
    """All names, printable: `a, b and c`."""
    shown = [printable(name) for name in names]
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


def counted(number: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


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
