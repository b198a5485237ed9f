"""Fuzzing of every file format that the runner reads, with damaged and with crafted files.

`fuzz("manifest", 1000, folder)` feeds a thousand files to the runner's reader in a child process. It reports every case
that neither reads correctly nor is refused in one sentence. A case is a function of (format, number):
`fuzz("manifest", 1, folder, first=417)` repeats one.
"""

from fuzz.engine import FORMATS, Report, fuzz

__all__ = ["FORMATS", "Report", "fuzz"]
