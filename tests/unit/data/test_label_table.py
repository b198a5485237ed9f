"""Tables of labels: what is read from them, and what is refused, with the line."""

from __future__ import annotations

import codecs
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tables import IMAGES, list_images

from runner.config.data_schema import DataConfig
from runner.config.parser import parse
from runner.data.dataset_listing import list_dataset
from runner.data.images import NO_SPLIT, SPLITS
from runner.data.listing import Listing, list_folder
from runner.utils.console import Terminal
from runner.utils.errors import UserError

Read = Callable[..., Listing]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in IMAGES:
        (tmp_path / "images" / name).write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def read(folder: Path) -> Read:
    return partial(list_images, folder=folder)


def labels(listing: Listing) -> dict[str, str]:
    """The label of each image, by path."""
    found = [listing.classes[label] for label in listing.labels]
    return dict(zip(listing.paths, found, strict=True))


def splits(listing: Listing) -> dict[str, str | None]:
    """The split of each image, by path."""
    assert listing.splits is not None
    names = [None if split == NO_SPLIT else SPLITS[split] for split in listing.splits]
    return dict(zip(listing.paths, names, strict=True))


def test_a_table_names_images_their_classes_splits_and_groups(read: Read, folder: Path) -> None:
    listing = read(
        "path,label,split,group\nb.jpg,dog,test,p1\na.jpg,cat,Train,p2\nd.jpg,cat,VALID,p2\nc.png,cat,,\n"
    )
    assert labels(listing) == {"a.jpg": "cat", "b.jpg": "dog", "c.png": "cat", "d.jpg": "cat"}
    assert splits(listing) == {"a.jpg": "train", "b.jpg": "test", "c.png": None, "d.jpg": "val"}
    assert listing.groups is not None
    assert listing.groups.dtype == np.int32
    assert listing.groups[0] == listing.groups[3] != listing.groups[1]
    assert listing.groups[2] == -1
    assert listing.labels.dtype == np.int32
    sizes = [os.stat(folder / "images" / path).st_size for path in listing.paths]
    assert listing.stamps[:, 0].tolist() == sizes
    assert listing.layout == "images named in labels.csv, with splits, groups by group"
    assert listing.remarks == ("1 image of the table without a group: each is on its own",)
    assert pickle.loads(pickle.dumps(listing.files)).read("a.jpg") == b"a.jpg"


def test_without_split_and_group_none_are_given_and_images_it_does_not_name_are_a_remark(read: Read) -> None:
    listing = read("path,label\nb.jpg,dog\na.jpg,cat\n")
    assert listing.splits is listing.groups is None
    assert listing.remarks == ("not used: 2 images that the table does not name (c.png, d.jpg)",)
    assert read("path,label,split\nb.jpg,dog,\na.jpg,cat,\n").splits is None


def test_without_a_root_paths_are_relative_to_the_table(read: Read, folder: Path) -> None:
    listing = read(
        f"path,label\nimages/b.jpg,dog\n./images//a.jpg,cat\n{folder}/images/x/../d.jpg,cat\n", root=False
    )
    assert labels(listing) == {"images/a.jpg": "cat", "images/b.jpg": "dog", "images/d.jpg": "cat"}
    assert listing.files.root == folder
    assert listing.files.read("images/a.jpg") == b"a.jpg"
    assert listing.stamps[0].tolist() == list_folder(folder, False).stamps[0].tolist()
    assert not listing.remarks


def test_absolute_paths_may_lead_anywhere_and_are_relative_below_the_root(
    read: Read, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other") / "z.jpg"
    other.write_bytes(b"elsewhere")
    listing = read(f"path,label\n{folder}/images/b.jpg,dog\na.jpg,cat\n{other},cat\n../images/c.png,dog\n")
    assert labels(listing) == {str(other): "cat", "a.jpg": "cat", "b.jpg": "dog", "c.png": "dog"}
    assert listing.files.read(str(other)) == b"elsewhere"
    assert listing.stamps[0, 0] == len(b"elsewhere")


def test_paths_may_lack_their_suffix_or_the_folder_around_all_images(read: Read, folder: Path) -> None:
    inner = folder / "images" / "all"
    inner.mkdir()
    for name in IMAGES:
        (folder / "images" / name).rename(inner / name)
    listing = read("path,label\nb,dog\na,cat\nc.png,dog\n")
    assert labels(listing) == {"all/a.jpg": "cat", "all/b.jpg": "dog", "all/c.png": "dog"}
    (inner / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"line 3 \(a\): no such file in .*images"):
        read("path,label\nb,dog\na,cat\n")


def test_folders_named_as_splits_give_the_splits_of_flat_images(read: Read, folder: Path) -> None:
    for split, name in zip(("train", "Train", "Valid", "test"), IMAGES, strict=True):
        (folder / "images" / split).mkdir(exist_ok=True)
        (folder / "images" / name).rename(folder / "images" / split / name)
    rows = "Train/b.jpg,dog\ntrain/a.jpg,cat\nValid/c.png,cat\n"
    listing = read(f"path,label\n{rows}test/d.jpg,dog\n")
    assert set(splits(listing).values()) == {"train", "val", "test"}
    assert listing.layout == "images named in labels.csv, in folders of their splits"
    assert read("path,label\nTrain/b.jpg,dog\ntrain/a.jpg,cat\n").splits is None
    assert splits(read("path,label,split\nTrain/b.jpg,dog,test\n")) == {"Train/b.jpg": "test"}


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffpath,label\r\na.jpg,cät\r\n\r\nb.jpg,dog\r\n".encode(),
        codecs.BOM_UTF16_LE + "path,label\r\na.jpg,cät\r\nb.jpg,dog\r\n".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "path,label\na.jpg,cät\nb.jpg,dog".encode("utf-16-be"),
        "path;label;note\na.jpg;cät;1,5\nb.jpg;dog;2,5\n".encode(),
        "path\tlabel\na.jpg\tcät\nb.jpg\tdog\n".encode(),
        "label, path , x\n cät ,a.jpg,\ndog,b.jpg,\n".encode(),
        'path,label\r"a.jpg","cät"\r"b.jpg",dog\r'.encode(),
        "path;label;note\r\na.jpg;cät;x\r\nb.jpg;dog;\r\n;;\r\n ; ;;\r\n\r\n".encode(),
        "path,label\na.jpg,cät\nb.jpg,dog\n,".encode(),
        " Label,PATH\ncät,a.jpg\ndog,b.jpg\n".encode(),
    ],
    ids=[
        "BOM, CRLF, blank line",
        "UTF-16 LE",
        "UTF-16 BE",
        "semicolons",
        "tabs",
        "spaces",
        "CR, quotes",
        "empty rows",
        "an empty row",
        "capital letters",
    ],
)
def test_tables_of_many_programs_say_the_same(read: Read, content: bytes) -> None:
    assert labels(read(content)) == {"a.jpg": "cät", "b.jpg": "dog"}


def test_quotes_commas_and_line_breaks_in_cells(read: Read, folder: Path) -> None:
    (folder / "images" / "x,\ny.jpg").write_bytes(b"")
    listing = read('path,label\n"x,\ny.jpg","he said ""cat"", twice"\na.jpg,"two\nlines"\n')
    assert labels(listing) == {"a.jpg": "two\nlines", "x,\ny.jpg": 'he said "cat", twice'}


def test_class_names_stay_as_they_are_written(read: Read) -> None:
    for names in (["NA", "null", "None", "nan"], ["007", "7", "3.0", "1e3"], ["true", "False", "-1", "N/A"]):
        listing = read(
            "path,label\n" + "".join(f"{path},{name}\n" for path, name in zip(IMAGES, names, strict=True))
        )
        assert list(labels(listing).values()) == names


def test_whole_numbers_are_named_without_a_fraction(read: Read) -> None:
    assert read("path,label\na.jpg,3.0\nb.jpg,10.0\n").classes == ("10", "3")
    for values in (
        pa.array([3, 10]),
        pa.array([3.0, 10.0]),
        pa.array(["3", "10"]),
        pa.array(["3", "10"]).dictionary_encode(),
    ):
        assert labels(read({"path": ["a.jpg", "b.jpg"], "label": values}, name="t.parquet")) == {
            "a.jpg": "3",
            "b.jpg": "10",
        }


def test_columns_may_have_other_names(read: Read) -> None:
    table = "label,file,species,fold,patient\nx,a.jpg,cat,dev,p\nx,b.jpg,dog,test,p\n"
    listing = read(table, path="file", label="species", split="fold", group="patient")
    assert labels(listing) == {"a.jpg": "cat", "b.jpg": "dog"}
    assert splits(listing) == {"a.jpg": "val", "b.jpg": "test"}


def test_columns_whose_names_differ_in_case_or_spaces_are_found_if_there_is_one(read: Read) -> None:
    table = {
        "Path ": ["a.jpg", "b.jpg"],
        "LABEL": ["cat", "dog"],
        "Label": ["x", "y"],
        "label": ["dog", "cat"],
    }
    assert labels(read(table, name="t.parquet")) == {"a.jpg": "dog", "b.jpg": "cat"}
    del table["label"]
    with pytest.raises(
        UserError, match=r"no column label.* columns are Path, LABEL, Label;.*as \{label: LABEL\}"
    ):
        read(table, name="t.parquet")
    listing = read("path,Split,Group\na.jpg,cat,p\nb.jpg,dog,p\n", label="split")
    assert labels(listing) == {"a.jpg": "cat", "b.jpg": "dog"}
    assert listing.splits is None
    assert listing.layout == "images named in labels.csv, groups by Group"


def test_split_group_may_name_a_column_else_it_is_left_to_the_paths(read: Read) -> None:
    table = "path,label,group,patient\na.jpg,cat,1,p\nb.jpg,dog,2,p\n"
    found = read(table).groups
    assert found is not None
    assert found[0] != found[1]
    found = read(table, group="patient").groups
    assert found is not None
    assert found[0] == found[1]
    assert read(table, group="^(.)").groups is None


def test_a_table_names_images_of_an_archive(folder: Path, tmp_path: Path, silent: Terminal) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in IMAGES:
            archive.writestr(f"images/{name}", name)
    table = tmp_path / "labels.csv"
    data = DataConfig("folder", root=str(tmp_path / "images.zip"), table=str(table))
    table.write_text("path,label\nb.jpg,dog\na,cat\n")
    listing = list_dataset(data, tmp_path / "cache", silent)
    assert labels(listing) == {"images/a.jpg": "cat", "images/b.jpg": "dog"}
    assert listing.files.read("images/a.jpg") == b"a.jpg"
    table.write_text(f"path,label\na.jpg,cat\n{folder}/images/b.jpg,dog\n")
    with pytest.raises(
        UserError, match=r"line 3 \(.*\): not in .*images\.zip; write paths as they are in the"
    ):
        list_dataset(data, tmp_path / "cache", silent)


def test_a_table_is_enough_to_begin_a_run(tmp_path: Path) -> None:
    experiment = parse(["--data.table", str(tmp_path / "birds.csv")])[0]
    assert (experiment.name, experiment.data.kind, experiment.data.root) == ("birds", "folder", None)
    with pytest.raises(UserError, match=r"data\.columns renames path, image, label, split, group, not file"):
        parse(["--data.table", "birds.csv", "--data.columns", "{file: path}"])
