"""The manifest: the images of an experiment with class, split, size and digest, and its table."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import COLORS, draw
from PIL import Image

import runner.data.listing
from runner.config.schema import Experiment
from runner.data.files import FolderFiles
from runner.data.images import SPLITS, Entry, Images
from runner.data.manifest import Manifest, build_manifest, parse_manifest
from runner.utils.console import Terminal
from runner.utils.csv_text import to_csv
from runner.utils.errors import UserError
from runner.utils.hashing import digest_bytes

Make = Callable[..., Experiment]


def count_images(manifest: Manifest) -> Counter[tuple[str, str]]:
    """Number of images by class and split."""
    return Counter((entry.label, entry.split) for entry in manifest.entries)


def paths(manifest: Manifest) -> list[str]:
    return [entry.path for entry in manifest.entries]


def test_images_are_listed_by_path_with_class_size_and_digest(
    make: Make, pictures: Path, silent: Terminal
) -> None:
    manifest = build_manifest(make(), silent)
    assert paths(manifest) == sorted(f"{label}/{number:02}.png" for label in COLORS for number in range(12))
    assert manifest.classes == ("blue", "green", "red")
    for entry in manifest.entries:
        content = (pictures / entry.path).read_bytes()
        assert (entry.label, entry.size) == (entry.path.split("/")[0], len(content))
        assert entry.digest == digest_bytes(content)


def test_the_manifest_does_not_depend_on_the_order_of_directory_entries(
    make: Make, silent: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build_manifest(make(), silent)
    entries = runner.data.listing._entries
    monkeypatch.setattr(runner.data.listing, "_entries", lambda *given: sorted(entries(*given), key=hash))
    assert build_manifest(make(), silent).entries == before.entries
    monkeypatch.setattr(runner.data.listing, "_entries", lambda *given: entries(*given)[::-1])
    assert build_manifest(make(), silent).entries == before.entries


def test_each_class_is_split_50_25_25(make: Make, silent: Terminal) -> None:
    manifest = build_manifest(make(), silent)
    expected = {(label, name): n for label in COLORS for name, n in zip(SPLITS, (6, 3, 3), strict=True)}
    assert count_images(manifest) == expected
    assert manifest.unused == 0
    assert manifest.labels("val").tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [entry.split for entry in manifest.select("test")] == ["test"] * 9


def test_the_image_folder_is_not_changed(make: Make, pictures: Path, silent: Terminal) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in pictures.rglob("*")}

    before = state()
    build_manifest(make(), silent)
    assert state() == before


@pytest.mark.parametrize(
    ("fractions", "numbers"),
    [((0.5, 0.25, 0.25), (6, 3, 3)), ((0.6, 0.2, 0.2), (6, 3, 3)), ((0.75, 0.125, 0.125), (8, 2, 2))],
)
def test_splits_have_the_given_proportions(
    make: Make, silent: Terminal, fractions: tuple[float, ...], numbers: tuple[int, ...]
) -> None:
    words = [f"--split.{name}={value}" for name, value in zip(SPLITS, fractions, strict=True)]
    counts = count_images(build_manifest(make(*words), silent))
    assert {label: tuple(counts[label, name] for name in SPLITS) for label in COLORS} == dict.fromkeys(
        COLORS, numbers
    )


def test_with_counts_the_test_split_is_capped_and_the_rest_unused(make: Make, silent: Terminal) -> None:
    words = ("--split.by", "count", "--split.train", "5", "--split.val", "2", "--split.test", "3")
    manifest = build_manifest(make(*words), silent)
    assert count_images(manifest) == {
        (label, name): n for label in COLORS for name, n in zip(SPLITS, (5, 2, 3), strict=True)
    }
    assert manifest.unused == 3 * 2
    assert len(manifest.entries) == 30


def test_a_class_with_too_few_images_is_named(make: Make, pictures: Path, silent: Terminal) -> None:
    (pictures / "lonely").mkdir()
    draw("red", 99).save(pictures / "lonely" / "a.png")
    with pytest.raises(UserError, match=r"Class 'lonely' has 1 image,"):
        build_manifest(make(), silent)


def test_all_classes_with_too_few_images_are_named(make: Make, pictures: Path, silent: Terminal) -> None:
    for number, name in enumerate(("lonely", "single")):
        (pictures / name).mkdir()
        draw("red", 90 + number).save(pictures / name / "a.png")
    with pytest.raises(UserError) as refused:
        build_manifest(make(), silent)
    assert str(refused.value).startswith(
        "Class 'lonely' has 1 image, too few for its splits (train and val get none); Class 'single' has 1 image,"
    ), str(refused.value)


# Remarks


def test_small_classes_are_remarked(make: Make, pictures: Path, silent: Terminal) -> None:
    assert build_manifest(make(), silent).remarks == ()
    for label in ("red", "green"):
        for number in range(3, 12):
            (pictures / label / f"{number:02}.png").unlink()
    (remark,) = build_manifest(make(), silent).remarks
    assert remark.startswith("fewer than 10 images in 2 of 3 classes (green: 3, red: 3)")


def test_images_beside_the_class_folders_are_remarked(make: Make, pictures: Path, silent: Terminal) -> None:
    draw("red", 1).save(pictures / "loose.png")
    draw("red", 1).save(pictures / "no suffix", "PNG")
    (pictures / "labels.csv").write_text("path,label")
    (remark,) = build_manifest(make(), silent).remarks
    assert remark.startswith("not used: 2 images beside the class folders (loose.png, no suffix);")


def test_the_same_image_in_two_classes_is_remarked(make: Make, pictures: Path, silent: Terminal) -> None:
    for number in range(2):
        content = (pictures / "red" / f"{number:02}.png").read_bytes()
        (pictures / "green" / f"copy{number}.png").write_bytes(content)
    (pictures / "red" / "copy.png").write_bytes((pictures / "red" / "05.png").read_bytes())
    manifest = build_manifest(make(), silent)
    assert manifest.duplicates == 3
    (remark,) = manifest.remarks
    assert remark == (
        "contradicting labels: 2 images in more than one class (green/copy0.png = red/00.png,"
        " green/copy1.png = red/01.png); leave each in one class"
    )


def test_duplicates_are_counted_and_share_a_split(make: Make, pictures: Path, silent: Terminal) -> None:
    for number in range(5):
        (pictures / "red" / f"copy{number}.png").write_bytes((pictures / "red" / "03.png").read_bytes())
    manifest = build_manifest(make(), silent)
    assert manifest.duplicates == 5
    splits = {e.path: e.split for e in manifest.entries if "copy" in e.path or e.path == "red/03.png"}
    assert len(splits) == 6
    assert len(set(splits.values())) == 1


def test_the_digest_changes_with_split_content_and_path(make: Make, pictures: Path, silent: Terminal) -> None:
    digests = [
        build_manifest(make(), silent).digest,
        build_manifest(make("--seed.split", "1"), silent).digest,
    ]
    draw("red", 77).save(pictures / "red" / "00.png")
    digests.append(build_manifest(make(), silent).digest)
    (pictures / "red" / "00.png").rename(pictures / "red" / "000.png")
    digests.append(build_manifest(make(), silent).digest)
    assert len(set(digests)) == 4
    assert build_manifest(make(), silent).digest == digests[-1]


# The table


def test_a_manifest_is_read_back_from_its_csv(make: Make, silent: Terminal) -> None:
    manifest = build_manifest(make(), silent)
    again = parse_manifest(manifest.to_csv(), manifest.files)
    assert again == manifest
    assert again.digest == manifest.digest


@given(
    st.lists(
        st.builds(
            lambda label, name, **rest: Entry(f"{label}/{name}", label, **rest),
            label=st.text(st.sampled_from("ab ,\"'\n\ré"), min_size=1),
            name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0./"), min_size=1),
            split=st.sampled_from(SPLITS),
            size=st.integers(0, 2**40),
            digest=st.text("0123456789abcdef", min_size=40, max_size=40),
        ),
        min_size=1,
        max_size=5,
        unique_by=lambda entry: entry.path,
    ).map(lambda entries: sorted(entries, key=lambda entry: entry.path))
)
def test_any_file_name_survives_the_csv(entries: list[Entry]) -> None:
    manifest = Manifest(FolderFiles(Path("root")), Images.of(entries))
    assert parse_manifest(manifest.to_csv(), FolderFiles(Path("root"))) == manifest


def test_names_that_are_not_utf8_may_be_sorted_otherwise_in_the_csv() -> None:
    names = sorted(["a/z.png", os.fsdecode(b"a/\xe9.png"), "a/é.png"])
    manifest = Manifest(
        FolderFiles(Path("root")), Images.of(Entry(name, "a", "val", 1, "0" * 40) for name in names)
    )
    again = parse_manifest(manifest.to_csv(), manifest.files)
    assert list(again.entries.paths) == ["a/z.png", "a/é.png", r"a/\xe9.png"]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"path": "a/../1"}, "outside its dataset in row 2"),
        ({"path": ""}, "outside its dataset in row 2"),
        ({"path": "a//1"}, "outside its dataset in row 2"),
        ({"class": ""}, "no class in row 2"),
        ({"split": "tune"}, "an unknown split in row 2"),
        ({"size": "01"}, "a size that is not a number of bytes in row 2"),
        ({"digest": "0" * 39}, "an invalid digest in row 2"),
        ({"path": "a/1"}, "not sorted and unique"),
        ({"path": "a/0"}, "not sorted and unique"),
    ],
)
@pytest.mark.parametrize("first", ["a/1", r"a/\x1"])
def test_rows_that_no_manifest_has_are_named(first: str, changed: dict[str, str], problem: str) -> None:
    row = {"path": first, "class": "a", "split": "train", "size": "1", "digest": "0" * 40}
    changed = {name: first if value == "a/1" else value for name, value in changed.items()}
    if changed.get("path") == "a/0" and first != "a/1":
        return  # names that are not UTF-8 are sorted otherwise
    text = to_csv(list(row), [list(row.values()), list({**row, "path": "b/1", **changed}.values())])
    with pytest.raises(UserError, match=problem):
        parse_manifest(text, FolderFiles(Path("root")))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name,label\n1,2\n",
        "path,class,size,reason\n",
        "path,class,split,size,digest\n",
        "path,class,split,size,digest\na/b.png,a,train,large,00\n",
        "path,class,split,size,digest\na/b.png,a,train,12\n",
    ],
)
def test_a_csv_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="was not written by the runner"):
        parse_manifest(text, Path("root"))


def test_near_duplicates_are_reported_or_kept_together(make: Make, pictures: Path, silent: Terminal) -> None:
    for number in range(6):
        spots = np.random.default_rng(number).integers(0, 256, (7, 7, 3), np.uint8)
        soft = Image.fromarray(spots).resize((90, 90), Image.Resampling.BICUBIC)
        soft.save(pictures / "red" / f"soft{number}.png")
        soft.resize((60, 60)).save(pictures / "red" / f"small{number}.jpg")
    assert not build_manifest(make(), silent).remarks
    manifest = build_manifest(make("--data.near_duplicates", "report"), silent)
    assert any("6 pairs of images that look nearly alike" in remark for remark in manifest.remarks)
    manifest = build_manifest(make("--data.near_duplicates", "group"), silent)
    splits = {entry.path: entry.split for entry in manifest.entries}
    assert all(splits[f"red/soft{n}.png"] == splits[f"red/small{n}.jpg"] for n in range(6))


def test_the_same_image_in_train_and_test_folders_stops_the_run(
    make: Make, pictures: Path, tmp_path: Path, silent: Terminal
) -> None:
    root = tmp_path / "given"
    shutil.copytree(pictures, root / "train")
    (root / "test" / "red").mkdir(parents=True)
    for number in range(4):
        shutil.copy(pictures / "red" / f"{number:02}.png", root / "test" / "red")
    with pytest.raises(
        UserError, match=r"^4 images are in more than one given split \(train/red/00\.png = test/red"
    ):
        build_manifest(make("--data.root", str(root)), silent)
    manifest = build_manifest(make("--data.root", str(root), "--data.leaks", "report"), silent)
    assert manifest.counts()["test"] == 4
    assert any(remark.startswith("leaks: 4 images") for remark in manifest.remarks)
    assert any(remark.startswith("no test images for 2 of 3 classes") for remark in manifest.remarks)
