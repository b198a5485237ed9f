"""Plots of an evaluation: whole pictures of a reasonable size, whatever the classes are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_predictions import ODD_NAMES, from_pairs, predictions_of, random_predictions

from runner.evaluation import plots, statistics
from runner.evaluation.metrics import softmax


def checked(path: Path, least: int, most: int) -> Image.Image:
    """The picture, after checking its size, that it has content, and that nothing is cut off at its edges."""
    image = Image.open(path).convert("RGB")
    assert least <= min(image.size) <= max(image.size) <= most
    assert len(image.getcolors(image.width * image.height)) > 20
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == 255).all(), "something is cut off"
    return image


@pytest.mark.parametrize("classes", [2, 10, 41])
def test_confusion_matrix(classes: int, tmp_path: Path) -> None:
    plots.confusion_matrix(random_predictions(20 * classes, classes), tmp_path / "picture.png")
    checked(tmp_path / "picture.png", 400, 1800)


def test_a_confusion_matrix_shows_one_image_in_a_hundred(tmp_path: Path) -> None:
    names = ("cat", "dog")
    clean = from_pairs([(0, 0)] * 100 + [(1, 1)] * 100, 2, names)
    other = from_pairs([(0, 0)] * 99 + [(0, 1)] + [(1, 1)] * 100, 2, names)
    for name, case in (("clean", clean), ("other", other)):
        plots.confusion_matrix(case, tmp_path / f"{name}.png")
    one, two = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("clean", "other"))
    assert one.shape == two.shape
    changed = (one == 255) & (two < 225)
    assert changed.sum() > 10000, "the whole cell, not only its number"


def test_class_names_may_be_anything(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    names = (*ODD_NAMES, "x" * 200, "bad \udcff bytes")
    case = random_predictions(200, 8)
    case = predictions_of(case.logits, case.labels.tolist(), names)
    plots.confusion_matrix(case, tmp_path / "matrix.png")
    plots.recall_by_class(statistics.class_scores(case), tmp_path / "recall.png")
    checked(tmp_path / "matrix.png", 400, 1300)
    checked(tmp_path / "recall.png", 250, 1000)
    assert not [str(each.message) for each in recwarn]


def test_reliability(tmp_path: Path) -> None:
    case = random_predictions(500, 5, scale=3)
    before = statistics.calibration(case.probabilities, case.labels)
    after = statistics.calibration(softmax(case.logits / 3), case.labels)
    plots.reliability(before, after, 3.0, tmp_path / "picture.png")
    checked(tmp_path / "picture.png", 600, 900)


@pytest.mark.parametrize("curve", [[0.5, 1.0], [1.0, 1.0, 1.0], np.linspace(0.1, 0.9, 20), [0.0, 0.0]])
def test_topk(curve: list[float], tmp_path: Path) -> None:
    plots.topk_curve(np.array(curve), tmp_path / "picture.png")
    checked(tmp_path / "picture.png", 400, 900)


@pytest.mark.parametrize(("classes", "rows"), [(2, 2), (30, 30), (50, 40)])
def test_recall_has_a_limited_number_of_bars(
    classes: int, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "MOST_BARS", 40)
    scores = statistics.class_scores(random_predictions(2 * classes, classes))
    plots.recall_by_class(scores, tmp_path / "picture.png")
    height = checked(tmp_path / "picture.png", 250, 1000).height
    assert height == max(260, 140 + 20 * rows)


def test_the_lowest_recall_comes_first() -> None:
    scores = statistics.class_scores(from_pairs([(0, 0), (1, 0), (3, 3)], 4, ("b", "c", "none", "a")))
    assert [each.name for each in plots.by_recall(scores)] == ["c", "a", "b", "none"]
