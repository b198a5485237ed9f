"""Folders of the package, in a checkout or an installed wheel."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
"""The folder `runner/`."""
EXPERIMENTS = next(
    path for path in (PACKAGE.parent / "experiments", PACKAGE / "experiments") if path.is_dir()
)
BENCHMARKS = PACKAGE.parent / "benchmarks"
"""Exists in a checkout only."""
