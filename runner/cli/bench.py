"""Benchmarks: ratios measured side by side in one run. `runner bench NAME [experiment settings]`.

Each lies in benchmarks/ and ends with one bare JSON object on its last line.
"""

from __future__ import annotations

import runpy
from collections.abc import Sequence

from runner.utils.errors import UserError
from runner.utils.paths import BENCHMARKS


def main(argv: Sequence[str]) -> int:
    """Run a benchmark. Raises `UserError` where there is none of that name."""
    known = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    if not argv or argv[0] not in known:
        given = f"There is no benchmark {argv[0]!r}" if argv else "Which benchmark"
        raise UserError(f"{given}; there are: {', '.join(known) or 'none (they need a checkout)'}.")
    return int(runpy.run_path(str(BENCHMARKS / f"{argv[0]}.py"))["main"](list(argv[1:])) or 0)
