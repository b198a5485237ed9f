"""The page of an evaluation report, and its tables."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_predictions import ODD_NAMES, from_pairs, predictions_of, random_predictions

from runner.evaluation import statistics
from runner.evaluation.explanation_checks import CheckResult
from runner.evaluation.predictions import Predictions
from runner.evaluation.report_page import ReportContent, write_page


class Tags(HTMLParser):
    """The tags of a page, its addresses and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def table(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_bytes().decode(), newline="")))


def page_of(predictions: Predictions, val: Predictions, folder: Path) -> str:
    write_page(
        ReportContent("run", "", predictions, val, statistics.analyze(predictions, val)),
        folder,
    )
    return (folder / "report.html").read_text()


def test_a_page_has_everything_and_loads_nothing(tmp_path: Path) -> None:
    source = random_predictions(400, len(ODD_NAMES), scale=2)
    predictions = predictions_of(source.logits, source.labels.tolist(), ODD_NAMES)
    source = random_predictions(400, len(ODD_NAMES), seed=1, scale=2)
    val = Predictions(source.paths, ("other",) * 400, source.labels, source.logits, ODD_NAMES)
    thumbnail = tmp_path / "thumbnail.png"
    Image.new("RGB", (20, 20), "red").save(thumbnail)
    folder = tmp_path / "report"
    analysis = statistics.analyze(predictions, val)
    content = ReportContent(
        title="run <1>",
        subtitle="best checkpoint",
        predictions=predictions,
        val=val,
        analysis=analysis,
        galleries={"Confident errors": [(thumbnail, "<b>$x_1$</b> predicted as a,b")], "None of these": []},
        checks=[CheckResult("Does it point?", [("<small>", "90 %")], {})],
    )
    write_page(content, folder)
    text = (folder / "report.html").read_text()
    tags = Tags(text)
    assert not {"script", "link", "b", "small", "iframe"} & set(tags.names)
    assert tags.names.count("img") == 5
    assert all(
        each.startswith(("data:image/png;base64,", "data:image/webp;base64,")) for each in tags.addresses
    )
    assert not re.search(r"https?://|url\(|@import", text)
    texts = [each.strip() for each in tags.texts]
    for expected in (
        "run <1>",
        "Confident errors",
        "<b>$x_1$</b> predicted as a,b",
        "Does it point?",
        "<small>",
    ):
        assert expected in texts
    assert "None of these" not in texts
    assert "fitted on 400 validation images" in text
    assert {each.name for each in folder.iterdir()} == {
        *("report.html", "confusion_matrix.png", "reliability.png", "topk.png", "recall_by_class.png"),
        *("per_class.csv", "confused.csv"),
    }
    classes = table(folder / "per_class.csv")
    assert [row["class"] for row in classes] == list(ODD_NAMES)
    assert sum(int(row["support"]) for row in classes) == 400
    pairs = table(folder / "confused.csv")
    assert sum(int(row["count"]) for row in pairs) == (~predictions.correct).sum()


def test_metrics_of_a_report() -> None:
    predictions, val = random_predictions(400, 6, scale=2), random_predictions(400, 6, seed=1, scale=2)
    metrics = statistics.analyze(predictions, val).metrics()
    scores = ("top1", "top5", "balanced_accuracy")
    bounds = {f"{score}_{bound}" for score in scores for bound in ("low", "high")}
    assert set(metrics) == bounds | {"ece", "ece_scaled", "temperature"}
    assert metrics["temperature"] == statistics.fit_temperature(val.logits, val.labels)
    assert metrics["temperature"] == pytest.approx(2, rel=0.25)
    assert metrics["ece_scaled"] < metrics["ece"]
    assert metrics["top1_low"] < predictions.correct.mean() < metrics["top1_high"]


@pytest.mark.parametrize(("classes", "top5"), [(5, False), (6, True)])
def test_top5_of_few_classes_is_not_on_the_page(tmp_path: Path, classes: int, top5: bool) -> None:
    text = page_of(random_predictions(60, classes), random_predictions(60, classes, seed=1), tmp_path)
    assert ("<td>top-5</td>" in text) is top5


def test_a_temperature_fitted_on_the_same_images_is_noted(tmp_path: Path) -> None:
    case = random_predictions(60, 3)
    text = page_of(case, case, tmp_path)
    assert "too optimistic" in text
    assert "validation images" not in text


def test_predictions_without_errors(tmp_path: Path) -> None:
    case = from_pairs([(index % 3, index % 3) for index in range(30)], 3)
    text = page_of(case, case, tmp_path)
    assert "None." in [each.strip() for each in Tags(text).texts]
    assert "edge of the searched range" in text
    assert "<td>not determined (no mistakes on the validation images)</td>" in text
    assert "100.0 %" in text


def test_only_invalid_logits(tmp_path: Path) -> None:
    case = predictions_of(np.full((9, 3), np.nan), [0, 1, 2] * 3)
    assert "The logits of 9 images are not finite" in page_of(case, case, tmp_path)
