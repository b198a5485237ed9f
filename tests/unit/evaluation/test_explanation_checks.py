"""Bounding boxes of a report, and the images that its checks use."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import QUIET
from PIL import Image, ImageDraw

from runner.config.augment_schema import AugmentConfig
from runner.data.files import FolderFiles
from runner.evaluation.explanation_checks import read_boxes, sample_indices
from runner.portable.images import open_rgb
from runner.portable.transform import evaluation_transform
from runner.utils.errors import UserError

HEADER = b"path,left,top,right,bottom\n"


def write_boxes(folder: Path, boxes: Mapping[str, tuple[float, float, float, float]]) -> Path:
    path = folder / "boxes.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "left", "top", "right", "bottom"))
        writer.writerows([name, *box] for name, box in boxes.items())
    return path


def evaluation_of(root: Path, *paths: str, crop_mode: str = "center") -> Any:
    """What `read_boxes` uses of an evaluation of these images: the model sees their center 64 × 64 pixels."""
    return SimpleNamespace(
        entries=[SimpleNamespace(path=path) for path in paths],
        loader=SimpleNamespace(files=FolderFiles(root)),
        experiment=SimpleNamespace(augment=AugmentConfig(resize=64, crop=64, crop_mode=crop_mode)),
        split="test",
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with an image of 128 × 64 pixels and one of 64 × 64."""
    (tmp_path / "cup").mkdir()
    Image.new("RGB", (128, 64)).save(tmp_path / "cup" / "wide.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "cup" / "square.png")
    return tmp_path


def test_boxes_are_converted_to_the_pixels_that_the_model_sees(photos: Path) -> None:
    table = write_boxes(
        photos,
        {
            "cup/wide.png": (32, 0, 64, 32),
            "cup/square.png": (8, 16, 24, 32),
            "cup/of another split.png": (0, 0, 1, 1),
        },
    )
    boxes = read_boxes(table, evaluation_of(photos, "cup/square.png", "cup/wide.png"), QUIET)
    assert boxes == {1: (0, 0, 32, 32), 0: (8, 16, 24, 32)}
    assert read_boxes(table, evaluation_of(photos, "cup/square.png"), QUIET) == {0: (8, 16, 24, 32)}


def test_boxes_in_a_squashed_image_are_squashed(photos: Path) -> None:
    table = write_boxes(photos, {"cup/wide.png": (0, 0, 64, 64)})
    boxes = read_boxes(table, evaluation_of(photos, "cup/wide.png", crop_mode="squash"), QUIET)
    width, height = Image.open(photos / "cup/wide.png").size
    assert boxes == {0: (0, 0, 64 * 64 / width, 64 * 64 / height)}


def test_boxes_may_come_from_a_spreadsheet(photos: Path) -> None:
    """With a byte-order mark, more columns, and line ends of Windows."""
    table = photos / "b.csv"
    table.write_bytes(
        "path,note,left,top,right,bottom\r\ncup/square.png,ü,1,2.5,30,40\r\n".encode("utf-8-sig")
    )
    assert read_boxes(table, evaluation_of(photos, "cup/square.png"), QUIET) == {0: (1, 2.5, 30, 40)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"path,left,top,right\ncup/square.png,1,2,3\n", "path,left,top,right,bottom"),
        (b"file,x,y,w,h\ncup/square.png,1,2,3,4\n", "path,left,top,right,bottom"),
        (HEADER + b"cup/square.png,1,2,three,4\n", "three"),
        (HEADER + b"cup/square.png,1,2\n", "path,left,top,right,bottom"),
        (HEADER + b"cup/square.png,70,70,90,90\n", "has no box inside the center crop"),
        (HEADER + b"cup/square.png,9,9,9,20\n", "is empty"),
        (HEADER + b"cup/square.png,1,1,9,9\ncup/square.png,2,2,9,9\n", "two boxes"),
        (HEADER + b"cup/none.png,1,2,3,4\n", "of an image in the test split"),
        (HEADER, "cup/square.png"),
        (b"", "cup/square.png"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\x00", "is not a table"),
        (HEADER + b"cup/square.png,nan,2,3,4\n", "infinite edge"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(photos: Path, content: bytes, reason: str) -> None:
    table = photos / "b.csv"
    table.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read_boxes(table, evaluation_of(photos, "cup/square.png"), QUIET)
    assert reason in str(refusal.value)
    assert str(table) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["none.csv", "cup"])
def test_a_missing_table_is_refused(photos: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} cannot be read"):
        read_boxes(photos / name, evaluation_of(photos, "cup/square.png"), QUIET)


def test_a_missing_image_is_refused(photos: Path) -> None:
    table = write_boxes(photos, {"cup/gone.png": (1, 1, 9, 9)})
    with pytest.raises(UserError, match=r"cannot be read .*cup/gone\.png"):
        read_boxes(table, evaluation_of(photos, "cup/gone.png"), QUIET)


def test_boxes_are_in_the_upright_image(tmp_path: Path) -> None:
    """Cameras save images on their side, with a note how to turn them."""
    upright = Image.new("RGB", (96, 192))
    ImageDraw.Draw(upright).rectangle((20, 80, 59, 109), fill="white")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    image = evaluation_transform(64, 64, "bilinear")(open_rgb(tmp_path / "a.png"))
    white = (image[0] > 127).nonzero()
    (top, left), (bottom, right) = white.amin(0).tolist(), white.amax(0).tolist()
    table = write_boxes(tmp_path, {"a.png": (20, 80, 60, 110)})
    boxes = read_boxes(table, evaluation_of(tmp_path, "a.png"), QUIET)
    assert boxes[0] == pytest.approx((left, top, right + 1, bottom + 1), abs=1.5)


def test_the_sample_of_images_is_always_the_same() -> None:
    digests = [f"{number * 7919 % 101:040x}" for number in range(20)]
    chosen = {digests[index] for index in sample_indices(digests, 5)}
    reverse = digests[::-1]
    assert {reverse[index] for index in sample_indices(reverse, 5)} == chosen
    assert chosen < {digests[index] for index in sample_indices(digests, 9)}
    assert sample_indices(digests, 5) == sorted(sample_indices(digests, 5))
    assert sample_indices(digests, 99) == list(range(20))
