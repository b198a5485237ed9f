"""`runner bench NAME [settings]`: run a benchmark from the folder benchmarks/.

A benchmark prints one JSON object as its last line.
"""

from __future__ import annotations

import runpy
from collections.abc import Sequence

from runner.utils.errors import UserError
from runner.utils.paths import BENCHMARKS


def main(argv: Sequence[str]) -> int:
    """Run the named benchmark. Raises `UserError` if there is none of that name."""
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    if not argv or argv[0] not in names:
        mistake = (
            f"There is no benchmark {argv[0]!r}" if argv else "runner bench needs the name of a benchmark"
        )
        raise UserError(f"{mistake}; choose from: {', '.join(names) or 'none (they need a checkout)'}.")
    return int(runpy.run_path(str(BENCHMARKS / f"{argv[0]}.py"))["main"](list(argv[1:])) or 0)
