"""`runner bench NAME [settings]`: run a benchmark from the folder benchmarks/.

A benchmark prints one JSON object as its last line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from runner.utils.errors import UserError
from runner.utils.paths import BENCHMARKS


def main(argv: Sequence[str]) -> int:
    """Run the named benchmark. Raises `UserError` if there is none of that name."""
    names = sorted(path.stem for path in BENCHMARKS.glob("[!_]*.py"))
    choices = ", ".join(names) or "none (they need a checkout)"
    if argv and argv[0] in ("-h", "--help"):
        print(
            f"usage: runner bench NAME …\n\nbenchmarks: {choices}\n\nrunner bench NAME --help explains one."
        )
        return 0
    if not argv or argv[0] not in names:
        mistake = (
            f"There is no benchmark {argv[0]!r}" if argv else "./launch.sh bench needs a benchmark's name"
        )
        raise UserError(f"{mistake}; choose from: {choices}.")
    sys.path.insert(0, str(BENCHMARKS.parent))
    status: int = import_module(f"benchmarks.{argv[0]}").main(list(argv[1:]))
    return status
