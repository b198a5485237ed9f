"""Predictions from files: of any kind, in any batch and order, with unreadable files between them."""

from __future__ import annotations

import io
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_kinds import KINDS, png, save_kind
from pictures import draw
from PIL import Image

from runner.portable.classifier import BATCH_SIZE
from runner.serving.predictor import LoadedModel, Prediction

Row = tuple[tuple[str, float], ...]


def row(prediction: Prediction) -> Row:
    return tuple((item.name, item.probability) for item in prediction.top)


def rows(model: LoadedModel, paths: list[Path]) -> list[Row]:
    """All classes with their probabilities, for each file."""
    return [row(prediction) for prediction in model.predict(paths, 9)]


@pytest.fixture(scope="module")
def alone(model: LoadedModel, files: list[Path]) -> dict[Path, Row]:
    """The prediction for each file when it is the only one."""
    return {path: rows(model, [path])[0] for path in files}


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A file that is not an image."""
    path = tmp_path / "bad.png"
    path.write_bytes(b"no image")
    return path


# Batches and order


@pytest.mark.parametrize("count", [1, 2, BATCH_SIZE - 1, BATCH_SIZE, BATCH_SIZE + 1, 2 * BATCH_SIZE + 3])
def test_a_prediction_does_not_depend_on_the_other_files(
    model: LoadedModel, files: list[Path], alone: dict[Path, Row], bad: Path, count: int
) -> None:
    generator = random.Random(count)
    paths = generator.sample(files, count)
    for _ in range(2):
        paths.insert(generator.randrange(len(paths) + 1), bad)
    predictions = model.predict(paths, 9)
    assert [prediction.path for prediction in predictions] == [str(path) for path in paths]
    for path, prediction in zip(paths, predictions, strict=True):
        assert bool(prediction.error) == (path == bad)
        assert row(prediction) == alone.get(path, ())


def test_batches_of_unreadable_files_only_are_skipped(
    model: LoadedModel, files: list[Path], alone: dict[Path, Row], bad: Path
) -> None:
    predictions = model.predict([bad] * 40 + files[:1] + [bad] * 40 + files[1:2] + [bad] * 3, 9)
    assert len(predictions) == 85
    readable = [prediction for prediction in predictions if not prediction.error]
    assert [row(prediction) for prediction in readable] == [alone[path] for path in files[:2]]


def test_unreadable_files_cost_no_forward_pass(model: LoadedModel, files: list[Path], bad: Path) -> None:
    sizes = [
        len(batch.images) for batch in model.decoded_batches([bad, *files[:BATCH_SIZE], bad, *files[:3]])
    ]
    assert sizes == [BATCH_SIZE, 3]


def test_hundreds_of_files_keep_their_order(
    model: LoadedModel, files: list[Path], alone: dict[Path, Row], tmp_path: Path
) -> None:
    links = [tmp_path / f"{number:03}.png" for number in range(300)]
    for number, link in enumerate(links):
        link.symlink_to(files[number * 7 % 20])
    predictions = model.predict(links, 9)
    assert [prediction.path for prediction in predictions] == [str(link) for link in links]
    assert [row(prediction) for prediction in predictions] == [alone[link.readlink()] for link in links]


def test_a_file_may_be_given_twice(model: LoadedModel, files: list[Path]) -> None:
    first, second, _ = model.predict([files[0], files[0], files[1]])
    assert first == second


def test_one_path_may_be_given_without_a_list(model: LoadedModel, files: list[Path]) -> None:
    assert model.predict(files[0]) == model.predict(str(files[0])) == model.predict([files[0]])


def test_no_files_give_no_predictions(model: LoadedModel) -> None:
    assert model.predict([]) == []


def test_progress_counts_every_file(model: LoadedModel, files: list[Path], bad: Path) -> None:
    done: list[int] = []
    model.predict([*files, bad], advance=done.append)
    assert sum(done) == 21


def test_probabilities_are_a_softmax_in_descending_order(model: LoadedModel, files: list[Path]) -> None:
    for prediction in model.predict(files, 9):
        values = [item.probability for item in prediction.top]
        assert sum(values) == pytest.approx(1, abs=1e-12)
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(("top", "count"), [(1, 1), (2, 2), (99, 3)])
def test_the_number_of_classes_can_be_chosen(
    model: LoadedModel, files: list[Path], alone: dict[Path, Row], top: int, count: int
) -> None:
    (prediction,) = model.predict(files[0], top)
    assert prediction.as_dict() == {
        "path": str(files[0]),
        "top": [{"class": name, "probability": value} for name, value in alone[files[0]][:count]],
    }


# Images in memory


def test_images_in_memory_are_classified_as_their_files(
    model: LoadedModel, files: list[Path], alone: dict[Path, Row]
) -> None:
    opened, decoded = Image.open(files[0]), Image.open(files[1]).convert("RGB")
    array = np.array(Image.open(files[2]).convert("RGB"))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    predictions = model.predict([opened, files[3], decoded, array, tensor, opened], 9)
    order = [files[0], files[3], files[1], files[2], files[2], files[0]]
    assert [row(prediction) for prediction in predictions] == [alone[path] for path in order]
    assert [prediction.path for prediction in predictions] == ["", str(files[3]), "", "", "", ""]
    for image in (opened, array, tensor):
        assert model.predict(image, 9) == model.predict([image], 9)
    first, _ = model.predict(np.stack([array, array[::-1]]), 9)
    assert row(first) == alone[files[2]]
    assert [row(each) for each in model.predict(iter([tensor]), 9)] == [alone[files[2]]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pil_image_of_any_mode_is_classified_as_its_file(
    model: LoadedModel, kind: str, tmp_path: Path
) -> None:
    path, _ = save_kind(kind, tmp_path)
    with Image.open(path) as image:
        assert row(model.predict(image, 9)[0]) == rows(model, [path])[0]


def test_a_damaged_pil_image_gets_an_error(model: LoadedModel, files: list[Path], bad: Path) -> None:
    bad.write_bytes(files[0].read_bytes()[:200])
    with Image.open(bad) as image:
        (prediction,) = model.predict(image)
    assert "cannot be" in prediction.error


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (3, "int"),
        (None, "NoneType"),
        ([None], "NoneType"),
        (b"bytes", "bytes"),
        (io.BytesIO(b"bytes"), "bytes"),
        ({"a.png": 1}, "dict"),
        (np.zeros((5, 5), np.uint8), "ndarray of 5 × 5, uint8"),
        (np.zeros((5, 5, 3)), "ndarray of 5 × 5 × 3, float64"),
        (np.zeros((3, 5, 5), np.uint8), "ndarray of 3 × 5 × 5, uint8"),
        (torch.zeros(3, 5, 5), "Tensor of 3 × 5 × 5, float32"),
        (torch.zeros(5, 5, 3, dtype=torch.uint8), "Tensor of 5 × 5 × 3, uint8"),
        (torch.tensor(1), "Tensor of one value, int64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_else_is_a_type_error(
    model: LoadedModel, files: list[Path], given: Any, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.classifier, "load_image", lambda _: pytest.fail("something was computed"))
    with pytest.raises(TypeError, match=rf"An image is a path, .*, not {named}\.") as refused:
        model.predict(given)
    assert "\n" not in str(refused.value)
    if not isinstance(given, (io.BytesIO, list)):
        with pytest.raises(TypeError):
            model.predict([files[0], given])


def test_what_is_printed_of_models_and_predictions(model: LoadedModel, files: list[Path], bad: Path) -> None:
    assert repr(model) == "<LoadedModel a test model: vgg11, 3 classes, on cpu>"
    prediction, unreadable = model.predict([files[0], bad], 1)
    (top,) = prediction.top
    assert repr(prediction) == f"<Prediction {files[0]}: {top.name} {top.probability:.3f}>"
    assert repr(unreadable) == f"<Prediction {bad}: is not an image that Pillow can read>"


# Kinds of images


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_read_as_a_person_sees_it(model: LoadedModel, kind: str, tmp_path: Path) -> None:
    path, seen = save_kind(kind, tmp_path)
    Image.fromarray(seen).save(tmp_path / "plain.png")
    one, other = rows(model, [path, tmp_path / "plain.png"])
    assert one == other


@pytest.mark.parametrize(
    "name", ["no suffix", "text.txt", "猫.png", "a\nb.png", "[1].png", "-x", "ü\u0308.PNG"]
)
def test_a_file_may_have_any_name(
    model: LoadedModel, files: list[Path], alone: dict[Path, Row], tmp_path: Path, name: str
) -> None:
    shutil.copy(files[3], tmp_path / name)
    assert rows(model, [tmp_path / name]) == [alone[files[3]]]


def test_tiny_and_thin_images_are_classified(model: LoadedModel, tmp_path: Path) -> None:
    for size in ((1, 1), (1, 200), (200, 1), (3, 2)):
        Image.new("RGB", size, "red").save(tmp_path / f"{size}.png")
    assert [prediction.error for prediction in model.predict(sorted(tmp_path.iterdir()))] == [""] * 4


def test_a_very_thin_image_does_not_become_huge(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shorter side is resized to the crop and the longer one grows along: 1 × 80,000 to 36 × 2,880,000."""
    areas: list[int] = []
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *rest: Any, **more: Any) -> Image.Image:
        areas.append(size[0] * size[1])
        return resize(image, size if areas[-1] < 10**7 else (36, 36), *rest, **more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    Image.new("RGB", (1, 80_000)).save(tmp_path / "thin.png")
    model.predict(tmp_path / "thin.png")
    assert max(areas, default=0) <= Image.MAX_IMAGE_PIXELS  # type: ignore[operator]


@pytest.mark.parametrize("shape", [(8000, 1, 3), (1, 8000, 3)])
def test_a_very_thin_array_or_tensor_gets_the_error_of_its_file(
    model: LoadedModel, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    array = np.zeros(shape, np.uint8)
    Image.fromarray(array).save(tmp_path / "thin.png")
    images = [tmp_path / "thin.png", array, torch.from_numpy(array).permute(2, 0, 1), Image.fromarray(array)]
    for prediction in model.predict(images):
        assert prediction.error == f"cannot be decoded (it is {shape[1]} × {shape[0]} pixels, too thin)"


# Files that are not images


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "is empty"),
        (b"hello", "is not an image that Pillow can read"),
        (b"\x89PNG\r\n\x1a\n", "is not an image"),
        (png(30, 30), "cannot"),
        (png(50_000, 50_000), "cannot be decoded (Image size (2500000000 pixels) exceeds limit"),
        (b"GIF89a" + b"\xff" * 30, "is not an image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 40, "is not an image"),
        (pickle.dumps({"x": 1}), "is not an image"),
    ],
    ids=["empty", "text", "signature", "no rows", "bomb", "gif", "jpeg", "pickle"],
)
def test_an_unreadable_file_gets_an_error_in_one_line(
    model: LoadedModel, files: list[Path], bad: Path, content: bytes, error: str
) -> None:
    bad.write_bytes(content)
    unreadable, readable = model.predict([bad, files[0]])
    assert unreadable.top == ()
    assert unreadable.error.startswith(error)
    assert "\n" not in unreadable.error
    assert not readable.error


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_a_truncated_image_is_unreadable(model: LoadedModel, kind: str, share: float, tmp_path: Path) -> None:
    whole = io.BytesIO()
    draw("red", 1, (200, 160)).save(whole, kind)
    path = tmp_path / "part"
    path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
    (prediction,) = model.predict(path)
    assert prediction.error
    assert "\n" not in prediction.error


def test_an_image_above_pillows_limit_is_unreadable(
    model: LoadedModel, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    (prediction,) = model.predict(files[0])
    assert "decompression bomb" in prediction.error


def test_files_that_cannot_be_opened_get_the_reason(
    model: LoadedModel, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "locked.png"
    shutil.copy(files[0], locked)
    whole = Image.open

    def careful(file: Any, *rest: Any) -> Any:
        if file == locked:
            raise PermissionError(13, "Permission denied", str(file))
        return whole(file, *rest)

    monkeypatch.setattr(Image, "open", careful)
    paths = [locked, tmp_path, tmp_path / "gone.png", "a\0b", "x" * 300, "/dev/zero", files[0]]
    assert [prediction.error for prediction in model.predict(paths)] == [
        "cannot be read (Permission denied)",
        "cannot be read (Is a directory)",
        "cannot be read (No such file or directory)",
        "cannot be decoded (embedded null byte)",
        "cannot be read (File name too long)",
        "is empty",
        "",
    ]
