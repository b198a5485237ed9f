"""A comparison as rows of text and as sentences, for the terminal and the page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime

from runner.evaluation.comparison.comparison import (
    ComparedRun,
    Comparison,
    PairedTest,
    all_settings,
    differing_settings,
    direction_of,
    image_kind,
)
from runner.evaluation.metrics import METRICS, shown_metrics
from runner.evaluation.significance import ALPHA
from runner.utils.console import format_duration
from runner.utils.text import one_line

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Header and rows."""

MAX_LENGTH = 60
"""Maximum length of a value in a table; the CSV files have the whole value."""
ABSENT = "–"


def format_value(name: str, value: float | None, sign: bool = False) -> str:
    """The value of a metric for people.

    Args:
        name: Name of the metric: shares and losses have four decimals.
        value: None if a run does not have it.
        sign: Whether positive values have a plus sign.
    """
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return str(value)
    plus = "+" if sign else ""
    if direction_of(name) or name == "objective":
        return f"{value:{plus}.4f}"
    return f"{value:{plus},.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:{plus}.4g}"


def run_table(runs: Sequence[ComparedRun]) -> Table:
    """The runs."""
    header = ("name", "run", "experiment", "status", "started", "duration", "epochs")
    rows = [
        (
            one_line(run.name, 120),
            run.short_id,
            one_line(run.experiment, 30),
            run.status.lower(),
            f"{datetime.fromtimestamp(run.began).astimezone():%Y-%m-%d %H:%M %Z}",
            ABSENT if run.seconds is None else format_duration(run.seconds),
            str(run.epochs or ABSENT),
        )
        for run in runs
    ]
    return header, rows


def settings_table(runs: Sequence[ComparedRun]) -> Table:
    """The settings that differ, one column per run."""
    rows = [
        (name, *(ABSENT if value is None else one_line(value, MAX_LENGTH) for value in _rounded(values)))
        for name, values in differing_settings(runs).items()
    ]
    return ("setting", *(run.short_id for run in runs)), rows


def _rounded(values: Sequence[str | None]) -> list[str | None]:
    """Values of a setting with numbers rounded to six digits, unless different values would look the same."""
    rounded: list[str | None] = []
    for value in values:
        try:
            rounded.append(value if value is None or len(value) < 10 else f"{float(value):.6g}")
        except ValueError:
            rounded.append(value)
    return rounded if len(set(rounded)) == len(set(values)) else list(values)


def same_settings(runs: Sequence[ComparedRun]) -> str:
    """A sentence on how many settings are the same."""
    differing = len(differing_settings(runs))
    total = len(all_settings(runs))
    if not total:
        return "These runs have no recorded settings."
    if not differing:
        return f"All {total} settings of the runs are the same."
    return f"{total - differing} of {total} settings are the same and not shown."


def metrics_table(comparison: Comparison) -> Table:
    """The metrics that can differ, but not those of the machine; best values marked; of two runs the difference too."""
    runs = comparison.runs
    rows = []
    hidden = METRICS.keys() - {metric.name for metric in shown_metrics(comparison.classes)}
    for row in comparison.metrics:
        if row.name.startswith("system/") or _metric_name(row.name) in hidden:
            continue
        cells = [
            ("* " if index in row.best else "") + format_value(row.name, value)
            for index, value in enumerate(row.values)
        ]
        if len(runs) == 2:
            first, second = row.values
            difference = second - first if first is not None and second is not None else None
            cells.append(format_value(row.name, difference, sign=True))
        rows.append((one_line(row.name, 40), *cells))
    extra = ("difference",) if len(runs) == 2 else ()
    return ("metric", *(run.short_id for run in runs), *extra), rows


def _metric_name(name: str) -> str:
    """`top5` of `test/best/top5`, `val/best/top5_sd_over_seeds` and `out_of_fold/top5_low`."""
    return re.sub(r"_(sd|low|high)(_over_\w+)?$", "", name.rpartition("/")[2])


def mcnemar_table(tests: Sequence[PairedTest]) -> Table:
    """McNemar's tests; differences in points of top-1."""
    several = len(tests) > 1
    header = ("run", "images", "only reference", "only run", "difference", "95 % interval", "p")
    rows = []
    for test in tests:
        result = test.result
        if result is None:
            problem = test.problem.removeprefix(f"{test.run.short_id} has ")  # the row names the run
            rows.append((test.run.short_id, *[ABSENT] * (6 + several), problem))
            continue
        interval = result.interval
        rows.append(
            (
                test.run.short_id,
                f"{result.images:,}",
                f"{result.only_first:,}",
                f"{result.only_second:,}",
                _points(result.difference),
                f"{_points(interval[0])} to {_points(interval[1])}" if interval else ABSENT,
                _p(result.p),
                *((_p(test.p),) if several else ()),
                outcome(test) if test.significant else "not significant",
            )
        )
    return (*header, *(("p (Holm)",) if several else ()), "outcome"), rows


def class_table(reference: ComparedRun, test: PairedTest) -> Table:
    """The classes with the largest differences; empty without a test."""
    classes = test.result.classes if test.result else ()
    rows = [
        (
            one_line(row.name, 40),
            f"{row.only_first}",
            f"{row.only_second}",
            f"{row.only_second - row.only_first:+}",
        )
        for row in classes
    ]
    return ("class", f"only {reference.short_id}", f"only {test.run.short_id}", "net"), rows


def outcome(test: PairedTest) -> str:
    """How a run compares with the reference, in a few words."""
    if test.result is None:
        return "not tested"
    if not test.significant:
        return "no significant difference"
    return "better" if test.result.difference > 0 else "worse"


def verdict(reference: ComparedRun, test: PairedTest) -> str:
    """How a run compares with the reference, in one sentence with numbers."""
    run, result = test.run.short_id, test.result
    if result is None:
        return f"{run} could not be tested against {reference.short_id}: {test.problem}."
    if test.significant:
        claim = f"{run} is significantly {outcome(test)} than {reference.short_id}"
    else:
        claim = f"No significant difference between {run} and {reference.short_id}"
    interval = result.interval
    ci = f"95 % CI {_points(interval[0])} to {_points(interval[1])}; " if interval else ""
    p = f"p = {_p(test.p)}".replace("= <", "<") + (" with Holm's correction" if test.p != result.p else "")
    return (
        f"{claim}: {_points(result.difference)} pt {image_kind([reference, test.run])}top-1 ({ci}McNemar's test: {p};"
        f" {result.images:,} images of both)."
    )


def summary(comparison: Comparison) -> str:
    """The results of all tests in one sentence; empty if no run could be tested."""
    reference, tests = comparison.reference, comparison.tests
    if not any(test.result for test in tests):
        return ""
    if len(tests) == 1:
        return verdict(reference, tests[0])
    parts = []
    for words in ("better", "worse", "no significant difference", "not tested"):
        if ids := [test.run.short_id for test in tests if outcome(test) == words]:
            parts.append(f"{words}: {', '.join(ids)}")
    level = f"{100 * ALPHA:.0f} %"
    images = f"{image_kind(comparison.runs)}images"
    return (
        f"Compared with {reference.short_id} on the same {images} at the {level} level: {'; '.join(parts)}."
    )


def mcnemar_title(comparison: Comparison) -> str:
    """Title of the table of tests."""
    return f"Same {image_kind(comparison.runs)}images: comparison with {comparison.reference.short_id}"


def mcnemar_explanation(comparison: Comparison) -> str:
    """How to read the table of tests, or why there is none."""
    tests, kind = comparison.tests, image_kind(comparison.runs)
    if not any(test.result for test in tests):
        problems = dict.fromkeys(test.problem for test in tests)
        return f"The predictions of the runs could not be compared: {'; '.join(problems)}."
    several = len(tests) > 1
    return (
        f"Only reference counts the {kind}images that the reference classified correctly and the run did not; only run"
        f" counts the opposite. Difference: points of {kind}top-1, run minus reference, with its 95 % Wald interval"
        " (Agresti 2013, §11.1)"
        + (", not corrected for the number of runs" if several else "")
        + ". P: McNemar's exact test, two-sided"
        + (", also corrected for the number of runs (Holm 1979). " if several else ". ")
        + "The outcome uses p at 5 %. "
        + _compared_models([comparison.reference, *(test.run for test in tests if test.result)])
    )


def _compared_models(runs: Sequence[ComparedRun]) -> str:
    """Which models are compared, in sentences."""
    validated = [run.short_id for run in runs if run.fold]
    if not validated:
        return "It compares these two trained models on images like these; another training seed gives another model."
    sentences = [
        f"Cross-validations ({', '.join(validated)}) have several models: each image is classified by one that was not"
        " trained on its fold; other training seeds or folds give other models."
    ]
    sentences += [
        f"{run.short_id} has the mean probabilities over {run.seeds} training seeds: an ensemble, which is usually"
        " better than a single model."
        for run in runs
        if run.seeds > 1
    ]
    return " ".join(sentences)


def _points(share: float) -> str:
    """A difference of shares in points."""
    return f"{100 * share:+.2f}".replace("-", "−")


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "< 0.0001"
