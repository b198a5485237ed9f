"""What is listed in an image folder: links, files that come and go, names that are not UTF-8, unusable folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from pictures import COLORS, draw

import runner.data.listing
from runner.config.schema import Experiment
from runner.data.listing import list_folder
from runner.data.manifest import Manifest, build_manifest, parse_manifest
from runner.training import hosts, setup
from runner.training.restore import restore_manifest
from runner.utils.console import Terminal
from runner.utils.errors import UserError

Make = Callable[..., Experiment]


def paths(manifest: Manifest) -> list[str]:
    return [entry.path for entry in manifest.entries]


# Links


def test_the_root_may_be_a_link(make: Make, pictures: Path, silent: Terminal, tmp_path: Path) -> None:
    direct = build_manifest(make(), silent)
    (tmp_path / "link").symlink_to(pictures)
    assert build_manifest(make("--data.root", str(tmp_path / "link")), silent).entries == direct.entries


@pytest.fixture
def linked(pictures: Path, tmp_path: Path) -> Path:
    """A linked class folder, a linked folder in a class, a linked file and a link to nowhere."""
    outside = tmp_path / "outside"
    for name in ("violet", "crimson"):
        (outside / name).mkdir(parents=True)
        for number in range(4):
            draw("red", 70 + number + 10 * (name == "violet")).save(outside / name / f"{number}.png")
    (pictures / "violet").symlink_to(outside / "violet")
    (pictures / "red" / "crimson").symlink_to(outside / "crimson")
    draw("red", 99).save(outside / "single.png")
    (pictures / "red" / "single.png").symlink_to(outside / "single.png")
    (pictures / "red" / "nowhere.png").symlink_to(outside / "nowhere.png")
    return pictures


def test_links_below_the_root_are_counted_and_not_followed(
    linked: Path, make: Make, silent: Terminal
) -> None:
    manifest = build_manifest(make(), silent)
    (remark,) = manifest.remarks
    assert remark.startswith("not followed: 4 links (")
    assert all(name in remark for name in ("violet", "red/crimson", "red/single.png", "red/nowhere.png"))
    assert "set data.follow_links=true" in remark
    assert (linked / "violet" / "0.png").is_file()
    assert manifest.classes == ("blue", "green", "red")
    assert len(manifest.entries) == 36


def test_links_below_the_root_are_followed_by_setting(linked: Path, make: Make, silent: Terminal) -> None:
    manifest = build_manifest(make("--data.follow_links", "true"), silent)
    added = {path for path in paths(manifest) if not (linked / path).resolve().is_relative_to(linked)}
    assert added == {
        "red/single.png",
        *(f"{folder}/{number}.png" for folder in ("red/crimson", "violet") for number in range(4)),
    }
    assert manifest.classes == ("blue", "green", "red", "violet")
    assert "left out: 1 link to nowhere (red/nowhere.png); fetch what they lead to" in manifest.remarks


def test_a_class_of_links_only_is_named_with_the_setting(
    make: Make, pictures: Path, silent: Terminal, tmp_path: Path
) -> None:
    """As DVC, git-annex and Hugging Face's cache leave them."""
    (pictures / "red").rename(tmp_path / "store")
    (pictures / "red").mkdir()
    for path in (tmp_path / "store").iterdir():
        (pictures / "red" / path.name).symlink_to(path)
    with pytest.raises(UserError, match=r"red holds no image but 12 links \(.* and 7 more\), not"):
        build_manifest(make(), silent)
    assert len(build_manifest(make("--data.follow_links", "true"), silent).entries) == 36
    for path in (tmp_path / "store").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"red holds no image but 12 links to nowhere .*; fetch what"):
        build_manifest(make("--data.follow_links", "true"), silent)


def test_class_folders_that_are_links_are_named_with_the_setting(
    make: Make, pictures: Path, silent: Terminal, tmp_path: Path
) -> None:
    pictures.rename(tmp_path / "store")
    pictures.mkdir()
    for label in ("blue", "green", "red"):
        (pictures / label).symlink_to(tmp_path / "store" / label)
    with pytest.raises(
        UserError, match=r"no class folders but links \(blue, green, red\).*data\.follow_links=true"
    ):
        build_manifest(make(), silent)
    assert len(build_manifest(make("--data.follow_links", "true"), silent).entries) == 36


@pytest.mark.parametrize("follow", ["false", "true"])
def test_a_class_folder_that_is_a_link_to_nowhere_is_named(
    make: Make, pictures: Path, silent: Terminal, tmp_path: Path, follow: str
) -> None:
    (pictures / "violet").symlink_to(tmp_path / "not mounted")
    manifest = build_manifest(make("--data.follow_links", follow), silent)
    assert manifest.classes == ("blue", "green", "red")
    assert manifest.remarks == ("left out: 1 link to nowhere (violet); fetch what they lead to",)
    for label in ("blue", "green", "red"):
        (pictures / label).rename(tmp_path / label)
    with pytest.raises(UserError, match=r"no class folders but links to nowhere \(violet\); fetch what"):
        build_manifest(make("--data.follow_links", follow), silent)


@pytest.mark.timeout(20)
def test_cycles_of_links_end(make: Make, pictures: Path, silent: Terminal) -> None:
    (pictures / "red" / "up").symlink_to(pictures)
    (pictures / "red" / "again").symlink_to(pictures / "red")
    (pictures / "blue" / "other").symlink_to(pictures / "green")
    (pictures / "green" / "other").symlink_to(pictures / "blue")
    (pictures / "red" / "inner").mkdir()
    draw("red", 90).save(pictures / "red" / "inner" / "once.png")
    (pictures / "red" / "inner" / "again").symlink_to(pictures / "red" / "inner")
    found = paths(build_manifest(make("--data.follow_links", "true"), silent))
    assert len(found) == 36 + 12 + 12 + 1
    assert "blue/other/00.png" in found
    assert not any("again" in path or "up" in path or path.count("other") > 1 for path in found)


@pytest.mark.timeout(20)
def test_a_link_to_itself_is_ignored(make: Make, pictures: Path, silent: Terminal) -> None:
    (pictures / "red" / "self.png").symlink_to("self.png")
    assert len(build_manifest(make("--data.follow_links", "false"), silent).entries) == 36
    assert len(build_manifest(make("--data.follow_links", "true"), silent).entries) == 36


# Many files


def test_processes_list_what_one_process_lists(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in COLORS:
        for inner in ("a", "a.b", "a b/c"):
            (pictures / label / inner).mkdir(parents=True)
            draw(label, 60).save(pictures / label / inner / "1.png")
    alone = list_folder(pictures, follow_links=False)
    monkeypatch.setattr(runner.data.listing, "MANY_FILES", 0)
    monkeypatch.setattr(runner.data.listing, "cpu_count", lambda: 3)
    together = list_folder(pictures, follow_links=False)
    assert list(alone.paths) == sorted(alone.paths)
    assert together.paths == alone.paths
    assert together.folders == alone.folders
    assert np.array_equal(together.folder_of, alone.folder_of)
    assert np.array_equal(together.stamps, alone.stamps)


@pytest.mark.parametrize("ends", [True, False])
def test_what_goes_wrong_in_a_process_that_lists_is_said(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    entries = runner.data.listing._entries

    def failing(folder: str) -> list[os.DirEntry[str]]:
        if folder.endswith("red"):
            if ends:
                os._exit(1)
            raise UserError(f"The folder {folder} cannot be read.")
        return entries(folder)

    monkeypatch.setattr(runner.data.listing, "_entries", failing)
    monkeypatch.setattr(runner.data.listing, "MANY_FILES", 0)
    monkeypatch.setattr(runner.data.listing, "cpu_count", lambda: 2)
    with pytest.raises(UserError, match="lists folders has ended" if ends else "red cannot be read"):
        list_folder(pictures, follow_links=False)


# Files that come and go


def test_a_file_that_disappears_while_the_folder_is_listed_is_not_there(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Disappearing:
        """An entry of a folder whose file is gone."""

        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.entry = entry

        def __getattr__(self, name: str) -> object:
            if name == "stat" and self.entry.name == "05.png":
                raise FileNotFoundError(2, "No such file or directory", self.entry.path)
            return getattr(self.entry, name)

    scandir = os.scandir

    @contextmanager
    def listed(folder: str) -> Iterator[list[Disappearing]]:
        with scandir(folder) as entries:
            yield [Disappearing(entry) for entry in entries]

    with monkeypatch.context() as disappearing:
        disappearing.setattr(os, "scandir", listed)
        found = list_folder(pictures, follow_links=False)
    assert len(found.paths) == 33


def test_a_folder_that_disappears_while_it_is_listed_is_empty(
    make: Make, pictures: Path, silent: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "red" / "new").mkdir()
    scandir = os.scandir

    def gone(folder: str | Path = ".") -> object:
        if Path(folder).name == "new":
            raise FileNotFoundError(2, "No such file or directory", str(folder))
        return scandir(folder)

    with monkeypatch.context() as gone_folder:
        gone_folder.setattr(os, "scandir", gone)
        assert len(build_manifest(make(), silent).entries) == 36


def test_processes_that_find_different_images_do_not_train(
    make: Make, silent: Terminal, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "gather_object", lambda own: [*own, {"images or split": "others"}])
    with pytest.raises(UserError, match=r"found different images .* start again when nothing writes there"):
        setup.prepare(make("--model.weights", "null"), accelerator, silent)


# Names that are not UTF-8


def test_a_class_whose_name_is_not_utf8_has_one_in_unicode(
    make: Make, pictures: Path, silent: Terminal
) -> None:
    (pictures / "red").rename(pictures / os.fsdecode(b"caf\xe9"))
    manifest = build_manifest(make(), silent)
    assert manifest.classes == ("blue", r"caf\xe9", "green")
    assert [entry for entry in manifest.entries if (pictures / entry.path).is_file()] == list(
        manifest.entries
    )
    table = manifest.to_csv()
    assert table.encode().decode() == table
    again = parse_manifest(table, pictures)
    assert [entry.label for entry in again.entries] == [entry.label for entry in manifest.entries]
    restored = restore_manifest(make(), table, silent)
    assert (restored.entries, restored.digest) == (manifest.entries, manifest.digest)


def test_two_classes_that_would_get_the_same_name_are_refused(
    make: Make, pictures: Path, silent: Terminal
) -> None:
    (pictures / "red").rename(pictures / os.fsdecode(b"caf\xe9"))
    (pictures / "green").rename(pictures / r"caf\xe9")
    with pytest.raises(UserError, match=r"Two class folders in .* are called caf\\xe9 once"):
        build_manifest(make(), silent)


# Unusable folders


def test_an_empty_class_folder_is_named(make: Make, pictures: Path, silent: Terminal) -> None:
    (pictures / "amber").mkdir()
    with pytest.raises(UserError, match=f"class folder {pictures / 'amber'} holds no image"):
        build_manifest(make(), silent)


def test_a_class_folder_with_broken_files_only_is_named(make: Make, pictures: Path, silent: Terminal) -> None:
    (pictures / "amber").mkdir()
    (pictures / "amber" / "words.png").write_text("no picture")
    with pytest.raises(UserError, match=r"No image of the class amber can be read.* remove the class"):
        build_manifest(make("--data.unreadable", "skip"), silent)


def test_an_empty_linked_class_folder_is_named_if_links_are_followed(
    make: Make, pictures: Path, silent: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "hollow").mkdir()
    (pictures / "amber").symlink_to(tmp_path / "hollow")
    assert build_manifest(make(), silent).classes == ("blue", "green", "red")
    with pytest.raises(UserError, match=f"class folder {pictures / 'amber'} holds no image"):
        build_manifest(make("--data.follow_links", "true"), silent)


def test_all_empty_class_folders_are_named(make: Make, pictures: Path, silent: Terminal) -> None:
    for name in ("amber", "ocher"):
        (pictures / name).mkdir()
    with pytest.raises(UserError, match=r"class folders .*amber, .*ocher hold no image; fill or remove them"):
        build_manifest(make(), silent)


def test_a_root_without_class_folders_is_named(make: Make, silent: Terminal, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    draw("red", 0).save(flat / "a.png")
    with pytest.raises(UserError, match=f"{flat} holds no class folders"):
        build_manifest(make("--data.root", str(flat)), silent)


def test_a_missing_root_is_named(make: Make, silent: Terminal, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no folder {tmp_path / 'nowhere'}; set data\.root"):
        build_manifest(make("--data.root", str(tmp_path / "nowhere")), silent)


def test_a_root_that_is_a_file_is_named(make: Make, silent: Terminal, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"photo\.jpg is a file; data\.root must be the folder"):
        build_manifest(make("--data.root", str(tmp_path / "photo.jpg")), silent)


def test_a_folder_that_cannot_be_read_is_named(
    make: Make, pictures: Path, silent: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def closed(folder: str | Path = ".") -> object:
        if Path(folder).name == "green":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    with monkeypatch.context() as locked:
        locked.setattr(os, "scandir", closed)
        with pytest.raises(UserError, match=f"folder {pictures / 'green'} cannot be read"):
            build_manifest(make(), silent)
    assert len(build_manifest(make(), silent).entries) == 36
