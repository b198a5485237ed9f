"""Untrusted archives: a download of Caltech-101 writes nothing outside its folder."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torchvision

from runner.config.schema import Experiment
from runner.data.manifest import build_manifest
from runner.utils.console import Terminal
from runner.utils.errors import UserError

Make = Callable[..., Experiment]


def tar_of(*members: tuple[str, str, str]) -> bytes:
    """A tar.gz of members (kind, name, content or target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for kind, name, content in members:
            info = tarfile.TarInfo(name)
            if kind == "file":
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
                continue
            info.type = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE}[kind]
            info.linkname = content
            tar.addfile(info)
    return buffer.getvalue()


def caltech(make: Make, root: Path) -> Any:
    return make("--data.kind", "caltech101", "--data.root", str(root), "--data.download", "true")


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`archive(inner, *more)` sets what a download brings: a zip with a tar.gz and more members."""

    def serve(inner: bytes, *more: tuple[str, str]) -> None:
        def download(_url: str, root: str, filename: str, md5: str) -> None:
            with zipfile.ZipFile(Path(root) / filename, "w") as archive_file:
                archive_file.writestr("caltech-101/101_ObjectCategories.tar.gz", inner)
                for name, content in more:
                    info = zipfile.ZipInfo(name)
                    if content.startswith("-> "):
                        info.external_attr = (stat.S_IFLNK | 0o777) << 16
                    archive_file.writestr(info, content.removeprefix("-> "))

        monkeypatch.setattr(torchvision.datasets.utils, "download_url", download)

    return serve


def everything(folder: Path) -> set[str]:
    """Paths of all files and folders, relative to `folder`."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "members",
    [
        [("file", "../../evil", "x")],
        [("file", "101_ObjectCategories/../../../evil", "x")],
        [("link", "101_ObjectCategories/out", "/etc")],
        [("link", "101_ObjectCategories/out", "../../../.."), ("file", "101_ObjectCategories/out/evil", "x")],
        [("link", "101_ObjectCategories", "../../evil-folder"), ("file", "101_ObjectCategories/evil", "x")],
        [("hard", "101_ObjectCategories/passwords", "../../../secret")],
        [("pipe", "101_ObjectCategories/red/pipe", "")],
    ],
    ids=["above", "above from within", "link", "through a link", "linked folder", "hard link", "pipe"],
)
def test_an_archive_with_members_that_lead_outside_is_refused(
    make: Make, tmp_path: Path, silent: Terminal, archive: Callable[..., None], members: list[Any]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "evil-folder").mkdir()
    before = everything(tmp_path)
    archive(tar_of(*members))
    with pytest.raises(
        UserError, match=r"damaged, or would write outside its folder .* and was not used"
    ) as refused:
        build_manifest(caltech(make, tmp_path / "data"), silent)
    assert "\n" not in str(refused.value)
    assert everything(tmp_path) - before <= {"data/.caltech101.lock"}


def test_absolute_names_and_names_in_the_zip_stay_inside(
    make: Make, tmp_path: Path, silent: Terminal, archive: Callable[..., None]
) -> None:
    labels = ("red", "blue", "BACKGROUND_Google")
    pictures = [("file", f"101_ObjectCategories/{label}/x", "x") for label in labels]
    archive(
        tar_of(("file", str(tmp_path / "absolute"), "x"), *pictures),
        ("../../../above", "x"),
        (str(tmp_path / "zipped"), "x"),
        ("caltech-101/link", "-> /etc"),
    )
    (tmp_path / "data").mkdir()
    before = everything(tmp_path)
    with pytest.raises(UserError):  # which are no images
        build_manifest(caltech(make, tmp_path / "data"), silent)
    new = {path for path in everything(tmp_path) - before if not path.startswith("cache")}
    place = "data/caltech101/101_ObjectCategories"
    inside = {place, *(f"{place}/{label}{end}" for label in labels for end in ("", "/x"))}
    assert new == {"data/.caltech101.lock", "data/caltech101"} | inside


@pytest.mark.parametrize("damage", ["cut", "no tar", "no zip"])
def test_a_damaged_archive_is_refused_and_removed(
    make: Make, tmp_path: Path, silent: Terminal, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    def download(_url: str, root: str, filename: str, md5: str) -> None:
        if damage == "no zip":
            (Path(root) / filename).write_bytes(b"no archive")
            return
        inner = tar_of(("file", "101_ObjectCategories/red/x", "x" * 10_000))
        with zipfile.ZipFile(Path(root) / filename, "w") as archive_file:
            content = inner[: len(inner) // 2] if damage == "cut" else b"no archive"
            archive_file.writestr("caltech-101/101_ObjectCategories.tar.gz", content)

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", download)
    with pytest.raises(UserError, match="is damaged, or"):
        build_manifest(caltech(make, tmp_path / "data"), silent)
    assert everything(tmp_path / "data") <= {".caltech101.lock"}


def test_a_python_without_the_data_filter_unpacks_nothing(
    make: Make,
    tmp_path: Path,
    silent: Terminal,
    archive: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive(tar_of(("file", "../../evil", "x")))
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(UserError, match=r"use 3\.11\.4 or newer, or fetch"):
        build_manifest(caltech(make, tmp_path / "data"), silent)
