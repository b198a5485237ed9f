"""The file of an exported run: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import json
import math
import os
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.tracking import archive_reader
from runner.tracking.archive_reader import extract, open_archive
from runner.tracking.run_archive import (
    DESCRIPTION,
    ArchivedInput,
    ArchivedModel,
    ArchivedRun,
    ArchiveWriter,
    RunArchive,
)
from runner.utils.errors import UserError

ODD = (0.1, -0.0, 5e-324, 1.7976931348623157e308, math.nan, math.inf, -math.inf, 1 / 3, 2.0**-1074)
Change = Callable[[dict[str, Any]], None]


def bits(value: float) -> bytes:
    return struct.pack("d", value)


def archived_run(writer: ArchiveWriter, folder: Path, run_id: str = "a1", **changes: Any) -> ArchivedRun:
    """A run with two artifacts of equal content, and a model that has that content, too."""
    paths = ("checkpoints/frozen.safetensors", "a copy/ä #1.bin", "manifest.csv")
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"path,label\n" if path == "manifest.csv" else b"weights" * 1000)
    fields: dict[str, Any] = {
        "id": run_id,
        "name": "vgg11 seed=0",
        "experiment": "flowers",
        "status": "FINISHED",
        "start": 1,
        "end": 2,
        "parent": "",
        "params": {"lr": "0.1", "empty": ""},
        "tags": {"note": "line\nbreak ü"},
        "metrics": {"loss": tuple((step, 1000 + step, value) for step, value in enumerate(ODD))},
        "inputs": (ArchivedInput("flowers", "d1", "local", "/data", tags={"context": "train"}),),
        "files": tuple(writer.add(folder / path, path, f"runs/{run_id}/artifacts") for path in paths),
        "model": ArchivedModel(
            {"top1": 0.5},
            3,
            "m1",
            "flowers",
            "top1",
            (writer.add(folder / paths[0], "classifier/frozen.safetensors", f"runs/{run_id}/model"),),
        ),
    }
    return ArchivedRun(**fields | changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An archive of one run."""
    path = tmp_path / "run.zip"
    with zipfile.ZipFile(path, "w") as archive:
        writer = ArchiveWriter(archive)
        writer.finish(RunArchive((archived_run(writer, tmp_path / "files"),)))
    return path


def read(path: Path, folder: Path | None = None) -> RunArchive:
    """The content of an archive, extracted if a folder is given."""
    with open_archive(path) as (archive, content):
        if folder is not None:
            extract(archive, content, folder)
    return content


def refusal(path: Path, folder: Path) -> str:
    """The sentence with which an archive is refused; nothing may lie outside the folder."""
    folder.mkdir(exist_ok=True)
    outside = set(folder.parent.rglob("*")) - set(folder.rglob("*"))
    with pytest.raises(UserError) as caught:
        read(path, folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert set(folder.parent.rglob("*")) - set(folder.rglob("*")) == outside
    return sentence


def rewrite(
    path: Path, change: Change, entry: str = "", content: bytes | None = None, **attributes: Any
) -> None:
    """Write an archive again with another description, and with another entry if one is given."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    description = json.loads(entries.pop(DESCRIPTION))
    change(description)
    entries[DESCRIPTION] = json.dumps(description).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, each in entries.items():
            archive.writestr(name, each)
        if entry:
            info = zipfile.ZipInfo(entry)
            for name, value in attributes.items():
                setattr(info, name, value)
            with warnings.catch_warnings(action="ignore"):  # of a name that is there twice
                archive.writestr(info, content or b"")


def test_all_is_read_back_to_the_last_bit(path: Path, tmp_path: Path) -> None:
    content = read(path, tmp_path / "out")
    (run,) = content.runs
    assert [bits(value) for _, _, value in run.metrics["loss"]] == [bits(value) for value in ODD]
    assert (run.params, run.tags, run.inputs[0].tags) == (
        {"lr": "0.1", "empty": ""},
        {"note": "line\nbreak ü"},
        {"context": "train"},
    )
    assert run.model is not None
    assert (run.model.metrics, run.model.step) == ({"top1": 0.5}, 3)
    folder = tmp_path / "out" / "a1"
    for file in run.files:
        assert (folder / "artifacts" / file.path).read_bytes() == (
            tmp_path / "files" / file.path
        ).read_bytes()
    assert (folder / "model" / "classifier" / "frozen.safetensors").read_bytes() == b"weights" * 1000


def test_equal_files_are_in_the_archive_and_on_disk_once(path: Path, tmp_path: Path) -> None:
    content = read(path, tmp_path / "out")
    assert len(content.entries) == 2
    assert content.bytes == len(b"weights") * 1000 + len(b"path,label\n")
    names = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert sorted(file.stat().st_nlink for file in names) == [1, 3, 3, 3]


def test_where_there_are_no_links_files_are_copied(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", link)
    read(path, tmp_path / "out")
    assert len([file for file in (tmp_path / "out").rglob("*") if file.is_file()]) == 4


def test_equal_runs_make_equal_archives(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.zip"
    with zipfile.ZipFile(again, "w") as archive:
        writer = ArchiveWriter(archive)
        writer.finish(RunArchive((archived_run(writer, tmp_path / "files"),)))
    assert again.read_bytes() == path.read_bytes()


@given(value=st.floats())
def test_every_value_is_kept(value: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("values")
    with zipfile.ZipFile(folder / "run.zip", "w") as archive:
        writer = ArchiveWriter(archive)
        run = archived_run(writer, folder, metrics={"loss": ((0, 0, value),)})
        writer.finish(RunArchive((run,)))
    kept = read(folder / "run.zip").runs[0].metrics["loss"][0][2]
    assert bits(kept) == bits(value) or (math.isnan(kept) and math.isnan(value))


# Refusals


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "There is no" in refusal(tmp_path / "none.zip", out)
    assert "is a folder" in refusal(tmp_path, out)
    (tmp_path / "text.zip").write_text("no archive")
    assert "damaged, not complete, or not written by ./launch.sh" in refusal(tmp_path / "text.zip", out)
    (tmp_path / "empty.zip").touch()
    assert "damaged" in refusal(tmp_path / "empty.zip", out)


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"photo.jpg": b"\xff\xd8"},
        {DESCRIPTION: b"[1, 2]"},
        {DESCRIPTION: b'{"format": "other"}'},
        {DESCRIPTION: b"\xff\xfe no JSON"},
        {DESCRIPTION: b"[" * 100_000},
    ],
)
def test_files_of_other_programs_are_refused(tmp_path: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert "is no exported run" in refusal(tmp_path / "other.zip", tmp_path / "out")


def test_a_format_of_the_future_is_refused(path: Path, tmp_path: Path) -> None:
    rewrite(path, lambda description: description.update(version=2, runs="something new"))
    assert "has format 2" in refusal(path, tmp_path / "out")
    rewrite(path, lambda description: description.update(version="one"))
    assert "is no version" in refusal(path, tmp_path / "out")


@pytest.mark.parametrize(
    "outside", ["../evil", "/etc/evil", "a/../../evil", "a//b", "./a", "..", "", "a\\b", "a\0b"]
)
@pytest.mark.parametrize("field", ["path", "entry"])
def test_names_that_lead_elsewhere_are_refused(path: Path, tmp_path: Path, outside: str, field: str) -> None:
    def change(description: dict[str, Any]) -> None:
        description["runs"][0]["files"][0][field] = outside

    rewrite(path, change, outside if field == "entry" and outside and "\0" not in outside else "")
    assert "is no path inside a folder" in refusal(path, tmp_path / "out")


@pytest.mark.parametrize("run_id", ["", "..", "a/b", "/a", "ä", "x" * 65])
def test_ids_that_lead_elsewhere_are_refused(path: Path, tmp_path: Path, run_id: str) -> None:
    rewrite(path, lambda description: description["runs"][0].update(id=run_id))
    assert "ids of its runs" in refusal(path, tmp_path / "out")


def test_entries_that_no_run_has_are_refused(path: Path, tmp_path: Path) -> None:
    rewrite(path, lambda _: None, "../../evil", b"evil")
    assert "'../../evil' is not part of a run" in refusal(path, tmp_path / "out")


def test_a_missing_or_repeated_entry_is_refused(path: Path, tmp_path: Path) -> None:
    first = read(path).runs[0].files[2]
    rewrite(path, lambda _: None, first.entry, b"path,label\n")
    assert "two files have one name" in refusal(path, tmp_path / "out")
    rewrite(path, lambda description: description["runs"][0]["files"][2].update(entry="a"))
    assert "is missing" in refusal(path, tmp_path / "out")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR])
def test_links_folders_and_devices_are_refused(path: Path, tmp_path: Path, kind: int) -> None:
    def change(description: dict[str, Any]) -> None:
        file = {"path": "link", "entry": "runs/a1/link", "bytes": 11, "sha256": ""}
        description["runs"][0]["files"].append(file)

    rewrite(path, change, "runs/a1/link", b"/etc/passwd", external_attr=(kind | 0o777) << 16, create_system=3)
    assert "is no file, but a link" in refusal(path, tmp_path / "out")


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b", "a")])
def test_two_files_of_one_name_are_refused(path: Path, tmp_path: Path, paths: tuple[str, str]) -> None:
    def change(description: dict[str, Any]) -> None:
        for file, name in zip(description["runs"][0]["files"], paths, strict=False):
            file["path"] = name

    rewrite(path, change)
    assert "two files are named" in refusal(path, tmp_path / "out")


def test_a_size_that_is_not_true_is_refused(path: Path, tmp_path: Path) -> None:
    rewrite(path, lambda description: description["runs"][0]["files"][2].update(bytes=5))
    assert "has another size than 5" in refusal(path, tmp_path / "out")


def test_a_bomb_is_not_unpacked(path: Path, tmp_path: Path) -> None:
    """Its directory says that a file is small; it would become large."""
    size, bomb = 11, b"\0" * ((64 << 20) + 12345)

    def change(description: dict[str, Any]) -> None:
        file = {"path": "bomb", "entry": "runs/a1/bomb", "bytes": size, "sha256": ""}
        description["runs"][0]["files"].append(file)

    rewrite(path, change, "runs/a1/bomb", bomb, compress_type=zipfile.ZIP_DEFLATED)
    raw = path.read_bytes()
    assert raw.count(struct.pack("<I", len(bomb))) == 2
    path.write_bytes(raw.replace(struct.pack("<I", len(bomb)), struct.pack("<I", size)))
    assert "damaged" in refusal(path, tmp_path / "out")
    assert sum(file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.is_file()) < 1 << 20


def test_a_description_that_is_a_bomb_is_not_read(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_reader, "LARGEST_DESCRIPTION", 100)
    assert f"{DESCRIPTION} is larger" in refusal(path, tmp_path / "out")


def test_changed_content_is_refused(path: Path, tmp_path: Path) -> None:
    sha256 = "0" * 64
    rewrite(path, lambda description: description["runs"][0]["files"][2].update(sha256=sha256))
    assert "is not what was exported" in refusal(path, tmp_path / "out")


def test_every_truncated_or_damaged_archive_is_refused(path: Path, tmp_path: Path) -> None:
    raw = path.read_bytes()
    for length in range(0, len(raw), 97):
        path.write_bytes(raw[:length])
        assert "damaged" in refusal(path, tmp_path / f"out {length}")
    whole = None
    for place in range(0, len(raw), 41):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :])
        try:
            content = read(path, tmp_path / f"out {place} changed")
        except UserError:
            continue
        path.write_bytes(raw)
        whole = whole or asdict(read(path))
        assert repr(asdict(content)) == repr(whole)  # a date or an attribute, which nobody reads


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run.update(status="RUNNING"),
        lambda run: run.pop("metrics"),
        lambda run: run.update(metrics={"loss": [[1, 2]]}),
        lambda run: run.update(metrics={"loss": [[1, 2, "high"]]}),
        lambda run: run.update(metrics={"loss": [[1.5, 2, 3]]}),
        lambda run: run.update(params=[["lr", 1]]),
        lambda run: run.update(params={"lr": 1}),
        lambda run: run.update(files=[None]),
        lambda run: run.update(start=None),
        lambda run: run.update(start=10**400),
        lambda run: run["files"][0].update(bytes=-1),
    ],
)
def test_descriptions_of_another_kind_are_refused(path: Path, tmp_path: Path, change: Change) -> None:
    rewrite(path, lambda description: change(description["runs"][0]))
    assert "damaged, not complete, or not written by" in refusal(path, tmp_path / "out")


def test_an_archive_with_a_password_is_refused(path: Path, tmp_path: Path) -> None:
    raw = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = raw.find(signature)
        while place >= 0:
            raw[place + offset] |= 1
            place = raw.find(signature, place + 1)
    path.write_bytes(bytes(raw))
    assert "damaged" in refusal(path, tmp_path / "out")
