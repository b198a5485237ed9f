"""Measures heads on kept features: many trained at once against one by one, and a study of them.

    ./launch.sh bench heads --config caltech101-pooled --data.root DATA --model.weights FILE

Each figure is measured by one function of `FIGURES`, which gets the settings on the command line and an empty folder
for what it writes, and returns entries of the JSON object.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.config.parser import parse

Figures = dict[str, float]

FIGURES: tuple[Callable[[Sequence[str], Path], Figures], ...] = ()


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object as the last line."""
    parse(argv, prog="runner bench heads")
    result: Figures = {}
    for figure in FIGURES:
        with tempfile.TemporaryDirectory(prefix="runner-bench-") as folder:
            result |= figure(argv, Path(folder))
            print(json.dumps(result), flush=True)
    return 0
