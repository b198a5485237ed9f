"""Caltech-101, its download, and the digits."""

from __future__ import annotations

import shutil
import urllib.error
from collections import Counter
from pathlib import Path

import pytest
import torchvision
from pictures import draw

from runner.config.data_schema import DataConfig
from runner.config.schema import Experiment
from runner.data.datasets import CALTECH_MD5
from runner.data.manifest import build_manifest
from runner.utils.console import Terminal
from runner.utils.errors import UserError


def write_caltech(root: Path) -> None:
    """A small Caltech-101: two categories and the background."""
    for label, color in (("accordion", "red"), ("yin_yang", "blue"), ("BACKGROUND_Google", "green")):
        (root / label).mkdir(parents=True)
        for number in range(4):
            draw(color, number).save(root / label / f"image_{number + 1:04}.jpg")


def caltech(tmp_path: Path, **more: bool) -> Experiment:
    data = DataConfig(kind="caltech101", root=str(tmp_path / "data"), **more)
    return Experiment(data=data, cache=str(tmp_path / "cache"))


def test_the_background_is_not_a_category(silent: Terminal, tmp_path: Path) -> None:
    write_caltech(tmp_path / "data" / "caltech101" / "101_ObjectCategories")
    manifest = build_manifest(caltech(tmp_path), silent)
    assert manifest.classes == ("accordion", "yin_yang")
    assert manifest.entries[0].path == "accordion/image_0001.jpg"


def test_the_background_is_a_category_by_setting(silent: Terminal, tmp_path: Path) -> None:
    write_caltech(tmp_path / "data" / "caltech101" / "101_ObjectCategories")
    without = build_manifest(caltech(tmp_path), silent)
    manifest = build_manifest(caltech(tmp_path, background=True), silent)
    assert manifest.classes == ("BACKGROUND_Google", "accordion", "yin_yang")
    assert [e for e in manifest.entries if e.label != "BACKGROUND_Google"] == list(without.entries)
    assert build_manifest(caltech(tmp_path), silent) == without


def test_a_missing_background_is_refused(silent: Terminal, tmp_path: Path) -> None:
    images = tmp_path / "data" / "caltech101" / "101_ObjectCategories"
    write_caltech(images)
    shutil.rmtree(images / "BACKGROUND_Google")
    with pytest.raises(
        UserError, match=r"There is no BACKGROUND_Google in .*, which data\.background=true would use"
    ):
        build_manifest(caltech(tmp_path, background=True), silent)


def test_a_missing_dataset_is_refused_with_its_place_and_how_to_get_it(
    silent: Terminal, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        build_manifest(caltech(tmp_path), silent)
    assert str(tmp_path / "data" / "caltech101" / "101_ObjectCategories") in str(refused.value)
    assert "data.download=true" in str(refused.value)
    assert not (tmp_path / "data").exists()


def test_a_root_one_folder_too_deep_is_recognized(silent: Terminal, tmp_path: Path) -> None:
    write_caltech(tmp_path / "data" / "101_ObjectCategories")
    with pytest.raises(UserError, match=f"did you mean data.root={tmp_path}"):
        build_manifest(caltech(tmp_path), silent)


@pytest.mark.parametrize("started", [False, True])
def test_a_failed_download_tells_how_to_do_it_by_hand_and_leaves_no_files(
    silent: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    attempts: list[object] = []

    def offline(*_: object, **__: object) -> object:
        attempts.append(1)
        raise urllib.error.URLError("Name or service not known")

    def partial(_url: str, filename: str, *_: object) -> None:
        Path(filename).write_bytes(b"part of the archive")
        offline()

    utils = torchvision.datasets.utils
    if started:
        monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
        monkeypatch.setattr(utils, "_urlretrieve", partial)
    monkeypatch.setattr(utils.urllib.request, "urlopen", offline)
    with pytest.raises(UserError) as refused:
        build_manifest(caltech(tmp_path, download=True), silent)
    assert attempts
    assert "Name or service not known" in str(refused.value)
    assert CALTECH_MD5 in str(refused.value)
    assert str(tmp_path / "data" / "caltech101" / "101_ObjectCategories") in str(refused.value)
    # The empty lock may stay: removing it would race with a process that waits for it.
    assert {path.name for path in (tmp_path / "data").rglob("*")} <= {".caltech101.lock"}


def test_a_broken_connection_is_a_failed_download(
    silent: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from http.client import IncompleteRead

    def broken(*_: object, **__: object) -> object:
        raise IncompleteRead(b"part", 100)

    monkeypatch.setattr(torchvision.datasets.utils.urllib.request, "urlopen", broken)
    with pytest.raises(UserError, match=CALTECH_MD5):
        build_manifest(caltech(tmp_path, download=True), silent)


@pytest.mark.parametrize("leftovers", [(), ("101_ObjectCategories.tar.gz",)])
def test_a_download_is_moved_to_its_place(
    silent: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leftovers: tuple[str, ...]
) -> None:
    for name in leftovers:
        (tmp_path / "data" / "caltech101").mkdir(parents=True)
        (tmp_path / "data" / "caltech101" / name).write_bytes(b"of an earlier attempt")
    monkeypatch.setattr(
        torchvision.datasets.Caltech101,
        "download",
        lambda self: write_caltech(Path(self.root) / "101_ObjectCategories"),
    )
    manifest = build_manifest(caltech(tmp_path, download=True), silent)
    assert manifest.root == tmp_path / "data" / "caltech101" / "101_ObjectCategories"
    assert len(manifest.entries) == 8
    assert {path.name for path in (tmp_path / "data").iterdir()} <= {"caltech101", ".caltech101.lock"}


def test_there_are_1797_digits_of_ten_classes(silent: Terminal, tmp_path: Path) -> None:
    experiment = Experiment(data=DataConfig(kind="digits"), cache=str(tmp_path / "cache"))
    manifest = build_manifest(experiment, silent)
    assert len(manifest.entries) == 1797
    assert manifest.classes == tuple("0123456789")
    assert Counter(entry.label for entry in manifest.entries)["0"] == 178
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir() and path.name[0] == "."]
    assert build_manifest(experiment, silent) == manifest
