"""WebDataset shards: samples, classes and splits that are found, and samples that are refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_makers import class_members, jpeg, shard_members, write_tar

import runner.data.archives.webdataset
from runner.data.archives.listing import list_archive
from runner.data.archives.webdataset import is_shard, list_shards, shard_names
from runner.data.images import SPLITS
from runner.data.listing import Listing, list_folder
from runner.utils.console import Terminal
from runner.utils.errors import UserError


@pytest.fixture
def shards(tmp_path: Path, silent: Terminal) -> Callable[..., Listing]:
    """The listing of a folder of shards, given by name → members."""

    def make(files: dict[str, dict[str, bytes]], **beside: str) -> Listing:
        root = tmp_path / "shards"
        for name, members in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            write_tar(root / name, members)
        for name, text in beside.items():
            (root / f"{name}.txt").write_text(text)
        found = list_folder(root, follow_links=False)
        assert set(shard_names(found)) >= files.keys()
        return list_shards(root, shard_names(found), tmp_path / "cache", silent)

    return make


Shards = Callable[..., Listing]


def classes_of(listing: Listing) -> dict[str, str]:
    """Path → class."""
    return {
        path: listing.classes[label]
        for path, label in zip(listing.paths, listing.labels.tolist(), strict=True)
    }


def splits_of(listing: Listing) -> dict[str, str]:
    assert listing.splits is not None
    return {path: SPLITS[split] for path, split in zip(listing.paths, listing.splits.tolist(), strict=True)}


@pytest.mark.parametrize("suffix", [".cls", ".json"])
@pytest.mark.parametrize("labels", [{"a": "cat", "b": "dog", "c": "cat"}, {"a": 10, "b": 9, "c": 10}])
def test_samples_of_shards(shards: Shards, suffix: str, labels: dict[str, Any]) -> None:
    first, second = shard_members(labels, suffix), shard_members({"c": labels["c"], "a": labels["a"]}, suffix)
    for _ in range(2):  # the second time from the cache
        listing = shards({"000.tar": first, "001.tar": second})
        assert classes_of(listing) == {
            **{f"000.tar/{key}.jpg": str(label) for key, label in labels.items()},
            **{f"001.tar/{key}.jpg": str(labels[key]) for key in "ac"},
        }
        assert listing.classes == tuple(sorted({str(label) for label in labels.values()}))
        assert [listing.files.read(path) for path in listing.paths] == [
            *(first[f"{key}.jpg"] for key in "abc"),
            *(second[f"{key}.jpg"] for key in "ac"),
        ]
        assert listing.splits is None
        assert listing.layout == "2 WebDataset shards"
    assert listing.files.shown("000.tar/a.jpg") == str(listing.files.root / "000.tar" / "a.jpg")
    assert len(np.unique(listing.stamps, axis=0)) == 5


def test_other_members_and_files_are_passed_over(shards: Shards) -> None:
    members = {
        **shard_members({"a": "cat", "deep/b": "dog"}),
        "a.txt": b"a caption",
        "a.json": b'{"width": 3}',
        "lonely.json": b"[]",
        "__readme": b"x",
        ".DS_Store": b"",
    }
    assert classes_of(shards({"0.tar": members}, nshards="1")) == {
        "0.tar/a.jpg": "cat",
        "0.tar/deep/b.jpg": "dog",
    }


def test_other_image_formats_and_extensions_of_several_parts(shards: Shards) -> None:
    members = {
        "a.png": b"1",
        "a.cls": b" cat\n",
        "b.input.WEBP": b"2",
        "b.output.CLS": "\ufeffdog".encode(),
        "folder.v1/c.jpeg": b"3",
        "folder.v1/c.json": b'{"class": "cat"}',
    }
    assert list(classes_of(shards({"0.tar": members})).values()) == ["cat", "dog", "cat"]


@pytest.mark.parametrize("fields", [{"cls": "x", "label": 1}, {"label": "x", "class": "y"}, {"class": "x"}])
def test_the_field_of_json_that_is_the_class(shards: Shards, fields: dict[str, Any]) -> None:
    members = {"a.jpg": b"1", "a.json": json.dumps(fields).encode()}
    assert shards({"0.tar": members}).classes == ("x",)


def test_a_cls_member_comes_before_json(shards: Shards) -> None:
    members = {"a.jpg": b"1", "a.cls": b"x", "a.json": b'{"label": "y"}'}
    assert shards({"0.tar": members}).classes == ("x",)


# Splits


@pytest.mark.parametrize(
    "names",
    [
        ("train-000.tar", "val-000.tar", "test-000.tar"),
        ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar", "imagenet1k-test-00.tar"),
        ("train/0.tar", "valid/0.tar", "TEST/0.tar"),
        ("train_{0}.tar", "dev_{0}.tar", "testing_{0}.tar"),
    ],
)
def test_names_of_shards_say_their_split(shards: Shards, names: tuple[str, str, str]) -> None:
    listing = shards({name: shard_members({f"k{number}": "cat"}) for number, name in enumerate(names)})
    assert splits_of(listing) == dict(
        sorted((f"{name}/k{number}.jpg", SPLITS[number]) for number, name in enumerate(names))
    )


def test_a_missing_split_is_not_made_up(shards: Shards) -> None:
    listing = shards({"train-0.tar": shard_members({"a": "cat"}), "train-1.tar": shard_members({"a": "dog"})})
    assert set(splits_of(listing).values()) == {"train"}


def test_a_shard_without_a_split_among_others_is_named(shards: Shards) -> None:
    with pytest.raises(
        UserError, match=r"others are not \(extra\.tar\); give all of them names as train-000\.tar"
    ):
        shards({"train-0.tar": shard_members({"a": "cat"}), "extra.tar": shard_members({"a": "cat"})})


def test_a_name_that_says_two_splits(shards: Shards) -> None:
    with pytest.raises(UserError, match=r"test/train-0\.tar says test and train; rename it"):
        shards({"test/train-0.tar": shard_members({"a": "cat"})})


# Names of classes


@pytest.mark.parametrize("file", ["classes", "classnames"])
def test_a_file_of_class_names(shards: Shards, file: str) -> None:
    members = shard_members({"a": 1, "b": 0, "c": 1})
    listing = shards({"0.tar": members}, **{file: "zebra\nant\nbee\n"})
    assert list(classes_of(listing).values()) == ["ant", "zebra", "ant"]
    assert listing.classes == ("ant", "zebra")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("zebra\n", r"has 1 line and gives no name to class 1 of the shards"),
        ("zebra\n\nbee\n", r"has 3 lines and gives no name to class 1 of the shards"),
        ("crane\ncrane\n", r"gives the same name to several classes \(crane\)"),
    ],
)
def test_a_file_of_class_names_that_does_not_fit(shards: Shards, text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        shards({"0.tar": shard_members({"a": 1, "b": 0})}, classes=text)


def test_text_labels_need_no_names(shards: Shards) -> None:
    assert shards({"0.tar": shard_members({"a": "cat", "b": 0})}, classes="x\ny\n").classes == ("0", "cat")


# Samples that are refused


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        (
            {"a.jpg": b"1", "b.jpg": b"2", "b.cls": b"3"},
            "'a' in .*0.tar has an image but no class; add a member .cls",
        ),
        (
            {"a.jpg": b"1", "a.txt": b"cat"},
            "The tar file .*0.tar holds images without classes: a WebDataset shard has",
        ),
        ({"a.cls": b"1"}, "'a' in .* has a class but no image; add a .jpg, .png or .webp member"),
        ({"a.npy": b"1", "a.cls": b"1"}, "'a' in .* has a class but no image"),
        (
            {"a.b.jpg": b"1", "a.c.jpg": b"2", "a.cls": b"3"},
            r"two members of the same kind \('a\.b\.jpg', 'a\.c\.jpg'\)",
        ),
        ({"a.jpg": b"1", "a.b.cls": b"2", "a.cls": b"3"}, r"same name up to the first dot"),
        ({"a.jpg": b"1", "a.cls": b""}, "'a' in .* has no class name in 'a.cls'; write one name in one line"),
        ({"a.jpg": b"1", "a.cls": b"cat\ndog"}, "has no class name in 'a.cls'"),
        (
            {"a.jpg": b"1", "a.cls": b"\xff\xfe"},
            "has a class that cannot be read in 'a.cls'; write it as UTF-8",
        ),
        ({"a.jpg": b"1", "a.cls": b"x" * 300}, "has a class of 300 bytes in 'a.cls'"),
        ({"a.jpg": b"1", "a.cls": b"[1, 5]"}, r"has several labels in 'a\.cls' \(multi-label"),
        (
            {"a.jpg": b"1", "a.json": b'{"label": ["cat", "dog"]}'},
            r"has several labels in 'a\.json' \(multi-label",
        ),
        (
            {"a.jpg": b"1", "a.json": b'{"label": 1.5}'},
            "has no class in 'a.json'; it must hold a field cls, label or",
        ),
        ({"a.jpg": b"1", "a.json": b'{"label": true}'}, "has no class in 'a.json'"),
        ({"a.jpg": b"1", "a.json": b'{"label": null}'}, "has no class in 'a.json'"),
        ({"a.jpg": b"1", "a.json": b'{"width": 3}'}, "has no class in 'a.json'"),
        ({"a.jpg": b"1", "a.json": b"{"}, "has a class that cannot be read in 'a.json'"),
        ({"a.jpg": b"1", "a.json": b"[" * 100_000}, "has a class that cannot be read in 'a.json'"),
        ({"notes.md": b"1"}, "hold no WebDataset samples, as name.jpg with name.cls or name.json"),
    ],
)
def test_samples_that_are_refused(shards: Shards, members: dict[str, bytes], problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        shards({"0.tar": members})
    assert "\n" not in str(caught.value)


def test_a_class_name_in_brackets_is_no_list(shards: Shards) -> None:
    assert shards({"0.tar": {"a.jpg": b"1", "a.cls": b"[cat]"}}).classes == ("[cat]",)


def test_a_damaged_shard_is_named(shards: Shards, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "1.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"shards/1\.tar is no tar archive, or it is damaged"):
        shards({"0.tar": shard_members({"a": "cat"})})


# One shard, and what is none


def test_one_shard(tmp_path: Path, silent: Terminal) -> None:
    members = shard_members({"b": "dog", "a": "cat"})
    path = write_tar(tmp_path / "train-0.tar", members)
    assert shard_names(list_archive(path, tmp_path / "cache", silent)) == ["train-0.tar"]
    listing = list_shards(path, [path.name], tmp_path / "cache", silent)
    assert classes_of(listing) == {"train-0.tar/a.jpg": "cat", "train-0.tar/b.jpg": "dog"}
    assert listing.files.read("train-0.tar/b.jpg") == members["b.jpg"]
    assert listing.files.shown("train-0.tar/b.jpg") == f"{path}/b.jpg"
    assert listing.files.root == path


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (class_members(1), False),
        (class_members(1) | {"red/00.json": b"{}"}, False),
        (class_members(1) | {"labels.json": b"{}"}, False),
        ({"a.jpg": b"1", "a.json": b"{}"}, True),
        ({"deep/a.jpg": b"1", "deep/a.cls": b"1"}, True),
        ({f"{number:03}.jpg": b"1" for number in range(150)} | {"149.cls": b"1"}, True),
    ],
)
def test_what_is_a_shard(tmp_path: Path, silent: Terminal, members: dict[str, bytes], expected: bool) -> None:
    path = write_tar(tmp_path / "a.tar", members)
    assert bool(shard_names(list_archive(path, tmp_path / "cache", silent))) is expected
    assert not is_shard(path) or expected


def test_a_folder_with_images_is_no_folder_of_shards(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    write_tar(tmp_path / "a.tar", {"a.jpg": b"1"})
    (tmp_path / "cat" / "1.jpg").write_bytes(jpeg("red", 1))
    assert not shard_names(list_folder(tmp_path, follow_links=False))
    (tmp_path / "cat" / "1.jpg").unlink()
    assert shard_names(list_folder(tmp_path, follow_links=False)) == ["a.tar"]


def test_the_labels_are_read_once(
    shards: Shards, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, silent: Terminal
) -> None:
    first = shards({"0.tar": shard_members({"a": "cat", "b": "dog"})})
    monkeypatch.setattr(runner.data.archives.webdataset, "list_tar", None)
    second = list_shards(tmp_path / "shards", ["0.tar"], tmp_path / "cache", silent)
    assert classes_of(second) == classes_of(first)
    assert Counter(second.labels.tolist()) == {0: 1, 1: 1}
    assert re.fullmatch(r"[0-9a-f-]+\.shards", next((tmp_path / "cache" / "archives").glob("*")).name)
