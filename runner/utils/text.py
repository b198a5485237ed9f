"""TODO."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(name: str, known: Sequence[str]) -> str:
    """` (did you mean 'x'?)`, or nothing where no known name is near."""
    tails = {each.rsplit(".", 1)[-1]: each for each in known}
    for candidates in (known, list(tails)):
        if found := difflib.get_close_matches(
            name if candidates is known else name.rsplit(".", 1)[-1], candidates
        ):
            return f" (did you mean {tails.get(found[0], found[0])!r}?)"
    return ""


LONGEST = 1000
"""Characters of a message."""


def brief(text: str, longest: int = LONGEST) -> str:
    """A text on one line, cut where it is long."""
    line = "".join(each if each.isprintable() else "�" for each in " ".join(text.split()))
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
