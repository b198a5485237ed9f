"""What the tests of data share: a manifest of small pictures, which files a scan decodes, refusals of archives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import runner.data.scan
from runner.config.schema import Experiment
from runner.data.archives.listing import list_archive
from runner.data.files import ImageFiles
from runner.data.manifest import Manifest, build_manifest
from runner.data.scan import Verdicts
from runner.utils.console import Terminal
from runner.utils.errors import UserError


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


@pytest.fixture
def refused(tmp_path: Path, silent: Terminal) -> Callable[[Path], str]:
    """What the error for an archive says. Nothing may be written but in the cache folder."""

    def say(path: Path) -> str:
        cache = tmp_path / "cache"
        before = [one for one in sorted(tmp_path.rglob("*")) if not one.is_relative_to(cache)]
        with pytest.raises(UserError) as caught:
            list_archive(path, cache, silent)
        assert [one for one in sorted(tmp_path.rglob("*")) if not one.is_relative_to(cache)] == before
        assert not [one for one in cache.rglob("*") if one.is_file() and not one.name.endswith(".lock")]
        message = str(caught.value)
        assert "\n" not in message
        assert str(path) in message
        return message

    return say
