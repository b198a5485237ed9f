"""The page of an evaluation: scores with their uncertainty, and where the network errs, in one file to pass on."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from runner.evaluation import plots, statistics
from runner.evaluation.predictions import Predictions, softmax
from runner.evaluation.statistics import ClassReport, Confusion
from runner.utils.atomic_files import write_text
from runner.utils.html import Page

NAMES = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "balanced_accuracy": "balanced accuracy"}


def write(
    page_path: Path,
    *,
    title: str,
    under: str,
    test: Predictions,
    val: Predictions,
    folder: Path,
    galleries: Sequence[tuple[str, Sequence[tuple[Path, str]]]] = (),
    extra: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = (),
) -> dict[str, float]:
    """Draw the figures, write the tables and the page, and return what was measured, by name.

    `folder` gets confusion_matrix.png, reliability.png, topk.png, recall_by_class.png, per_class.csv and confused.csv.
    Returned are `top1_low`, `top1_high` and so for `top5` and `balanced_accuracy` (95 % bootstrap intervals), `ece` and
    `ece_scaled` (before and after temperature scaling), all fractions 0 to 1, and `temperature`.

    Args:
        page_path: HTML file to write.
        title: Of the page.
        under: A line below the title.
        test: What is judged.
        val: What the temperature is found on.
        folder: For pictures and tables.
        galleries: Headings, each with PNG files and their captions.
        extra: Further tables: heading, header, rows.
    """
    intervals = statistics.bootstrap(test)
    reports = statistics.per_class(test)
    pairs = statistics.confused(test, most=None)
    temperature = statistics.temperature(val.logits, val.labels)
    before = statistics.calibration(test.probabilities, test.labels)
    after = statistics.calibration(softmax(test.logits / temperature), test.labels)
    files = {
        name: folder / f"{name}.png"
        for name in ("confusion_matrix", "reliability", "topk", "recall_by_class")
    }
    plots.confusion_matrix(test, files["confusion_matrix"])
    plots.reliability(before, after, temperature, files["reliability"])
    plots.topk_curve(statistics.topk(test), files["topk"])
    plots.recall_by_class(reports, files["recall_by_class"])
    write_text(folder / "per_class.csv", per_class_as_csv(reports))
    write_text(folder / "confused.csv", confused_as_csv(pairs))

    page = Page(title, under)
    page.table(
        ["", "value", "95 % interval"],
        [
            *(
                [NAMES[name], _percent(each.value), f"{_percent(each.low)} to {_percent(each.high)}"]
                for name, each in intervals.items()
            ),
            ["expected calibration error, as trained", _percent(before.ece), ""],
            ["expected calibration error, after temperature scaling", _percent(after.ece), ""],
            ["temperature", f"{temperature:.2f}", ""],
        ],
    )
    page.text(
        f"{len(test.paths):,} images of {len(test.classes):,} classes. Intervals: percentile bootstrap over images;"
        " they tell what another drawing of images would change, not another training."
    )
    if silent := int((~test.finite).sum()):
        page.text(f"For {silent:,} images the network's logits were not finite; they count as wrong.")
    for heading, pictures in galleries:
        page.heading(heading)
        page.gallery(pictures)
    page.heading("Confusion matrix")
    page.text(
        "Rows are true classes, columns predicted ones, in the manifest's order; numbers are images."
        " confusion_matrix.png holds it in full size."
    )
    page.picture(files["confusion_matrix"], "confusion matrix", scroll=True)
    page.heading("Classes taken for each other")
    shown = pairs[:20]
    if shown:
        page.table(
            ["true class", "taken for", "images", "share of the true class"],
            [[each.true, each.predicted, f"{each.count:,}", _percent(each.share)] for each in shown],
        )
        if len(pairs) > len(shown):
            page.text(f"The {len(shown)} most frequent of {len(pairs):,} pairs; confused.csv holds them all.")
    else:
        page.text("None.")
    page.heading("Calibration")
    page.picture(files["reliability"], "reliability diagram")
    page.text(
        f"The expected calibration error is the mean gap between confidence and accuracy, in {len(before.bins)} bins of"
        f" equal width (Guo et al., 2017); the largest gap of a bin is {_percent(before.mce)} as trained and"
        f" {_percent(after.mce)} after. The temperature divides the logits and changes no prediction; "
        + (
            "it was found on these very images, so that the error after scaling is flattered."
            if test.digests == val.digests
            else f"it was found on {len(val.paths):,} validation images."
        )
    )
    if min(abs(temperature / edge - 1) for edge in statistics.TEMPERATURES) < 1e-3:
        low, high = statistics.TEMPERATURES
        page.text(
            f"It lies at the edge of what was searched, {low:g} to {high:g}: those images do not tell it."
        )
    page.heading("Top-k accuracy")
    page.picture(files["topk"], "top-k accuracy")
    page.heading("Classes")
    page.text("The lowest recall comes first. per_class.csv holds the table.")
    page.table(
        ["class", "recall", "precision", "F1", "images", "predicted"],
        [
            [
                each.name,
                *map(_percent, (each.recall, each.precision, each.f1)),
                f"{each.support:,}",
                f"{each.predicted:,}",
            ]
            for each in plots.by_recall(reports)
        ],
        scroll=True,
    )
    page.picture(files["recall_by_class"], "recall and precision by class")
    for heading, header, rows in extra:
        page.heading(heading)
        page.table(header, rows, scroll=len(rows) > 20)
    page.write(page_path)
    return {
        **{f"{name}_low": each.low for name, each in intervals.items()},
        **{f"{name}_high": each.high for name, each in intervals.items()},
        "ece": before.ece,
        "ece_scaled": after.ece,
        "temperature": temperature,
    }


def per_class_as_csv(reports: Sequence[ClassReport]) -> str:
    """The classes as a table with a header, in their order; what is undefined is left empty."""
    return _csv(
        ("class", "precision", "recall", "f1", "support", "predicted"),
        [
            (each.name, *map(_number, (each.precision, each.recall, each.f1)), each.support, each.predicted)
            for each in reports
        ],
    )


def confused_as_csv(pairs: Sequence[Confusion]) -> str:
    """The pairs as a table with a header."""
    return _csv(
        ("true", "predicted", "count", "share"),
        [(each.true, each.predicted, each.count, _number(each.share)) for each in pairs],
    )


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _number(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.6f}"


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"
