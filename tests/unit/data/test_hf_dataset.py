"""Saved Hugging Face datasets, as the library writes them."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_trees import parse_tree
from PIL import Image

from runner.config.data_schema import DataConfig
from runner.data.images import SPLITS
from runner.data.listing import Listing
from runner.data.scan import scan_images
from runner.data.tables.hf_dataset import is_saved_dataset, list_saved_dataset
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.hashing import digest_bytes
from runner.utils.paths import PACKAGE

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="the package datasets, which writes them, is missing"
)
NAMES = ["cat", "dog", "fox"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def picture(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(content, "PNG")
    return content.getvalue()


def dataset(
    labels: Sequence[Any], kind: Any = None, image: str = "image", label: str = "label", first: int = 0
) -> Any:
    """A dataset with a picture for each label: that of the row's number plus `first`."""
    import datasets

    features = {image: datasets.Image(), label: kind or datasets.ClassLabel(names=NAMES)}
    images = [{"bytes": picture(first + row), "path": None} for row in range(len(labels))]
    return datasets.Dataset.from_dict({image: images, label: list(labels)}, datasets.Features(features))


def listed(root: Path, **columns: str) -> Listing:
    assert is_saved_dataset(root)
    return list_saved_dataset(root, DataConfig("folder", root=str(root), columns=columns))


def labels(listing: Listing) -> dict[str, str]:
    """The label of each image, by path."""
    return dict(zip(listing.paths, [listing.classes[label] for label in listing.labels], strict=True))


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """A dataset with three splits; the training split is in two files."""
    import datasets

    parts = datasets.DatasetDict(
        train=dataset([2, 0, 1, 0]), validation=dataset([1, 0], first=10), test=dataset([0, 1, 2], first=20)
    )
    parts.save_to_disk(str(tmp_path / "saved"), num_shards={"train": 2, "validation": 1, "test": 1})
    return tmp_path / "saved"


def test_splits_classes_and_contents_of_a_dataset_dict(
    splits: Path, silent: Terminal, tmp_path: Path
) -> None:
    listing = listed(splits)
    assert labels(listing) == {
        "test/00000000": "cat",
        "test/00000001": "dog",
        "test/00000002": "fox",
        "train/00000000": "fox",
        "train/00000001": "cat",
        "train/00000002": "dog",
        "train/00000003": "cat",
        "validation/00000000": "dog",
        "validation/00000001": "cat",
    }
    assert list(listing.paths) == sorted(listing.paths)
    assert listing.splits is not None
    assert [SPLITS[split] for split in listing.splits] == ["test"] * 3 + ["train"] * 4 + ["val"] * 2
    assert listing.layout == "a saved Hugging Face dataset with test, train and validation"
    files = pickle.loads(pickle.dumps(listing.files))
    assert files.read("train/00000003") == picture(3)  # the second file
    assert files.read("validation/00000001") == picture(11)
    assert listing.stamps[:, 0].tolist() == [len(files.read(path)) for path in listing.paths]
    verdicts = scan_images(listing, tmp_path / "cache", silent)
    assert not verdicts.errors
    assert len(np.unique(verdicts.digests, axis=0)) == 9


def test_a_single_dataset_gives_no_splits_and_only_the_classes_that_it_holds(tmp_path: Path) -> None:
    dataset([2, 0, 2]).select([2, 1]).save_to_disk(str(tmp_path / "saved"))
    listing = listed(tmp_path / "saved")
    assert labels(listing) == {"00000000": "fox", "00000001": "cat"}
    assert listing.splits is None
    assert listing.files.read("00000000") == picture(2)


def test_labels_are_text_or_whole_numbers(tmp_path: Path) -> None:
    import datasets

    for kind, values, names in (("string", ["NA", "b"], ["NA", "b"]), ("int32", [7, 10], ["7", "10"])):
        root = tmp_path / kind
        dataset(values, datasets.Value(kind)).save_to_disk(str(root))
        assert list(labels(listed(root)).values()) == names


def test_columns_are_found_by_their_kind_or_named(tmp_path: Path) -> None:
    import datasets

    saved = dataset([0, 1], image="img", label="fine")
    saved.save_to_disk(str(tmp_path / "one"))
    assert set(labels(listed(tmp_path / "one")).values()) == {"cat", "dog"}
    saved = saved.add_column("coarse", [1, 1]).cast_column("coarse", datasets.ClassLabel(names=["x", "y"]))
    saved.save_to_disk(str(tmp_path / "two"))
    assert set(labels(listed(tmp_path / "two", image="img", label="coarse")).values()) == {"y"}
    message = (
        r"two has no column label; its columns are img, fine, coarse; name the right one by data.columns, as"
    )
    with pytest.raises(UserError, match=message):
        listed(tmp_path / "two")
    with pytest.raises(UserError, match=r"no column course \(did you mean 'coarse'\?\)"):
        listed(tmp_path / "two", label="course")


def test_other_programs_may_write_files_with_these_names(tmp_path: Path) -> None:
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    assert not is_saved_dataset(tmp_path)
    (tmp_path / "data-00000-of-00001.arrow").touch()
    assert is_saved_dataset(tmp_path)


def test_another_column_is_another_image(silent: Terminal, tmp_path: Path) -> None:
    """Pictures of equal size: the cache of the scan must not take one for the other."""
    import datasets

    whole = datasets.concatenate_datasets(
        [dataset([0, 1]), dataset([0, 1], None, "mask", "other", 50)], axis=1
    )
    whole.save_to_disk(str(tmp_path / "saved"))
    digests = [
        scan_images(listed(tmp_path / "saved", image=name), tmp_path / "cache", silent).digests.tobytes()
        for name in ("image", "mask")
    ]
    assert digests[0] != digests[1]
    assert digests[1][:20] == bytes.fromhex(digest_bytes(picture(50)))


def test_a_changed_file_beside_a_dataset_is_scanned_again(silent: Terminal, tmp_path: Path) -> None:
    """Some datasets hold the paths of their images."""
    import datasets

    files = [tmp_path / f"{number}.png" for number in range(2)]
    for number, file in enumerate(files):
        file.write_bytes(picture(number))
    features = datasets.Features({"image": datasets.Value("string"), "label": datasets.Value("string")})
    rows = {"image": [str(file) for file in files], "label": ["cat", "dog"]}
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(tmp_path / "saved"))
    scan_images(listed(tmp_path / "saved"), tmp_path / "cache", silent)
    files[1].write_bytes(picture(9))
    found = scan_images(listed(tmp_path / "saved"), tmp_path / "cache", silent)
    assert found.digests[1].tobytes() == bytes.fromhex(digest_bytes(picture(9)))


def test_a_split_without_labels_and_one_of_another_name_are_left_out(tmp_path: Path) -> None:
    import datasets

    parts = {"train": dataset([0, 1]), "test": dataset([-1, -1]), "extra": dataset([0])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    listing = listed(tmp_path / "saved")
    assert set(listing.paths) == {"train/00000000", "train/00000001"}
    assert listing.remarks == (
        "not used: 1 split that is not train, validation or test (extra)",
        "not used: 2 images without a label in test",
    )


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    import datasets

    some = {
        "column label: its labels are lists: multi-label classification is not supported": dataset(
            [[0], [1, 2]], datasets.Sequence(datasets.ClassLabel(names=NAMES))
        ),
        r"row 1 \(from 0\): it has no label, as 1 of 3; leave them out": dataset([0, -1, 1]),
        "No image of .* has a label; set data.root to a dataset with labels": dataset([-1, None]),
        "column image: its values are int64, not image files; save it as datasets.Image": datasets.Dataset.from_dict(
            {"image": [1], "label": [1]}
        ),
        r"The splits of .*\(a, b\) are not train, validation and test": datasets.DatasetDict(
            a=dataset([0]), b=dataset([1])
        ),
    }
    for number, (message, saved) in enumerate(some.items()):
        saved.save_to_disk(str(tmp_path / str(number)))
        with pytest.raises(UserError, match=message):
            listed(tmp_path / str(number))


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00002.arrow"])
@pytest.mark.parametrize("damage", ["missing", "short", "other"])
def test_damaged_datasets_are_refused(splits: Path, name: str, damage: str) -> None:
    path = splits / "train" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "short" else b"[1]")
    with pytest.raises(UserError, match=f"{name}.*; (save the dataset again|write it by save_to_disk)"):
        listed(splits)


def test_names_of_files_stay_in_the_folder(splits: Path) -> None:
    state = splits / "train" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "../test/data-00000-of-00001.arrow"}]}))
    with pytest.raises(UserError, match=r"state\.json names no Arrow files of its folder"):
        listed(splits)
    (splits / "dataset_dict.json").write_text('{"splits": ["../train"]}')
    with pytest.raises(UserError, match="names no splits"):
        listed(splits)


def test_the_data_guide_draws_what_is_saved(tmp_path: Path) -> None:
    import datasets

    page = (PACKAGE.parent / "docs" / "data.md").read_text()
    drawing = page.split("### Hugging Face datasets\n\n```text\n")[1].split("\n```")[0]
    parts = datasets.DatasetDict(train=dataset([0, 1]), test=dataset([0, 1]))
    parts.save_to_disk(str(tmp_path / "beans"))
    written = {str(path.relative_to(tmp_path / "beans")) for path in (tmp_path / "beans").rglob("*.*")}
    assert set(parse_tree(drawing)[0].files()) == written
    assert f"# {listed(tmp_path / 'beans').layout}\n" in page


def test_nothing_asks_the_hub(splits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(listed(splits).paths) == 9
