"""What the tests of data share: a manifest of small pictures, and a record of which files a scan decodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import runner.data.scan
from runner.config.schema import Experiment
from runner.data.files import ImageFiles
from runner.data.manifest import Manifest, build_manifest
from runner.data.scan import Verdicts
from runner.utils.console import Terminal


@pytest.fixture
def manifest(make: Callable[..., Experiment], silent: Terminal) -> Manifest:
    return build_manifest(make(), silent)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that scans decode, in order."""
    names: list[str] = []
    verify = runner.data.scan.verify_files

    def recording(files: ImageFiles, paths: list[str]) -> Verdicts:
        names.extend(Path(path).name for path in paths)
        return verify(files, paths)

    monkeypatch.setattr(runner.data.scan, "verify_files", recording)
    return names
