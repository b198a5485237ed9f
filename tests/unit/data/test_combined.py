"""Test images that lie elsewhere (data.test)."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import draw

from runner.config.data_schema import DataConfig
from runner.config.schema import Experiment
from runner.data.dataset_listing import list_dataset
from runner.data.images import NO_SPLIT
from runner.data.layouts.combined import with_test_images
from runner.data.layouts.layout import arrange
from runner.data.listing import Listing, list_folder
from runner.data.manifest import build_manifest
from runner.utils.console import Terminal
from runner.utils.errors import UserError

Make = Callable[..., Experiment]


def write(root: Path, *folders: str, count: int = 5, first: int = 100) -> Path:
    """Pictures in folders that are called by their color, perhaps inside others."""
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(first, first + count):
            draw(Path(folder).name, number).save(root / folder / f"{number}.png")
    return root


def listed(root: Path) -> Listing:
    data = DataConfig(kind="folder", root=str(root))
    return arrange(list_folder(root, False), data)


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    return write(tmp_path / "tests", "blue", "green", "red")


def test_the_test_images_are_those_of_data_test(
    make: Make, pictures: Path, tests: Path, silent: Terminal
) -> None:
    manifest = build_manifest(make("--data.test", str(tests)), silent)
    assert {entry.path for entry in manifest.select("test")} == {
        f"data.test/{color}/{number}.png" for color in ("blue", "green", "red") for number in range(100, 105)
    }
    assert manifest.counts() == {"train": 24, "val": 12, "test": 15}  # a third of the images of data.root
    assert list(manifest.entries.paths) == sorted(manifest.entries.paths)
    assert manifest.classes == ("blue", "green", "red")
    assert f"test images from {tests} (class folders)" in manifest.layout
    for path in ("data.test/red/100.png", "red/00.png"):
        root = tests if path.startswith("data.test") else pictures
        file = root / path.removeprefix("data.test/")
        assert manifest.files.read(path) == pickle.loads(pickle.dumps(manifest.files)).read(path)
        assert manifest.files.read(path) == file.read_bytes()
        assert manifest.files.shown(path) == str(file)


def test_the_other_images_keep_their_split_whatever_the_test_images_are(
    make: Make, pictures: Path, tests: Path, silent: Terminal
) -> None:
    first = build_manifest(make("--data.test", str(tests)), silent)
    for number in range(200, 210):
        draw("red", number).save(tests / "red" / f"{number}.png")
    second = build_manifest(make("--data.test", str(tests)), silent)
    assert second.counts()["test"] == first.counts()["test"] + 10
    for split in ("train", "val"):
        assert first.select(split) == second.select(split)


@pytest.mark.parametrize("around", ["test", "photos/Test"])
def test_data_test_may_hold_a_test_folder(make: Make, silent: Terminal, tmp_path: Path, around: str) -> None:
    tests = write(tmp_path / "tests", *(f"{around}/{color}" for color in ("blue", "green", "red")))
    manifest = build_manifest(make("--data.test", str(tests)), silent)
    assert manifest.select("test")[0].path == f"data.test/{around}/blue/100.png"


def test_data_root_may_have_train_and_val_folders(
    make: Make, silent: Terminal, tmp_path: Path, tests: Path
) -> None:
    root = tmp_path / "own"
    for split, first in (("train", 200), ("val", 300)):
        write(root, *(f"{split}/{color}" for color in ("red", "blue", "green")), first=first)
    manifest = build_manifest(make("--data.root", str(root), "--data.test", str(tests)), silent)
    assert manifest.counts() == {"train": 15, "val": 15, "test": 15}


def test_classes_that_only_the_test_images_have_are_refused(
    make: Make, pictures: Path, tests: Path, silent: Terminal
) -> None:
    (tests / "red").rename(tests / "violet")
    with pytest.raises(UserError, match="violet"):
        build_manifest(make("--data.test", str(tests)), silent)


def test_a_damaged_test_image_is_named_where_it_lies(
    make: Make, pictures: Path, tests: Path, silent: Terminal
) -> None:
    (tests / "red" / "bad.png").write_text("none")
    with pytest.raises(UserError, match=f"{tests}/red/bad.png is not an image"):
        build_manifest(make("--data.test", str(tests)), silent)


def test_each_place_is_scanned_once(
    make: Make, pictures: Path, tests: Path, silent: Terminal, decoded: list[str]
) -> None:
    """Whatever it is combined with."""
    build_manifest(make(), silent)
    build_manifest(make("--data.root", str(tests)), silent)
    assert len(decoded) == 36 + 15
    combined = build_manifest(make("--data.test", str(tests)), silent)
    assert len(decoded) == 36 + 15
    assert (
        combined.select("test")[0].digest
        == build_manifest(make("--data.root", str(tests)), silent).entries[0].digest
    )


def refused(main: Path, test: Path) -> str:
    with pytest.raises(UserError) as refusal:
        with_test_images(listed(main), listed(test))
    assert str(refusal.value).endswith(".")
    return str(refusal.value)


def test_places_that_overlap_are_refused(pictures: Path, tests: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pictures)
    assert "are the same place" in refused(pictures, tmp_path / "link")
    inside = write(pictures / "blue" / "tests", "red")
    assert "lies in the other" in refused(pictures, inside)
    assert "lies in the other" in refused(inside, pictures)


def test_test_images_may_lie_beside_those_that_a_table_names(
    pictures: Path, silent: Terminal, tmp_path: Path
) -> None:
    write(pictures / "tests", "red")
    table = pictures / "labels.csv"
    table.write_text("path,label\n" + "".join(f"blue/{n:02}.png,{'ab'[n % 2]}\n" for n in range(12)))
    data = DataConfig("folder", table=str(table), test=str(pictures / "tests"))
    listing = list_dataset(data, tmp_path, silent)
    assert listing.splits is not None
    assert set(listing.splits.tolist()) == {NO_SPLIT, 2}


def test_two_test_splits_are_refused(tests: Path, tmp_path: Path) -> None:
    root = write(tmp_path / "own", "train/red", "test/red")
    assert "has test images itself (train and test folders with class folders)" in refused(root, tests)
    assert f"data.test={root} has more than test images" in refused(tests, root)


def test_a_folder_called_as_the_test_images_is_refused(tests: Path, tmp_path: Path) -> None:
    root = write(tmp_path / "own", "red")
    (root / "red").rename(root / "data.test")
    write(root, "red", "blue")
    assert "holds a folder data.test" in refused(root, tests)


def test_groups_of_test_images_are_others(pictures: Path, tests: Path) -> None:
    import dataclasses

    main, test = listed(pictures), listed(tests)
    grouped = dataclasses.replace(main, groups=np.arange(len(main.paths), dtype=np.int32) // 2)
    groups = with_test_images(grouped, test).groups
    assert groups is not None
    assert sorted(groups)[:16] == [-1] * 15 + [0]
    own = np.zeros(len(test.paths), np.int32)
    groups = with_test_images(grouped, dataclasses.replace(test, groups=own)).groups
    assert groups is not None
    assert groups.max() == 18
    assert (groups == 18).sum() == 15


def test_a_file_that_is_no_archive_holds_no_test_images(make: Make, silent: Terminal, tmp_path: Path) -> None:
    (tmp_path / "tests.txt").touch()
    with pytest.raises(UserError, match=r"tests\.txt is a file; data\.test must be a folder"):
        build_manifest(make("--data.test", str(tmp_path / "tests.txt")), silent)


def test_columns_of_what_has_none_are_refused(make: Make, silent: Terminal) -> None:
    with pytest.raises(UserError, match=r"data\.columns names columns, but .* has none \(class folders\)"):
        build_manifest(make("--data.columns", "{label: species}"), silent)
