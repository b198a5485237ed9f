"""Tables as CSV text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from runner.utils.text import valid_unicode


def to_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a header row. Lines end in CR LF (RFC 4180), so that cells with a line break are quoted.

    Bytes of file names that are not valid UTF-8 are written as `\\xe9`.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return valid_unicode(text.getvalue())
