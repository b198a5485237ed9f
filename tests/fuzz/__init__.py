"""Hostile input for every format that the runner reads: damaged files, and files that somebody has made up.

`fuzz("manifest", 1000, folder)` feeds a thousand of them to the runner's own reader, in a process of its own, and
says which of them did anything but succeed rightly or end in one sentence for a user. A case is a function of
(format, number): `fuzz("manifest", 1, folder, first=417)` is that one again.
"""

from fuzz.engine import FORMATS, Report, fuzz

__all__ = ["FORMATS", "Report", "fuzz"]
