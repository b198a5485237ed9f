"""Folders of the package, in a checkout or an installed wheel, and of run records."""

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

PACKAGE = Path(__file__).resolve().parent.parent
"""The folder `runner/`."""
EXPERIMENTS = next(
    path for path in (PACKAGE.parent / "experiments", PACKAGE / "experiments") if path.is_dir()
)
BENCHMARKS = PACKAGE.parent / "benchmarks"
"""Exists in a checkout only."""
RECORDS = "mlruns"
"""The usual folder of run records."""


def cache_folder(setting: str | Path) -> Path:
    """The folder that the setting `cache` names."""
    if str(setting) != "auto":
        return Path(setting).expanduser()
    if own := os.environ.get("RUNNER_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "vgg-runner"


def nearest_records() -> str:
    """mlruns/ in the working folder, or in the nearest folder above it where that has records, as git finds .git."""
    with suppress(OSError):  # the working folder may be gone
        here = Path.cwd()
        for folder in here.parents if not _has_records(here) else ():
            if _has_records(folder):
                return str(folder / RECORDS)
    return RECORDS


def _has_records(folder: Path) -> bool:
    root = folder / RECORDS
    return any(os.path.exists(root / name) for name in ("mlflow.db", "journals"))


def local_path(uri: str) -> Path | None:
    """The path that a file: address or a plain path names; None for any other address."""
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return None if parts.scheme else Path(uri)
