"""Decoding an image folder: the cache, broken files, files that come and go."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import draw
from PIL import Image

import runner.data.manifest
import runner.data.scan
from runner.config.schema import Experiment
from runner.data.dataset_listing import list_dataset
from runner.data.files import FolderFiles, ImageFiles
from runner.data.listing import Listing
from runner.data.manifest import Manifest, build_manifest
from runner.data.scan import Verdicts, scan_images
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.hashing import digest_bytes

Make = Callable[..., Experiment]


def paths(manifest: Manifest) -> list[str]:
    return [entry.path for entry in manifest.entries]


# The cache


def test_a_second_scan_decodes_nothing(make: Make, silent: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_manifest(make(), silent)

    def refuse(_files: ImageFiles, paths: list[str]) -> Verdicts:
        raise AssertionError(f"{paths[0]} is decoded again")

    monkeypatch.setattr(runner.data.scan, "verify_files", refuse)
    assert build_manifest(make(), silent) == first
    with pytest.raises(AssertionError, match="is decoded again"):
        build_manifest(make("--cache", make().cache + "-other"), silent)


def test_a_changed_file_is_decoded_again(
    make: Make, pictures: Path, silent: Terminal, decoded: list[str]
) -> None:
    path = pictures / "red" / "05.png"
    before = build_manifest(make(), silent)
    assert len(decoded) == 36
    decoded.clear()
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    with pytest.raises(UserError, match=r"red/05\.png cannot be decoded"):
        build_manifest(make(), silent)
    assert decoded == ["05.png"]
    assert len(before.entries) == 36


def test_a_file_swapped_for_another_is_decoded_again(
    make: Make, pictures: Path, silent: Terminal, decoded: list[str]
) -> None:
    build_manifest(make(), silent)
    decoded.clear()
    draw("red", 50).save(pictures / "outside.png")
    (pictures / "outside.png").replace(pictures / "red" / "05.png")
    entry = next(e for e in build_manifest(make(), silent).entries if e.path == "red/05.png")
    assert decoded == ["05.png"]
    assert entry.digest == digest_bytes((pictures / "red" / "05.png").read_bytes())


def test_only_a_new_file_is_decoded_and_a_deleted_one_is_dropped(
    make: Make, pictures: Path, silent: Terminal, decoded: list[str]
) -> None:
    build_manifest(make(), silent)
    decoded.clear()
    draw("red", 50).save(pictures / "red" / "new.png")
    (pictures / "red" / "05.png").unlink()
    found = paths(build_manifest(make(), silent))
    assert decoded == ["new.png"]
    assert "red/new.png" in found
    assert "red/05.png" not in found


def test_images_that_another_table_names_stay_remembered(
    make: Make, pictures: Path, silent: Terminal, decoded: list[str], tmp_path: Path
) -> None:
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    for name in ("00.png", "08.png"):
        deep.save(pictures / "red" / name)

    def scan(rows: slice) -> Verdicts:
        decoded.clear()
        listing = list_dataset(make().data, tmp_path, silent)
        chosen = np.zeros(len(listing.paths), bool)
        chosen[rows] = True
        return scan_images(listing.take(chosen), tmp_path / "cache", silent)

    whole = scan(slice(None))
    draw("red", 50).save(pictures / "red" / "05.png")
    scan(slice(24, 32))
    assert decoded == ["05.png"]
    again = scan(slice(None))
    assert not decoded
    assert np.array_equal(again.digests[:29], whole.digests[:29])
    assert again.gray == whole.gray
    assert sorted(again.gray) == [24, 32]


def test_new_files_whose_times_are_whole_seconds_are_not_remembered(
    make: Make, silent: Terminal, decoded: list[str], tmp_path: Path
) -> None:
    """Within the same second they may be rewritten, and nothing would tell."""
    listing = list_dataset(make().data, tmp_path, silent)
    second = 1_000_000_000
    soon = (time.time_ns() // second + 600) * second  # new for as long as the test takes
    earlier = soon - 3600 * second

    def decoded_by_scan(times: int, count: int) -> int:
        decoded.clear()
        stamps = listing.stamps.copy()
        stamps[:count, 1:3] = times
        scan_images(replace(listing, stamps=stamps), tmp_path / "cache", silent)
        return len(decoded)

    assert [decoded_by_scan(soon, 36), decoded_by_scan(soon, 36)] == [36, 36]
    assert [decoded_by_scan(soon, 10), decoded_by_scan(soon, 10)] == [36, 10]
    assert [decoded_by_scan(earlier, 10), decoded_by_scan(earlier, 10)] == [10, 0]
    assert [decoded_by_scan(soon + 1, 10), decoded_by_scan(soon + 1, 10)] == [10, 0]


def test_an_interrupted_scan_continues_where_it_stopped(
    make: Make, silent: Terminal, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = runner.data.scan.verify_files

    def interrupted(files: ImageFiles, paths: list[str]) -> Verdicts:
        if len(decoded) >= 30:
            raise KeyboardInterrupt
        return recording(files, paths)

    # A single thread makes it certain how far the scan came.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0}, raising=False)
    monkeypatch.setattr(runner.data.scan, "verify_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_manifest(make(), silent)
    decoded_before = set(decoded)
    decoded.clear()
    monkeypatch.setattr(runner.data.scan, "verify_files", recording)
    assert len(build_manifest(make(), silent).entries) == 36
    assert 6 <= len(decoded) <= 6 + 4
    assert len(decoded_before) == 12


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"0" * 40 + b"\n[]"])
def test_a_damaged_cache_file_is_replaced(
    make: Make, silent: Terminal, decoded: list[str], content: bytes
) -> None:
    first = build_manifest(make(), silent)
    (cache_file,) = (Path(make().cache) / "scans").glob("*/*")
    cache_file.write_bytes(content)
    decoded.clear()
    assert build_manifest(make(), silent) == first
    assert len(decoded) == 36


def test_a_read_error_is_not_cached(make: Make, silent: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    read = FolderFiles.read

    def failing(files: FolderFiles, path: str) -> bytes:
        if path.endswith("05.png"):
            raise OSError(5, "Input/output error")
        return read(files, path)

    with monkeypatch.context() as broken:
        broken.setattr(FolderFiles, "read", failing)
        with pytest.raises(UserError, match=r"red/05\.png cannot be read: Input/output error"):
            build_manifest(make(), silent)
    assert len(build_manifest(make(), silent).entries) == 36


def test_a_scan_reads_each_file_once(make: Make, silent: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    read, opened = FolderFiles.read, Image.open
    paths: list[str] = []

    def reading(files: FolderFiles, path: str) -> bytes:
        paths.append(path)
        return read(files, path)

    def opening(file: object) -> Image.Image:
        assert isinstance(file, io.BytesIO)
        return opened(file)

    monkeypatch.setattr(FolderFiles, "read", reading)
    monkeypatch.setattr(Image, "open", opening)
    build_manifest(make(), silent)
    assert len(paths) == len(set(paths)) == 36


# Broken files


@pytest.fixture
def broken(pictures: Path) -> Path:
    """An empty, a truncated and a text file among the red pictures."""
    complete = (pictures / "red" / "00.png").read_bytes()
    (pictures / "red" / "empty.png").write_bytes(b"")
    (pictures / "red" / "truncated.png").write_bytes(complete[: len(complete) // 2])
    (pictures / "red" / "words.png").write_text("no picture")
    return pictures


@pytest.mark.parametrize("scans", [1, 2])
def test_broken_files_stop_the_scan_and_are_named(
    broken: Path, make: Make, silent: Terminal, scans: int
) -> None:
    for _ in range(scans):
        with pytest.raises(UserError) as refused:
            build_manifest(make(), silent)
        sentence = str(refused.value)
        assert sentence.startswith("3 of 39 files cannot be used")
        assert f"{broken / 'red' / 'empty.png'} is empty" in sentence
        assert f"{broken / 'red' / 'truncated.png'} cannot be decoded" in sentence
        assert f"{broken / 'red' / 'words.png'} is not an image" in sentence
        assert "data.unreadable=skip" in sentence


def test_a_name_with_a_line_break_stays_in_one_line(make: Make, pictures: Path, silent: Terminal) -> None:
    (pictures / "red" / "two\nlines.png").write_text("no picture")
    with pytest.raises(UserError, match=r"red/two\\nlines\.png is not an image"):
        build_manifest(make(), silent)


def test_broken_files_are_skipped_by_setting_and_listed(broken: Path, make: Make, silent: Terminal) -> None:
    manifest = build_manifest(make("--data.unreadable", "skip"), silent)
    assert len(manifest.entries) == 36
    assert [file.path for file in manifest.rejected] == [
        *("red/empty.png", "red/truncated.png", "red/words.png")
    ]
    table = manifest.rejected_to_csv().splitlines()
    assert table[0] == "path,class,size,reason"
    assert table[1] == "red/empty.png,red,0,is empty"
    assert len(table) == 4


def test_a_truncated_jpeg_is_detected(make: Make, pictures: Path, silent: Terminal) -> None:
    path = pictures / "red" / "photo.jpg"
    draw("red", 60, (200, 160)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"photo\.jpg cannot be decoded: image file is truncated"):
        build_manifest(make(), silent)


def test_many_broken_files_are_counted_and_some_named(make: Make, pictures: Path, silent: Terminal) -> None:
    for number in range(8):
        (pictures / "blue" / f"empty{number}.png").touch()
    with pytest.raises(UserError, match=r"8 of 44 files .*empty4\.png is empty and 3 more"):
        build_manifest(make(), silent)


def test_hidden_and_desktop_files_are_ignored(make: Make, pictures: Path, silent: Terminal) -> None:
    before = build_manifest(make(), silent)
    for name in (".DS_Store", "._00.png", "Thumbs.db", "desktop.ini"):
        (pictures / "red" / name).write_bytes(b"x")
    (pictures / "red" / ".cache").mkdir()
    draw("red", 70).save(pictures / "red" / ".cache" / "small.png")
    (pictures / ".git").mkdir()
    (pictures / "README.txt").write_text("not in a class folder")
    assert build_manifest(make(), silent) == before


def test_folders_inside_a_class_belong_to_it(make: Make, pictures: Path, silent: Terminal) -> None:
    (pictures / "red" / "dark" / "very").mkdir(parents=True)
    draw("red", 70).save(pictures / "red" / "dark" / "very" / "one.png")
    entry = next(e for e in build_manifest(make(), silent).entries if e.path == "red/dark/very/one.png")
    assert entry.label == "red"


def test_file_names_may_hold_any_characters(make: Make, pictures: Path, silent: Terminal) -> None:
    names = ["Käfer 甲虫.png", 'a,b "c".png', "line\nbreak.png", os.fsdecode(b"latin-\xe9.png")]
    for number, name in enumerate(names):
        draw("red", 70 + number).save(pictures / "red" / name)
    first = build_manifest(make(), silent)
    assert {f"red/{name}" for name in names} <= set(paths(first))
    assert build_manifest(make(), silent) == first


# Files that come and go


def test_files_that_disappear_while_they_are_read_are_named(
    make: Make, pictures: Path, silent: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = runner.data.manifest.list_dataset

    def list_then_delete(*given: Any) -> Listing:
        found = listed(*given)
        (pictures / "red" / "05.png").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(runner.data.manifest, "list_dataset", list_then_delete)
    with pytest.raises(
        UserError, match=r"1 of 36 files .*red/05\.png disappeared while the images were read"
    ):
        build_manifest(make(), silent)
    assert len(build_manifest(make(), silent).entries) == 35


def test_a_file_that_another_pillow_may_read_is_tried_again(
    broken: Path, make: Make, silent: Terminal, decoded: list[str]
) -> None:
    for _ in range(2):
        decoded.clear()
        build_manifest(make("--data.unreadable", "skip"), silent)
    assert sorted(decoded) == ["empty.png", "truncated.png", "words.png"]
