"""Archives and shards as `data.root` and `data.test`: their manifest, the pictures that are loaded, damage in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from archive_makers import class_members, jpeg, shard_members, write_tar, write_zip

import runner.data.scan
from runner.config.augment_schema import AugmentConfig
from runner.config.schema import Experiment
from runner.data.loader import ImageLoader
from runner.data.manifest import Manifest, build_manifest
from runner.data.transforms import ViewTransform
from runner.utils.console import Terminal
from runner.utils.errors import UserError

Make = Callable[..., Experiment]
Build = Callable[..., Manifest]


@pytest.fixture
def build(make: Make, silent: Terminal, tmp_path: Path) -> Build:
    def manifest(root: Path, *flags: str) -> Manifest:
        return build_manifest(make("--data.root", str(root), *flags), silent)

    return manifest


def as_folder(root: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize("prefix", ["", "photos/"])
@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_an_archive_gives_the_manifest_of_its_folder(
    tmp_path: Path, build: Build, name: str, prefix: str
) -> None:
    members = class_members(6, prefix)
    folder = build(as_folder(tmp_path / "folder", members))
    if name == "a.zip":
        archive = write_zip(tmp_path / name, members)
    else:
        archive = write_tar(tmp_path / name, members, "w:gz" if name.endswith("gz") else "w")
    found = build(archive)
    assert found.entries == folder.entries
    assert found.digest == folder.digest
    assert found.root == archive


@pytest.mark.parametrize("folder", ["photos", "photos/inner"])
def test_a_folder_that_holds_only_an_archive_names_it(tmp_path: Path, build: Build, folder: str) -> None:
    archive = tmp_path / folder / "images.zip"
    archive.parent.mkdir(parents=True)
    write_zip(archive, class_members(6))
    with pytest.raises(UserError, match=r"1 archive \(.*\); name the archive itself: ") as refusal:
        build(tmp_path / "photos")
    assert str(refusal.value).endswith(f"{archive}.")
    (archive.parent / "more.tar.gz").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"2 archives \(.*\); unpack them, or name one of them: .*/images\.zip"
    ):
        build(tmp_path / "photos")


def test_data_nested_without_class_folders_is_a_remark(tmp_path: Path, build: Build) -> None:
    write_tar(tmp_path / "shard.tar", shard_members({str(number): "ab"[number % 2] for number in range(20)}))
    folder = as_folder(tmp_path / "folder", class_members(6))
    table = tmp_path / "labels.csv"
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    table.write_text("path,label\n" + "".join(f"{path},{path.parts[0]}\n" for path in names))
    remark = "data.nested=path has no effect: it is for class folders of data.kind=folder without a table"
    nested = ("--data.nested", "path")
    assert remark not in build(folder, *nested).remarks
    caltech = as_folder(tmp_path, class_members(6, "caltech101/101_ObjectCategories/"))
    for root, *flags in (
        (tmp_path / "shard.tar",),
        (folder, "--data.table", str(table)),
        (caltech, "--data.kind", "caltech101"),
    ):
        assert remark in build(root, *flags, *nested).remarks
        assert remark not in build(root, *flags).remarks


def test_given_splits_in_an_archive_are_kept(tmp_path: Path, build: Build) -> None:
    members = {}
    for number, split in enumerate(("train", "val", "test")):
        for label in ("red", "blue"):
            members[f"{split}/{label}/0.jpg"] = jpeg(label, number)
    found = build(write_zip(tmp_path / "a.zip", members))
    assert all(entry.path.startswith(entry.split) for entry in found.entries)
    assert found.classes == ("blue", "red")


def test_shards_give_a_manifest_with_their_splits(tmp_path: Path, build: Build) -> None:
    (tmp_path / "shards").mkdir()
    for number, split in enumerate(("train", "val", "test")):
        labels = {f"{split}{key}": ("cat", "dog")[key % 2] for key in range(4)}
        members = {}
        for offset, (key, label) in enumerate(labels.items()):
            members |= {f"{key}.jpg": jpeg("red", 10 * number + offset), f"{key}.cls": label.encode()}
        write_tar(tmp_path / "shards" / f"{split}-000.tar", members)
    found = build(tmp_path / "shards")
    assert Counter(entry.split for entry in found.entries) == {"train": 4, "val": 4, "test": 4}
    assert found.entries[0].path == "test-000.tar/test0.jpg"
    one = build(
        tmp_path / "shards" / "train-000.tar", "--data.test", str(tmp_path / "shards" / "test-000.tar")
    )
    assert {entry.path for entry in one.entries if entry.split == "test"} == {
        f"data.test/test-000.tar/test{key}.jpg" for key in range(4)
    }


def test_the_same_pictures_are_loaded(tmp_path: Path, build: Build) -> None:
    members = class_members(6)
    transform = ViewTransform(AugmentConfig(resize=36, crop=32), 0)
    loaded = []
    for root in (as_folder(tmp_path / "folder", members), write_tar(tmp_path / "a.tar", members)):
        manifest = build(root)
        for workers in (0, 2):
            loader = ImageLoader(manifest.files, transform, workers)
            loaded.append(torch.cat(list(loader.batches(manifest.entries, -1, [range(9), range(9, 18)]))))
    assert all(torch.equal(batch, loaded[0]) for batch in loaded)


def test_an_archive_is_verified_once(tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    archives = [
        write_tar(tmp_path / "a.tar", class_members(6)),
        write_zip(tmp_path / "a.zip", class_members(6)),
    ]
    first = [build(archive) for archive in archives]
    monkeypatch.setattr(runner.data.scan, "_verify_all", None)
    assert [build(archive).digest for archive in archives] == [manifest.digest for manifest in first]


def test_members_that_are_no_images_are_named(tmp_path: Path, build: Build) -> None:
    members = class_members(6) | {"red/broken.jpg": b"\xff\xd8\xff" + b"x" * 100}
    archive = write_zip(tmp_path / "a.zip", members)
    with pytest.raises(UserError, match=r"1 of 19 files cannot be used: .*a\.zip/red/broken\.jpg"):
        build(archive)
    assert len(build(archive, "--data.unreadable", "skip").entries) == 18


def test_a_damaged_member_is_named(tmp_path: Path, build: Build) -> None:
    members = class_members(6)
    archive = write_zip(tmp_path / "a.zip", members)
    content = archive.read_bytes()
    archive.write_bytes(content[:60] + bytes(4) + content[64:])
    with pytest.raises(UserError, match=r"a\.zip/blue/00\.jpg cannot be read: damaged in the archive"):
        build(archive)


def test_an_archive_of_flat_images_is_refused_with_a_drawing(tmp_path: Path, build: Build) -> None:
    archive = write_zip(tmp_path / "a.zip", {f"{number}.jpg": jpeg("red", number) for number in range(3)})
    with pytest.raises(UserError, match=r"a\.zip holds no class folders but images"):
        build(archive)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, build: Build) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg("red", 0))
    with pytest.raises(
        UserError, match=r"a\.jpg is a file; data\.root must be the folder .*, or an archive \(\.zip"
    ):
        build(tmp_path / "a.jpg")


def test_shards_of_one_class_or_without_tar_content(tmp_path: Path, build: Build) -> None:
    write_tar(tmp_path / "0.tar", shard_members({"a": "cat", "b": "cat", "c": "cat"}))
    with pytest.raises(UserError, match="only one class"):
        build(tmp_path / "0.tar")
