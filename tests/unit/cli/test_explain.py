"""`runner explain`: what it prints, its exit status, and what it refuses. Its pictures: tests/unit/serving."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loaded import loaded_model

from runner.cli import main
from runner.explain.methods import METHODS
from runner.serving.predictor import LoadedModel

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return loaded_model()


@pytest.fixture
def explain(
    model: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Command:
    """`explain("a.png", "--target", "red")`: status, standard output and standard error; nothing is drawn."""

    def draw(image: Any, found: Any, title: str, label: str, path: Path) -> None:
        path.write_text(f"{title}\n{label}")

    monkeypatch.setattr("runner.cli.explain.load_model_concurrently", lambda *_: model)
    monkeypatch.setattr("runner.explain.overlay.draw", draw)
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main.main(["explain", *map(str, words)])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run


def test_each_image_gets_a_picture_in_the_output_folder(
    explain: Command, images: Path, tmp_path: Path
) -> None:
    status, out, err = explain(images / "red" / "00.png", images / "blue" / "00.png")
    assert (status, err) == (0, "")
    first, *lines = out.splitlines()
    assert first == "a test model, 3 classes"
    for line, label in zip(lines, ("red", "blue"), strict=True):
        picture = f"explained/{label}/00.gradcam.png"
        title, _ = (tmp_path / picture).read_text().splitlines()
        assert line == f"{picture}: {title}"
        assert title.startswith(f"✓ {label}, ") or title.endswith(f" %, true: {label}")
    assert drawn(tmp_path / "explained") == ["blue/00.gradcam.png", "red/00.gradcam.png"]


def test_pictures_of_earlier_calls_are_not_explained(explain: Command, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "red", tmp_path / "red")
    shutil.copytree(images / "blue", tmp_path / "blue")
    first = explain(".")
    pictures = drawn(tmp_path / "explained")
    assert len(pictures) == 24
    assert first[1].endswith("\npictures in explained: 24\n")
    for words in ((".",), ("**/*.png",), ("red", "blue", ".", "--out", "explained")):
        status, out, err = explain(*words)
        note = "note: passed over 24 pictures that ./launch.sh explain drew; name them to include them\n"
        assert (status, out, err) == (0, note + first[1], "")
        assert drawn(tmp_path / "explained") == pictures


def test_an_image_with_the_name_of_a_picture_is_explained_if_it_is_named(
    explain: Command, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    shutil.copy(images / "red" / "00.png", tmp_path / "own" / "00.gradcam.png")
    for words in (("own/00.gradcam.png", images / "red" / "01.png"), ("own",)):
        status, out, err = explain(*words, "--out", "again")
        assert (status, err) == (0, "")
        assert "note" not in out
    assert "00.gradcam.gradcam.png" in drawn(tmp_path / "again")


def drawn(folder: Path) -> list[str]:
    """The pictures in a folder and below."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.runs_images])
def test_every_method_can_be_chosen(explain: Command, images: Path, tmp_path: Path, method: str) -> None:
    words = ("--method", method, "--target", "green", "--layer", "features.5", "--out", tmp_path / "out")
    assert explain(images / "red" / "00.png", *words)[0] == 0
    text = (tmp_path / "out" / f"00.{method}.png").read_text()
    assert text.endswith(f"\n{METHODS[method].title} for green")


def test_unreadable_files_do_not_stop_the_others(explain: Command, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    status, out, err = explain("empty.png", images / "red" / "00.png", "text.png")
    assert status == 1
    assert "/red/00.gradcam.png: " in out.splitlines()[-1]
    assert err == "runner: empty.png is empty\nrunner: text.png is not an image that Pillow can read\n"
    status, _, err = explain("empty.png", "text.png")
    assert status == 2
    assert err.splitlines()[-1].startswith("runner: None of 2 files is a readable image")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "rad"], "did you mean 'red'"),
        (["--layer", "features.91"], "did you mean 'features.9'"),
        (["--method", "gradkam"], "gradkam"),
        (["--out", "x.png"], "x.png is not a folder"),
        (["--out", "x.png/inside"], "x.png/inside"),
        (["--target", "true"], "give the class with --target"),
        (["nothing.png"], "There is no nothing.png"),
    ],
    ids=" ".join,
)
def test_mistakes_are_refused_in_one_sentence(
    explain: Command, images: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "x.png").write_bytes((images / "red" / "00.png").read_bytes())
    status, _, err = explain("x.png", *words)
    assert status == 2
    (sentence,) = err.splitlines()
    assert sentence.startswith("runner: ")
    assert message in sentence
    assert not list(tmp_path.rglob("*.gradcam.png"))
