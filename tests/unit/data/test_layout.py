"""How the folders of images are understood: the class and the split of each image, and what is refused."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import draw

from runner.config.data_schema import DataConfig
from runner.data.columns import Paths
from runner.data.files import FolderFiles
from runner.data.images import SPLITS
from runner.data.layouts.layout import arrange
from runner.data.layouts.trees import CLASS_FOLDERS, SPLIT_FOLDERS
from runner.data.listing import STAMP, FileList, Listing, list_folder
from runner.utils.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "photos"


def fill(root: Path, *paths: str) -> None:
    """Files without content; a path that ends with a slash is a folder."""
    root.mkdir(exist_ok=True)
    for path in paths:
        if path.endswith("/"):
            (root / path).mkdir(parents=True)
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()


def arranged(root: Path, **settings: object) -> Listing:
    data = DataConfig(kind="folder", root=str(root), **settings)  # type: ignore[arg-type]
    return arrange(list_folder(root, data.follow_links), data)


def rows(listing: Listing) -> list[str]:
    """`path class split` of each image."""
    splits = ["-"] * len(listing.paths) if listing.splits is None else [SPLITS[s] for s in listing.splits]
    classes = (listing.classes[label] for label in listing.labels)
    return [
        f"{path} {name} {split}" for path, name, split in zip(listing.paths, classes, splits, strict=True)
    ]


def refused(root: Path, **settings: object) -> str:
    """The message that a folder is refused with; it names the folder, not its drawing."""
    with pytest.raises(UserError) as refusal:
        arranged(root, **settings)
    message = str(refusal.value)
    sentence = message.partition("\n")[0]
    assert str(root) in sentence
    assert sentence.endswith(".")
    return message


def drawn(root: Path) -> str:
    """The message of a layout that is not accepted: it draws what is."""
    message = refused(root)
    for line in (*CLASS_FOLDERS.splitlines(), *SPLIT_FOLDERS.splitlines()):
        assert line in message
    assert "Found:\n  photos/\n" in message
    return message


# Accepted layouts


def test_class_folders(root: Path) -> None:
    fill(root, "cat/1.jpg", "cat/2.PNG", "dog/1.jpg", "README.txt")
    listing = arranged(root)
    assert rows(listing) == ["cat/1.jpg cat -", "cat/2.PNG cat -", "dog/1.jpg dog -"]
    assert (listing.layout, listing.remarks, listing.splits) == ("class folders", (), None)
    assert listing.classes == ("cat", "dog")
    assert listing.stamps.shape == (3, STAMP)


def test_files_of_class_folders_that_are_not_named_as_images_are_listed(root: Path) -> None:
    """They are decoded: what counts is the content."""
    fill(root, "cat/1.jpg", "cat/notes.txt", "dog/1.jpg")
    assert "cat/notes.txt cat -" in rows(arranged(root))


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Train", "valid", "Test"),
        ("TRAINING", "Validation", "testing"),
        ("train", "DEV", "test"),
    ],
)
def test_split_folders(root: Path, train: str, val: str, test: str) -> None:
    fill(root, *(f"{split}/{name}/1.jpg" for split in (train, val, test) for name in ("cat", "dog")))
    listing = arranged(root)
    assert set(rows(listing)) == {
        f"{folder}/{name}/1.jpg {name} {split}"
        for folder, split in ((train, "train"), (val, "val"), (test, "test"))
        for name in ("cat", "dog")
    }
    assert listing.layout == f"{train}, {val} and {test} folders with class folders"


def test_split_folders_need_not_hold_all_splits_or_all_classes(root: Path) -> None:
    fill(root, "train/cat/1.jpg", "train/dog/1.jpg", "test/cat/2.jpg")
    listing = arranged(root)
    assert rows(listing) == [
        "test/cat/2.jpg cat test",
        "train/cat/1.jpg cat train",
        "train/dog/1.jpg dog train",
    ]
    assert listing.layout == "train and test folders with class folders"
    fill(root, "val/cat/", "test/dog/")
    assert "holds no images in val" in refused(root)


def test_an_empty_class_folder_of_one_split_is_not_an_empty_class(root: Path) -> None:
    fill(root, "train/cat/1.jpg", "train/dog/1.jpg", "test/cat/2.jpg", "test/dog/")
    assert arranged(root).classes == ("cat", "dog")
    fill(root, "test/bird/", "train/bird/")
    assert f"The class folder {root}/test/bird holds no image; fill or remove it." in refused(root)


@pytest.mark.parametrize("around", ["photos", "data/images"])
def test_a_wrapper_folder_is_looked_through(root: Path, around: str) -> None:
    fill(root, f"{around}/cat/1.jpg", f"{around}/dog/1.jpg", "README.md", "__MACOSX/cat/1.jpg")
    listing = arranged(root)
    assert rows(listing) == [f"{around}/cat/1.jpg cat -", f"{around}/dog/1.jpg dog -"]
    assert listing.layout == f"class folders in {around}/"


def test_split_folders_in_a_wrapper_beside_folders_without_images(root: Path) -> None:
    fill(root, "images/train/cat/1.jpg", "images/test/cat/2.jpg", "notes/a.xml")
    listing = arranged(root)
    assert rows(listing) == ["images/test/cat/2.jpg cat test", "images/train/cat/1.jpg cat train"]
    assert listing.layout == "train and test folders with class folders in images/"
    assert listing.remarks == ("not used: 1 folder without images (notes)",)


def test_nested_class_folders(root: Path) -> None:
    fill(root, "cat/persian/1.jpg", "cat/siamese/1.jpg", "dog/poodle/small/1.jpg")
    listing = arranged(root)
    assert rows(listing) == [
        "cat/persian/1.jpg cat -",
        "cat/siamese/1.jpg cat -",
        "dog/poodle/small/1.jpg dog -",
    ]
    assert listing.layout == "class folders and folders inside them (data.nested=top)"
    (remark,) = listing.remarks
    assert "3 folders inside them (cat/persian, cat/siamese, dog/poodle/small)" in remark
    assert remark.endswith("set data.nested=path if they should be")
    listing = arranged(root, nested="path")
    assert listing.classes == ("cat/persian", "cat/siamese", "dog/poodle/small")
    assert rows(listing)[-1] == "dog/poodle/small/1.jpg dog/poodle/small -"
    assert listing.layout == "class folders and folders inside them (data.nested=path)"
    assert listing.remarks == ()


def test_a_nested_class_may_hold_images_and_classes(root: Path) -> None:
    fill(root, "train/cat/1.jpg", "train/cat/persian/2.jpg", "train/dog/poodle/3.jpg", "train/dog/notes.txt")
    listing = arranged(root, nested="path")
    assert rows(listing) == [
        "train/cat/1.jpg cat train",
        "train/cat/persian/2.jpg cat/persian train",
        "train/dog/poodle/3.jpg dog/poodle train",
    ]
    assert arranged(root).classes == ("cat", "dog")
    assert arranged(root).remarks == ()  # a class folder holds images itself


def test_a_class_may_be_called_as_a_split(root: Path) -> None:
    """It is one if its images lie directly in it, beside other classes."""
    fill(root, "train/1.jpg", "bus/1.jpg", "tram/1.jpg")
    assert rows(arranged(root)) == ["bus/1.jpg bus -", "train/1.jpg train -", "tram/1.jpg tram -"]
    fill(root, "test/1.jpg", "tram/old/2.jpg")
    assert arranged(root).classes == ("bus", "test", "train", "tram")


def test_hidden_files_and_those_of_desktops_are_nothing(root: Path) -> None:
    fill(root, "cat/1.jpg", "dog/1.jpg", ".git/x.jpg", "__MACOSX/cat/._1.jpg", ".DS_Store", "Thumbs.db")
    fill(root, "cat/.DS_Store", "cat/._1.jpg", "cat/THUMBS.DB", "dog/Desktop.ini", "dog/.thumbs/1.jpg")
    listing = arranged(root)
    assert rows(listing) == ["cat/1.jpg cat -", "dog/1.jpg dog -"]
    assert listing.remarks == ()


def test_images_without_a_suffix_are_found_by_content(root: Path) -> None:
    fill(root, "train/cat/", "train/dog/", "test/cat/")
    for folder in ("train/cat", "train/dog", "test/cat"):
        draw("red", 1).save(root / folder / "photo", "PNG")
    assert arranged(root).classes == ("cat", "dog")
    assert arranged(root).layout == "train and test folders with class folders"


def test_loose_images_are_said(root: Path) -> None:
    fill(root, "train/cat/1.jpg", "train/dog/1.jpg", "train/2.jpg", "3.jpg", "4.txt")
    listing = arranged(root)
    assert listing.classes == ("cat", "dog")
    (remark,) = listing.remarks
    assert remark.startswith("not used: 2 images beside the class folders (3.jpg, train/2.jpg);")


# Refused layouts


def test_a_flat_folder_of_images_is_drawn(root: Path) -> None:
    fill(root, *(f"{number:02}.jpg" for number in range(30)))
    message = drawn(root)
    assert f"{root} holds no class folders but images" in message
    assert "data.table" in message
    assert "  ├── 00.jpg\n  ├── 01.jpg\n  ├── 02.jpg\n  └── … 27 more files\n" in message


@pytest.mark.parametrize("flat", [("train/1.jpg", "test/1.jpg"), ("train/cat/1.jpg", "test/1.jpg")])
def test_images_directly_in_split_folders_are_drawn(root: Path, flat: tuple[str, ...]) -> None:
    fill(root, *flat)
    assert "test lie in no class folders" in drawn(root)


def test_an_empty_folder_is_drawn(root: Path) -> None:
    fill(root, ".hidden")
    assert "it is empty" in drawn(root)


def test_a_folder_of_other_files_is_drawn(root: Path) -> None:
    fill(root, "src/main.py", "docs/guide.md", "setup.py")
    message = drawn(root)
    assert "holds no image that can be read" in message
    assert "  ├── src/\n  │   └── main.py\n" in message


def test_split_folders_beside_others_are_drawn(root: Path) -> None:
    fill(root, "train/cat/1.jpg", "test/cat/1.jpg", "unlabeled/1.jpg")
    assert (
        "also other folders with images (unlabeled); rename them to train, val or test if they are splits, or move them"
        " elsewhere. If train and test should be classes, give them another name.\n"
    ) in drawn(root)


def test_a_misspelled_split_folder_is_recognized(root: Path) -> None:
    fill(root, "trian/cat/1.jpg", "trian/dog/1.jpg", "test/cat/1.jpg", "Apples/1.jpg")
    message = drawn(root)
    assert "(Apples, trian) (did you mean 'train'?); rename them" in message
    assert "If test should be a class, give it another name." in message


@pytest.mark.parametrize(
    "names", [("seg_train", "seg_test"), ("training_set", "test_set"), ("train2017", "val2017")]
)
@pytest.mark.parametrize("inner", ["", "cat/"])
def test_folders_named_like_splits_are_no_classes(root: Path, names: tuple[str, ...], inner: str) -> None:
    fill(root, *(f"{name}/{inner}1.jpg" for name in names))
    assert f"named like splits ({', '.join(sorted(names))})" in drawn(root)
    fill(root, "trainer/1.jpg")
    assert len(arranged(root).classes) == 3


def test_split_folders_in_class_folders_are_drawn(root: Path) -> None:
    fill(root, *(f"{name}/{split}/1.jpg" for name in ("cat", "dog") for split in ("train", "Test")))
    assert "hold split folders (cat/Test, cat/train, dog/Test, dog/train)" in drawn(root)


@pytest.mark.parametrize(("names", "split"), [(("val", "dev"), "val"), (("Test", "test"), "test")])
def test_two_folders_for_one_split_are_refused(root: Path, names: tuple[str, ...], split: str) -> None:
    fill(root, *(f"{folder}/cat/1.jpg" for folder in ("train", *names)))
    assert f"2 folders of the {split} split ({', '.join(sorted(names))})" in refused(root)


def test_drawings_are_short_and_printable(root: Path) -> None:
    fill(
        root,
        *(
            f"{number}/{inner}/deep/er/{file}"
            for number in range(9)
            for inner in range(9)
            for file in "abcde"
        ),
    )
    fill(root, os.fsdecode(b"0/caf\xe9\n"))
    message = drawn(root)
    assert len(message.splitlines()) < 60
    assert r"caf\xe9\n" in message
    assert "└── … 5 more folders" in message


def test_two_classes_that_get_the_same_name_are_refused(root: Path) -> None:
    fill(root, os.fsdecode(b"caf\xe9/1.jpg"), r"caf\xe9/1.jpg", "dog/1.jpg")
    assert r"Two class folders in" in refused(root)


# Links


def test_links_in_split_folders_are_said(root: Path, tmp_path: Path) -> None:
    fill(root, "train/cat/1.jpg", "train/dog/1.jpg", "train/bird/")
    (root / "train" / "fox").symlink_to(root / "train" / "cat")
    (root / "gone").symlink_to(tmp_path / "not mounted")
    (root / "train" / "bird" / "1.jpg").symlink_to(root / "train" / "cat" / "1.jpg")
    assert "train/bird holds no image but 1 link (train/bird/1.jpg), not followed" in refused(root)
    (root / "train" / "bird" / "2.jpg").touch()
    remarks = arranged(root).remarks
    assert remarks[0].startswith("not followed: 2 links (train/bird/1.jpg, train/fox);")
    assert remarks[1].startswith("left out: 1 link to nowhere (gone);")


def test_split_folders_that_are_links_are_not_passed_over(root: Path, tmp_path: Path) -> None:
    """Else images for training would be used for testing, beside a test split that the user has made."""
    fill(root, "train/cat/1.jpg", "train/dog/1.jpg")
    fill(tmp_path / "elsewhere", "cat/2.jpg")
    (root / "test").symlink_to(tmp_path / "elsewhere")
    assert "links to split folders (test)" in refused(root)
    assert "cat" in rows(arranged(root, follow_links=True))[0]
    (root / "val").symlink_to(tmp_path / "not mounted")
    assert "no images in val" in refused(root, follow_links=True)


# Speed


def test_a_million_files_take_less_than_a_second() -> None:
    count, classes = 1_000_000, 1_000
    folders = ("", "train", *(f"train/class{number:03}" for number in range(classes)))
    folder_of = np.repeat(np.arange(2, classes + 2, dtype=np.int32), count // classes)
    paths = Paths.of(f"{folders[folder]}/{index:07}.jpg" for index, folder in enumerate(folder_of.tolist()))
    found = FileList(
        FolderFiles(Path("photos")), paths, folders, folder_of, np.zeros((count, STAMP), np.int64)
    )
    start = time.process_time()
    listing = arrange(found, DataConfig(kind="folder", root="photos"))
    assert time.process_time() - start < 1
    assert (len(listing.paths), len(listing.classes)) == (count, classes)
