"""`runner predict`: what it prints, its exit status, and what it refuses."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import CLASSES
from loaded import loaded_model

from runner.cli import main
from runner.serving.predictor import LoadedModel

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return loaded_model()


@pytest.fixture
def predict(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """`predict("a.png", "--json")`: status, standard output and standard error of the command."""
    monkeypatch.setattr("runner.cli.predict.load_model_concurrently", lambda *_: model)

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main.main(["predict", *map(str, words)])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def files(images: Path) -> list[Path]:
    """Three image files, one of each class."""
    return [images / label / "00.png" for label in CLASSES]


def errors(stderr: str) -> list[str]:
    """The messages on standard error."""
    return [line.removeprefix("runner: ") for line in stderr.splitlines() if line.startswith("runner: ")]


# Output


def test_text_shows_the_model_and_the_most_probable_classes(
    predict: Command, model: LoadedModel, files: list[Path]
) -> None:
    status, out, err = predict(files[0], "--top", "2")
    assert (status, err) == (0, "")
    (prediction,) = model.predict(files[0], 2)
    classes = [f"  {100 * item.probability:6.2f} %  {item.name}" for item in prediction.top]
    assert out.splitlines() == ["a test model, 3 classes", "", str(files[0]), *classes]


def test_names_that_are_not_utf8_are_valid_in_every_output(
    predict: Command, files: list[Path], tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xff.png")
    odd.parent.mkdir()
    shutil.copy(files[0], odd)
    shown = str(tmp_path / r"caf\xe9" / r"\xff.png")
    assert shown in predict(odd)[1]
    assert json.loads(predict(odd, "--json")[1])[0]["path"] == shown
    assert predict(odd, "--csv", "--top", "1")[1].splitlines()[1].startswith(f"{shown},1,")
    status, out, err = predict(odd.parent / os.fsdecode(b"none\xe9.png"))
    assert (status, out) == (2, "")
    assert r"caf\xe9/none\xe9.png" in err


def test_json_is_all_of_the_standard_output(predict: Command, model: LoadedModel, files: list[Path]) -> None:
    status, out, err = predict(*files, "--json", "--top", "2")
    assert status == 0
    assert json.loads(out) == [prediction.as_dict() for prediction in model.predict(files, 2)]
    assert all(set(row) == {"path", "top"} and len(row["top"]) == 2 for row in json.loads(out))
    assert err == "a test model, 3 classes\n"


def test_csv_is_all_of_the_standard_output(predict: Command, model: LoadedModel, files: list[Path]) -> None:
    status, out, err = predict(files[0], "--csv")
    rows = list(csv.reader(io.StringIO(out)))
    (prediction,) = model.predict(files[0])
    assert rows == [
        ["path", "rank", "class", "probability"],
        *(
            [str(files[0]), str(rank), item.name, f"{item.probability:.6f}"]
            for rank, item in enumerate(prediction.top, 1)
        ),
    ]
    assert (status, err) == (0, "a test model, 3 classes\n")


def test_csv_quotes_names(predict: Command, files: list[Path], tmp_path: Path) -> None:
    odd = tmp_path / 'a,"b"\n猫.png'
    shutil.copy(files[0], odd)
    _, out, _ = predict(odd, "--csv", "--top", "1")
    assert next(iter(list(csv.reader(io.StringIO(out, newline="")))[1:]))[0] == str(odd)


@pytest.mark.parametrize("option", ["--json", "--csv", "--top=1"])
def test_file_names_need_not_be_valid_unicode(
    predict: Command, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(files[0], odd)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict"))
    assert predict(odd, option)[0] == 0


def test_a_folder_and_a_pattern_stand_for_their_images(predict: Command, images: Path) -> None:
    whole = json.loads(predict(images, "--json")[1])
    assert len(whole) == 36
    rows = json.loads(predict(images / "*" / "0[01].png", images, "--json")[1])
    assert len(rows) == 36, "each file once"
    assert rows[0]["path"].endswith("00.png")


def test_class_names_in_another_language(predict: Command, files: list[Path], tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    names.write_text('class,name\r\nblue,"синий, да"\r\nunknown,x\r\n', encoding="utf-8-sig")
    (row,) = json.loads(predict(files[0], "--json", "--lang", names)[1])
    assert {item["class"]: item["name"] for item in row["top"]} == {
        "blue": "синий, да",
        "green": "green",
        "red": "red",
    }
    assert "синий, да" in predict(files[0], "--lang", names)[1]
    assert '"синий, да"' in predict(files[0], "--csv", "--lang", names)[1]
    for language in ("zh", "de"):  # has none of the classes; is not included
        status, _, err = predict(files[0], "--lang", language)
        assert status == 2
        assert len(errors(err)) == 1


def test_pictures_of_explanations_can_be_drawn_too(
    predict: Command, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.explain.overlay.draw", lambda *arguments: arguments[-1].touch())
    (tmp_path / "bad.png").write_bytes(b"")
    status, out, _ = predict(*files, tmp_path / "bad.png", "--explain", tmp_path / "out")
    assert status == 1
    pictures = sorted(str(path) for path in (tmp_path / "out").rglob("*.png"))
    assert len(pictures) == 3, "the files have one name in three folders"
    assert out.endswith(f"pictures in {tmp_path / 'out'}: 3\n")
    status, out, _ = predict(*files, "--explain", tmp_path / "out", "--json")
    assert status == 0
    rows = json.loads(out)
    assert sorted(row["picture"] for row in rows) == pictures
    assert all(Path(row["picture"]).parent.name == Path(row["path"]).parent.name for row in rows)


def test_a_disk_that_is_full_of_pictures_does_not_lose_the_predictions(
    predict: Command, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("runner.explain.overlay.draw", full)
    status, out, err = predict(*files, "--explain", tmp_path / "out", "--json")
    assert status == 2
    assert [row["path"] for row in json.loads(out)] == [str(path) for path in files]
    assert "The disk is full" in err


# Unreadable files


def test_unreadable_files_do_not_stop_the_others(predict: Command, files: list[Path], tmp_path: Path) -> None:
    contents = {
        "cut.png": files[0].read_bytes()[:60],
        "empty.png": b"",
        "odd\n\x1b[31mname.png": b"\x89PNG\r\n\x1a\n",
        "text.png": b"hello",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    status, out, err = predict(tmp_path, files[0], "--json")
    assert status == 1
    assert [row["path"] for row in json.loads(out)] == [str(files[0])]
    messages = errors(err)
    assert len(messages) == 4, "one line each"
    assert messages[1] == f"{tmp_path / 'empty.png'} is empty"
    assert messages[3] == f"{tmp_path / 'text.png'} is not an image that Pillow can read"
    assert "\x1b" not in err


def test_a_command_without_a_readable_image_fails(predict: Command, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    (tmp_path / "b.png").write_bytes(b"")
    status, out, err = predict(tmp_path, "--json")
    assert (status, json.loads(out)) == (2, [])
    *messages, last = errors(err)
    assert len(messages) == 2
    assert last.startswith("None of 2 files is a readable image")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.png"], "There is no nothing.png"),
        (["*.nothing"], "matches no image"),
        (["--top", "0", "x.png"], "a whole number of at least 1"),
        (["--json", "--csv", "x.png"], "not allowed with"),
        ([str(Path(__file__).parents[3] / "experiments")], "holds no images"),
        ([], "IMAGE"),
    ],
    ids=" ".join,
)
def test_mistakes_are_refused_in_one_sentence(predict: Command, words: list[str], message: str) -> None:
    status, out, err = predict(*words)
    assert (status, out) == (2, "")
    (sentence,) = errors(err)
    assert message in sentence
