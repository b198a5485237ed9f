"""Pictures of explanations: their names, titles and targets, and what is refused."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CLASSES, QUIET
from PIL import Image
from torch import Tensor

from runner.explain import cam
from runner.explain.methods import METHODS
from runner.serving.explanations import Explanations, ExplanationSettings, draw_explanations, is_picture
from runner.serving.predictor import LoadedModel
from runner.utils.errors import UserError

Titles = dict[str, tuple[str, str]]


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> Titles:
    """The title and label of each picture by its path in out/. Nothing is drawn, which takes a quarter of a second."""
    drawn: Titles = {}

    def draw(image: Tensor, found: np.ndarray, title: str, label: str, path: Path) -> None:
        assert found.shape == image.shape[-2:]
        name = str(path).rpartition("/out/")[2]
        assert name not in drawn
        assert path.parent.is_dir()
        drawn[name] = (title, label)

    monkeypatch.setattr("runner.explain.overlay.draw", draw)
    return drawn


@pytest.fixture
def explain(model: LoadedModel, tmp_path: Path) -> Callable[..., Explanations]:
    """`explain([path, …], target="red")`: draws to `tmp_path`/out."""

    def start(paths: list[Path], **settings: Any) -> Explanations:
        return draw_explanations(model, paths, tmp_path / "out", QUIET, ExplanationSettings(**settings))

    return start


def test_each_image_gets_a_picture_with_a_name_of_its_own(
    explain: Callable[..., Any], images: Path, tmp_path: Path
) -> None:
    paths = [images / "red" / "00.png", images / "blue" / "00.png"]
    done = explain(paths)
    out = tmp_path / "out"
    places = [out / "red" / "00.gradcam.png", out / "blue" / "00.gradcam.png"]
    assert done.pictures == dict(zip(map(str, paths), places, strict=True))
    assert (list(done.titles), done.unreadable) == ([str(path) for path in paths], {})
    assert sorted(path for path in out.rglob("*") if path.is_file()) == sorted(places)
    for path in places:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.size[0] > 1.5 * picture.size[1] > 300


def test_titles_show_the_prediction_and_the_class_of_the_folder(
    explain: Callable[..., Any], titles: Titles, model: LoadedModel, images: Path
) -> None:
    paths = sorted((images / "red").iterdir())
    done = explain(paths)
    assert done.unreadable == {}
    assert list(done.titles.values()) == [title for title, _ in titles.values()]
    predictions = [prediction.top[0] for prediction in model.predict(paths, 1)]
    assert list(titles) == [f"{path.stem}.gradcam.png" for path in paths]
    for prediction, (title, label) in zip(predictions, titles.values(), strict=True):
        mark, true = ("✓", "") if prediction.name == "red" else ("✗", ", true: red")
        assert title == f"{mark} {prediction.name}, {100 * prediction.probability:.0f} %{true}"
        assert label == f"Grad-CAM for {prediction.name}"


def test_an_image_outside_of_class_folders_has_no_mark(
    explain: Callable[..., Any], titles: Titles, images: Path, tmp_path: Path
) -> None:
    shutil.copy(images / "red" / "00.png", tmp_path / "x.png")
    explain([tmp_path / "x.png"], target="green", method="layercam", layer="features.2")
    ((name, (title, label)),) = titles.items()
    assert (name, label) == ("x.layercam.png", "LayerCAM for green")
    assert re.fullmatch(r"\w+, \d+ %", title)


def test_the_true_class_is_the_name_of_the_folder(
    explain: Callable[..., Any], titles: Titles, images: Path
) -> None:
    explain([images / label / "01.png" for label in CLASSES], target="true")
    assert sorted(label for _, label in titles.values()) == [f"Grad-CAM for {label}" for label in CLASSES]


def test_the_maps_are_those_of_the_target(
    explain: Callable[..., Any], model: LoadedModel, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[int], str, str]] = []

    def fake(_model: object, images: Tensor, targets: list[int], layer: str, method: str) -> np.ndarray:
        asked.append((targets, layer, method))
        return np.zeros((len(images), 32, 32), np.float32)

    monkeypatch.setattr(cam, "explain", fake)
    monkeypatch.setattr("runner.explain.overlay.draw", lambda *_: None)
    explain(files[:2], target="red", layer="features.5", method="eigencam")
    explain(files[:2])
    predicted = [model.classes.index(prediction.top[0].name) for prediction in model.predict(files[:2], 1)]
    assert asked == [([2, 2], "features.5", "eigencam"), (predicted, "", "gradcam")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "rad"}, "did you mean 'red'"),
        ({"target": "tulip"}, "3 classes"),
        ({"layer": "features.91"}, "did you mean 'features.9'"),
        ({"layer": "classifier.1"}, "'classifier.1'"),
        ({"target": "true"}, "give the class with --target"),
    ],
    ids=str,
)
def test_an_unknown_layer_or_class_is_refused_before_anything_is_drawn(
    explain: Callable[..., Any], titles: Titles, images: Path, tmp_path: Path, settings: Any, message: str
) -> None:
    shutil.copy(images / "red" / "00.png", tmp_path / "x.png")
    with pytest.raises(UserError) as refusal:
        explain([images / "red" / "01.png", tmp_path / "x.png"], **settings)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert titles == {}


def test_unreadable_files_are_returned_with_the_reason(
    explain: Callable[..., Any], titles: Titles, images: Path, tmp_path: Path
) -> None:
    content = (images / "red" / "00.png").read_bytes()
    for name, part in (
        ("cut", content[: len(content) // 2]),
        ("empty", b""),
        ("good", content),
        ("text", b"no"),
    ):
        (tmp_path / f"{name}.png").write_bytes(part)
    done = explain(sorted(tmp_path.glob("*.png")))
    assert [Path(path).name for path in done.unreadable] == ["cut.png", "empty.png", "text.png"]
    assert all(error and "\n" not in error for error in done.unreadable.values())
    assert set(titles) == {"good.gradcam.png"}
    assert done.pictures == {str(tmp_path / "good.png"): tmp_path / "out" / "good.gradcam.png"}


@pytest.mark.usefixtures("titles")
def test_pictures_mirror_the_folders_below_the_common_one(
    explain: Callable[..., Explanations], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.explain.overlay.draw", lambda *arguments: arguments[-1].touch())
    names = ["x.png", "x.bmp", "a/x.png", "a/b/x.png", "a/b/x.jpg"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(images / "red" / "00.png").convert("RGB").save(tmp_path / "in" / name)
    monkeypatch.chdir(tmp_path / "in" / "a")
    done = explain([Path("..", name) for name in names[:2]] + [Path(name[2:]) for name in names[2:]])
    out = tmp_path / "out"
    assert list(done.pictures.values()) == [
        *(out / "x.gradcam.png", out / "x.gradcam.2.png", out / "a" / "x.gradcam.png"),
        *(out / "a" / "b" / "x.gradcam.png", out / "a" / "b" / "x.gradcam.2.png"),
    ]
    assert all(path.is_file() for path in done.pictures.values())
    within = explain([Path("b/x.png"), Path("b/x.jpg")])
    assert list(within.pictures.values()) == [out / "x.gradcam.png", out / "x.gradcam.2.png"]


@pytest.mark.parametrize("method", METHODS)
def test_pictures_are_told_from_images_by_their_names(method: str) -> None:
    for end in (".png", ".2.png", ".17.png"):
        assert is_picture(Path(f"some/a.b.{method}{end}"))
    assert not any(
        is_picture(Path(f"{method}/{name}")) for name in ("a.png", f"{method}.png", f"a.{method}.jpg")
    )


@pytest.mark.parametrize("name", ["n" * 245, "a\nb", os.fsdecode(b"caf\xe9"), "猫" * 80])
def test_a_file_may_have_any_name(
    explain: Callable[..., Any], titles: Titles, images: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / f"{name}.png"
    shutil.copy(images / "red" / "00.png", path)
    assert explain([path]).unreadable == {}
    ((picture, _),) = titles.items()
    (tmp_path / picture).touch()
    picture.encode()
