"""`runner explain`: pictures of what a model looks at."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import command, one_sentence, runner
from pictures import COLOURS, PER_CLASS
from PIL import Image
from trained import TrainedRun

from runner.cli import main
from runner.serving.load import load_model
from runner.serving.predictor import LoadedModel

Explain = Callable[..., tuple[int, str]]
Titles = dict[str, tuple[str, str]]

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture(scope="module")
def model(trained_run: TrainedRun) -> LoadedModel:
    return load_model(trained_run.run_id, trained_run.tracking)


@pytest.fixture
def explain(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Explain:
    """`explain("--target", "red", "a.png")`: status and errors of `runner explain`, which writes to `tmp_path`/out."""
    monkeypatch.setattr("runner.cli.explain.load_model_concurrently", lambda *_: model)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str]:
        capfd.readouterr()
        status = main.main(["explain", *words, *(() if "--out" in words else ("--out", "out"))])
        return status, capfd.readouterr().err

    return call


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> Titles:
    """Title and label of each picture by its file's name; drawing, which takes time, is replaced."""
    drawn: Titles = {}

    def draw(image: Any, found: Any, title: str, label: str, path: Path) -> None:
        drawn[path.name] = (title, label)
        assert found.shape == image.shape[-2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)

    monkeypatch.setattr("runner.explain.overlay.draw", draw)
    return drawn


def content(trained_run: TrainedRun, path: str = "red/00.png") -> bytes:
    return (trained_run.pictures / path).read_bytes()


def test_each_image_gets_a_picture(trained_run: TrainedRun, explain: Explain, tmp_path: Path) -> None:
    images = trained_run.pictures
    assert explain(str(images / "red" / "00.png"), str(images / "blue" / "00.png")) == (0, "")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["00.gradcam.2.png", "00.gradcam.png"]
    for path in (tmp_path / "out").iterdir():
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.size[0] > 1.5 * picture.size[1] > 300


def test_a_folder_is_explained_with_its_subfolders(
    trained_run: TrainedRun, explain: Explain, titles: Titles, model: LoadedModel
) -> None:
    assert explain(str(trained_run.pictures / "red"))[0] == 0
    assert set(titles) == {f"{number:02}.gradcam.png" for number in range(PER_CLASS)}
    predictions = model.predict(sorted((trained_run.pictures / "red").iterdir()), 1)
    for guess, (title, label) in zip([each.top[0] for each in predictions], titles.values(), strict=True):
        mark, true = ("✓", "") if guess.name == "red" else ("✗", ", true: red")
        assert title == f"{mark} {guess.name}, {100 * guess.probability:.0f} %{true}"
        assert label == f"Grad-CAM for {guess.name}"


def test_an_image_outside_class_folders_has_no_mark(
    trained_run: TrainedRun, explain: Explain, titles: Titles, tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_bytes(content(trained_run))
    words = ["x.png", "--target", "blue", "--method", "layercam", "--layer", "features.9"]
    assert explain(*words) == (0, "")
    ((name, (title, label)),) = titles.items()
    assert (name, label) == ("x.layercam.png", "LayerCAM for blue")
    assert re.fullmatch(r"\w+, \d+ %", title)


def test_the_true_class_is_the_name_of_the_folder(
    trained_run: TrainedRun, explain: Explain, titles: Titles
) -> None:
    words = [str(trained_run.pictures / label / "01.png") for label in COLOURS]
    assert explain(*words, "--target", "true")[0] == 0
    assert sorted(label for _, label in titles.values()) == [
        f"Grad-CAM for {label}" for label in sorted(COLOURS)
    ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--target", "redd"], "did you mean 'red'"),
        (["--target", "tulip"], "3 classes"),
        (["--layer", "features.91"], "did you mean 'features.9'"),
        (["--layer", "classifier.1"], "'classifier.1'"),
        (["--method", "gradkam"], "gradkam"),
        (["--out", "x.png"], "x.png is not a folder"),
        (["--out", "x.png/inside"], "x.png/inside"),
        (["--target", "true"], "--target"),
        (["nothing.png"], "There is no nothing.png"),
    ],
    ids=" ".join,
)
def test_bad_command_lines_are_refused(
    trained_run: TrainedRun, explain: Explain, titles: Titles, tmp_path: Path, words: list[str], reason: str
) -> None:
    (tmp_path / "x.png").write_bytes(content(trained_run))
    status, errors = explain("x.png", *words)
    assert status == 2
    assert reason in one_sentence(errors)
    assert titles == {}, "nothing was drawn"


def test_an_unreadable_file_does_not_stop_the_others(
    trained_run: TrainedRun, explain: Explain, titles: Titles, tmp_path: Path
) -> None:
    whole = content(trained_run)
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "good.png").write_bytes(whole)
    (tmp_path / "text.png").write_text("not an image")
    status, errors = explain("cut.png", "empty.png", "good.png", "text.png")
    assert status == 1
    assert set(titles) == {"good.gradcam.png"}
    assert [line.split()[1] for line in errors.splitlines()] == ["cut.png", "empty.png", "text.png"]
    assert "Traceback" not in errors
    status, errors = explain("cut.png", "empty.png")
    assert status == 2
    assert "None of 2 files is a readable image" in errors


def test_a_long_file_name(trained_run: TrainedRun, explain: Explain, tmp_path: Path) -> None:
    (tmp_path / f"{'n' * 245}.png").write_bytes(content(trained_run))
    assert explain(f"{'n' * 245}.png")[0] == 0


def test_predictions_can_come_with_pictures(
    trained_run: TrainedRun,
    model: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    titles: Titles,
) -> None:
    monkeypatch.setattr("runner.cli.predict.load_model_concurrently", lambda *_: model)
    image = str(trained_run.pictures / "blue" / "03.png")
    assert main.main(["predict", image, "--json", "--explain", str(tmp_path / "out")]) == 0
    assert set(titles) == {"03.gradcam.png"}


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own(trained_run: TrainedRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    image = trained_run.pictures / "green" / "05.png"
    words = ["explain", str(image), str(broken), "--model", trained_run.run_id[:8], "--out", str(out)]
    outcome = command(runner(*words, "--tracking.root", trained_run.tracking))
    assert outcome.returncode == 1, outcome.stderr
    assert [path.name for path in out.iterdir()] == ["05.gradcam.png"]
    assert str(broken) in one_sentence(outcome.stderr)
    assert f"pictures in {out}: 1" in outcome.stdout.replace("\n", "")
