"""Images that look nearly alike are found by their hashes, named, and kept in one split."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from runner.config.data_schema import SplitConfig
from runner.data import file_map
from runner.data.columns import Paths
from runner.data.splitting import image_hashes, near_duplicates
from runner.data.splitting.clusters import SplitInput
from runner.data.splitting.image_hashes import ROW
from runner.data.splitting.near_duplicates import (
    NearDuplicates,
    _close_pairs,
    find_near_duplicates,
    near_duplicate_remarks,
)
from runner.data.splitting.splits import assign_splits
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.hashing import digest_bytes


def picture(number: int, size: int = 160) -> Image.Image:
    """A picture of soft spots, like no other."""
    coarse = np.random.default_rng(number).integers(0, 256, (7, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@dataclass
class Contents:
    """Files in memory. It counts how often they are read."""

    contents: dict[str, bytes]
    root: Path = Path("somewhere")
    reads: list[str] = field(default_factory=list)

    def read(self, path: str) -> bytes:
        self.reads.append(path)
        return self.contents[path]

    def shown(self, path: str) -> str:
        return path


def images_of(contents: dict[str, bytes]) -> SplitInput:
    paths = sorted(contents)
    classes = tuple(sorted({path.split("/")[0] for path in paths}))
    digests = b"".join(bytes.fromhex(digest_bytes(contents[path])) for path in paths)
    labels = np.array([classes.index(path.split("/")[0]) for path in paths], np.int32)
    return SplitInput(Paths.of(paths), classes, labels, np.frombuffer(digests, np.uint8).reshape(-1, 20))


def compare(files: Contents, images: SplitInput, cache: Path, silent: Terminal) -> NearDuplicates:
    return find_near_duplicates(files, images.paths, images.digests, cache, silent)


@pytest.fixture
def contents() -> dict[str, bytes]:
    """Twenty pictures of two classes."""
    return {f"{'ab'[number % 2]}/{number:02}.jpg": encoded(picture(number)) for number in range(20)}


def turned(image: Image.Image) -> bytes:
    """A picture that lies on its side, with the orientation that makes it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), exif=exif)


@pytest.mark.parametrize(
    "copy",
    [
        lambda image: encoded(image, quality=40),
        lambda image: encoded(image, "PNG"),
        lambda image: encoded(image.resize((80, 80))),
        lambda image: encoded(image.crop((2, 2, 158, 158))),
        lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.9)),
        lambda image: encoded(image.convert("L")),
        turned,
    ],
)
def test_copies_are_found(
    contents: dict[str, bytes], copy: Callable[[Image.Image], bytes], tmp_path: Path, silent: Terminal
) -> None:
    contents["a/copy"] = copy(picture(4))
    images = images_of(contents)
    near = compare(Contents(contents), images, tmp_path, silent)
    assert [[images.paths[row] for row in pair] for pair in near.pairs] == [["a/04.jpg", "a/copy"]]
    assert [images.paths[row] for row in np.flatnonzero(near.clusters >= 0)] == ["a/04.jpg", "a/copy"]


def test_near_duplicates_are_reported_and_kept_together(
    contents: dict[str, bytes], tmp_path: Path, silent: Terminal
) -> None:
    contents |= {f"a/{number:02}-small.jpg": encoded(picture(number, 90)) for number in range(0, 20, 2)}
    contents |= {"b/flat.png": encoded(Image.new("RGB", (50, 50), "red"), "PNG")}
    contents |= {"b/gray.png": encoded(Image.new("RGB", (60, 50), "gray"), "PNG")}
    images = images_of(contents)
    near = compare(Contents(contents), images, tmp_path, silent)
    splits = assign_splits(images, SplitConfig(), 0)
    found, divided, flat = near_duplicate_remarks(images, near, splits)
    assert found == (
        "near duplicates: 10 pairs of images that look nearly alike, in 10 clusters of up to 2 images"
    )
    number = sum(splits[one] != splits[other] for one, other in near.pairs)
    assert divided.startswith(f"near duplicates in different splits: {number} pairs (a/0")
    assert divided.endswith("; data.near_duplicates=group keeps each pair in one split")
    assert flat.startswith("not compared: 2 images of nearly one color")
    grouped = replace(images, similar=near.clusters)
    splits = assign_splits(grouped, SplitConfig(), 0)
    assert all(splits[one] == splits[other] for one, other in near.pairs)
    assert len(list(near_duplicate_remarks(grouped, near, splits))) == 2


def test_identical_images_are_no_near_duplicates(
    contents: dict[str, bytes], tmp_path: Path, silent: Terminal
) -> None:
    contents["a/again.jpg"] = contents["a/04.jpg"]
    images = images_of(contents)
    near = compare(Contents(contents), images, tmp_path, silent)
    assert not len(near.pairs)
    assert list(near_duplicate_remarks(images, near, np.zeros(21, np.int8))) == [
        "near duplicates: none found"
    ]
    assert (near.clusters == -1).all()


def test_hashes_are_computed_once_for_each_content(
    contents: dict[str, bytes], tmp_path: Path, silent: Terminal
) -> None:
    files = Contents(contents)
    first = compare(files, images_of(contents), tmp_path, silent)
    assert sorted(files.reads) == sorted(contents)
    moved = {path.replace("0", "x"): content for path, content in contents.items()}
    later = Contents(moved | {"a/new.jpg": encoded(picture(99)), "a/same.jpg": contents["a/02.jpg"]})
    again = compare(later, images_of(later.contents), tmp_path, silent)
    assert later.reads == ["a/new.jpg"]
    assert len(again.pairs) == len(first.pairs)
    (cache_file,) = (tmp_path / "image_hashes").iterdir()
    cache_file.write_bytes(cache_file.read_bytes()[:-3])
    compare(later, images_of(later.contents), tmp_path, silent)
    assert len(later.reads) == 1 + len(moved) + 1  # a damaged cache counts as none


def test_hashes_that_another_table_needs_are_kept(
    contents: dict[str, bytes], tmp_path: Path, silent: Terminal
) -> None:
    compare(Contents(contents), images_of(contents), tmp_path, silent)
    few = {path: contents[path] for path in sorted(contents)[:4]} | {"b/new.jpg": encoded(picture(99))}
    compare(Contents(few), images_of(few), tmp_path, silent)
    again = Contents(contents)
    compare(again, images_of(contents), tmp_path, silent)
    assert not again.reads


def test_hashes_of_an_interrupted_comparison_are_kept(
    contents: dict[str, bytes], tmp_path: Path, silent: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = image_hashes.map_files

    def interrupted(*args: object):  # type: ignore[no-untyped-def]
        for number, rows in enumerate(compute(*args)):  # type: ignore[arg-type]
            if number == 8:
                raise KeyboardInterrupt
            yield rows

    monkeypatch.setattr(image_hashes, "map_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(Contents(contents), images_of(contents), tmp_path, silent)
    monkeypatch.undo()
    files = Contents(contents)
    compare(files, images_of(contents), tmp_path, silent)
    assert len(files.reads) == 12


def test_processes_and_threads_give_the_same_hashes(
    contents: dict[str, bytes], tmp_path: Path, silent: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_of(contents)

    def hashes(cache: str) -> bytes:
        return image_hashes.image_hashes(
            Contents(contents), images.paths, images.digests, tmp_path / cache, silent
        ).tobytes()

    by_threads = hashes("threads")
    monkeypatch.setattr(file_map, "MIN_FILES_FOR_PROCESSES", 1)
    monkeypatch.setattr(file_map, "LARGEST_CALL", 6)
    assert hashes("processes") == by_threads


def test_an_image_that_cannot_be_decoded_any_more_is_not_compared(
    contents: dict[str, bytes], tmp_path: Path, silent: Terminal
) -> None:
    images = images_of(contents)
    files = Contents({**contents, "a/04.jpg": b"damaged"})
    assert compare(files, images, tmp_path, silent).flat == 1
    assert compare(Contents(contents), images, tmp_path, silent).flat == 0


@given(st.integers(0, 10**6), st.integers(2, 150), st.integers(0, 9))
def test_all_close_pairs_are_found_once(seed: int, number: int, flips: int) -> None:
    random = np.random.default_rng(seed)
    hashes = np.zeros(number, ROW)
    for name in ("perceptual", "across", "down"):
        few = random.integers(0, 2**64, 6, np.uint64)
        hashes[name] = few[random.integers(0, 6, number)]
        for _ in range(flips):
            hashes[name] ^= np.uint64(1) << random.integers(0, 64, number).astype(np.uint64)
    expected = {
        (one, other)
        for other in range(number)
        for one in range(other)
        if bits(hashes, "perceptual", one, other) <= 6
        and bits(hashes, "across", one, other) + bits(hashes, "down", one, other) <= 12
    }
    found = [tuple(pair) for pair in _close_pairs(hashes).tolist()]
    assert len(found) == len(set(found))
    assert set(found) == expected


def bits(hashes: np.ndarray, name: str, one: int, other: int) -> int:
    return int(hashes[name][one] ^ hashes[name][other]).bit_count()


def test_more_pairs_than_fit_in_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the frames of a fixed camera have them."""
    monkeypatch.setattr(near_duplicates, "MOST_PAIRS", 1000)
    with pytest.raises(UserError, match=r"More than 1,000 pairs .* split\.group"):
        _close_pairs(np.zeros(100, ROW))
    assert len(_close_pairs(np.zeros(40, ROW))) == 780
