"""Reads what is compared from MLflow: the runs, their metrics and curves, and their predictions."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.identity import Identity
from runner.evaluation.comparison.comparison import (
    CURVES,
    ComparedRun,
    Direction,
    PairedTest,
    Point,
    image_kind,
    runs_of_same_experiment,
)
from runner.evaluation.comparison.page import MOST_CURVES
from runner.evaluation.metrics import METRICS
from runner.evaluation.out_of_fold import FOLD_TAG
from runner.evaluation.predictions import PredictionRow, read_predictions
from runner.evaluation.significance import holm_correction, mcnemar
from runner.tracking.run_lookup import RunInfo, download_artifact, find_run, search_runs
from runner.utils.errors import UserError
from runner.utils.text import counted, did_you_mean

if TYPE_CHECKING:
    from mlflow import MlflowClient

ReadPredictions = tuple[list[PredictionRow], str]
"""The predictions of a run; if there are none, also why."""
MOST_TRIALS = 7
"""Maximum number of a study's trials that are compared with its baseline."""


@dataclass(frozen=True)
class Selection:
    """The runs to compare; the first is the reference."""

    runs: list[RunInfo]
    description: str
    objective: Direction | None = None
    """Direction of the metric `objective` of a study's trials."""


def find_runs(client: MlflowClient, references: Sequence[str]) -> Selection:
    """The runs with these ids or names, in the same order. Raises `UserError` if one is missing or named twice."""
    runs: dict[str, RunInfo] = {}
    for reference in references:
        run = find_run(client, reference)
        if run.run_id in runs:
            raise UserError(
                f"Run {run.run_id[:8]} ({run.name}) is given twice, also as {reference!r}; give different runs."
            )
        runs[run.run_id] = run
    return Selection(list(runs.values()), f"{len(runs)} runs")


def find_trials(client: MlflowClient, study: str) -> Selection:
    """A study's baseline, if it has finished, and its best finished trials, best first.

    Raises:
        UserError: There is no such study, or fewer than two of its trials have finished.
    """
    in_studies = search_runs(client, "tags.`runner.study` LIKE '%'")
    parents = {
        run.data.tags["runner.study"]: run
        for run in reversed(in_studies)  # the newest of the same name replaces the others
        if "mlflow.parentRunId" not in run.data.tags
    }
    if study not in parents:
        names = ", ".join(map(repr, sorted(parents)[:10])) or "none"
        raise UserError(
            f"There is no study {study!r}{did_you_mean(study, list(parents))}; the known studies: {names}."
        )
    metric = METRICS.get(parents[study].data.params.get("study.objective", ""), METRICS["top1"])
    finished = (
        f"tags.`mlflow.parentRunId` = '{parents[study].info.run_id}' and attributes.status = 'FINISHED'"
    )
    trials = [
        run
        for run in search_runs(client, finished)
        if "runner.trial" in run.data.tags and "objective" in run.data.metrics
    ]
    trials.sort(
        key=lambda run: (-metric.sign * run.data.metrics["objective"], int(run.data.tags["runner.trial"]))
    )
    baseline = [run for run in trials if re.fullmatch(r"trial \d+: baseline", run.info.run_name or "")][:1]
    best = [run for run in trials if run not in baseline][: MOST_TRIALS + 1 - len(baseline)]
    if len(baseline) + len(best) < 2:
        raise UserError(
            f"Study {study!r} has {len(trials)} finished trial{'s' * (len(trials) != 1)}, too few to compare;"
            " continue the study first."
        )
    return Selection(
        [RunInfo.of(run) for run in baseline + best],
        f"{'baseline and ' if baseline else ''}the best {len(best)} of {len(trials)} finished trials of study {study}",
        metric.direction,
    )


def read_run(client: MlflowClient, run: RunInfo) -> ComparedRun:
    """A run's settings, metrics and curves."""
    logged = client.get_run(run.run_id)
    info, data = logged.info, logged.data
    began = info.start_time / 1000
    fold = data.tags.get(FOLD_TAG) or data.params.get("split.fold_as", "test")
    is_cross_validation = _is_set(data.params, "split.folds") and not _is_set(data.params, "split.fold")
    repeat = data.params.get("repeat", "")
    is_ensemble = is_cross_validation and repeat.isdecimal() and data.params.get("repeat_over") == "seed"
    return ComparedRun(
        run_id=run.run_id,
        name=run.name,
        experiment=client.get_experiment(info.experiment_id).name,
        status=info.status,
        began=began,
        seconds=info.end_time / 1000 - began if info.end_time else None,
        identity=Identity.of_run(data.params, data.tags),
        settings=dict(data.params),
        metrics=dict(data.metrics),
        curves={name: read_curve(client, run.run_id, name) for name in CURVES if name in data.metrics},
        fold=fold if is_cross_validation else "",
        seeds=int(repeat) if is_ensemble else 1,
    )


def _is_set(params: Mapping[str, str], name: str) -> bool:
    return params.get(name, "None") != "None"


def read_curve(client: MlflowClient, run_id: str, name: str) -> list[Point]:
    """A metric over epochs; of points with the same epoch the newest. Values that are not finite are left out."""
    points = sorted(client.get_metric_history(run_id, name), key=lambda point: point.timestamp)
    newest = {point.step: point.value for point in points if math.isfinite(point.value)}
    return sorted(newest.items())


def read_all_predictions(client: MlflowClient, runs: Sequence[ComparedRun]) -> list[ReadPredictions]:
    """The predictions of each run, or none and why."""
    with tempfile.TemporaryDirectory(prefix="runner-") as temporary:
        return [_read_predictions(client, run, Path(temporary) / run.run_id) for run in runs]


def count_classes(predictions: Sequence[ReadPredictions]) -> int:
    """The number of classes, as far as tables of predictions show it; 0, not known, if a run has none."""
    if not all(rows for rows, _ in predictions):
        return 0
    every = [row for rows, _ in predictions for row in rows]
    names = {name for row in every for name in (row.true, row.predicted)}
    return max(2, len(names), *(row.rank for row in every))


def paired_tests(runs: Sequence[ComparedRun], predictions: Sequence[ReadPredictions]) -> list[PairedTest]:
    """McNemar's test of each run against the first, with Holm's correction, or why there is none."""
    (reference, problem_of_reference), *others = predictions
    results = [mcnemar(reference, rows) for rows, _ in others]
    corrected = iter(holm_correction([result.p for result in results if result]))
    return [
        PairedTest(run, result, "", next(corrected))
        if result
        else PairedTest(
            run, None, problem_of_reference or problem or f"no {image_kind([runs[0], run])}image in common"
        )
        for run, (_, problem), result in zip(runs[1:], others, results, strict=True)
    ]


def _read_predictions(client: MlflowClient, run: ComparedRun, folder: Path) -> ReadPredictions:
    """A run's predictions for the test images or folds, or none and why."""
    folder.mkdir()
    try:
        path = download_artifact(client, RunInfo(run.run_id, run.name, run.status), "predictions.csv", folder)
    except UserError:
        return [], f"{run.short_id} has no predictions"
    try:
        return read_predictions(path.read_bytes().decode("utf-8", "surrogateescape")), ""
    except UserError:
        return [], f"{run.short_id} has damaged predictions"


def comparison_notes(runs: Sequence[ComparedRun], tests: Sequence[PairedTest]) -> list[str]:
    """What a reader should know about the comparison, as sentences without a period."""
    notes = []
    if unfinished := [f"{run.short_id} ({run.status.lower()})" for run in runs if run.status != "FINISHED"]:
        notes.append(f"not finished: {', '.join(unfinished)}")
    pairs = list(combinations((run.identity for run in runs), 2))
    if any(one.has_other_images(other) for one, other in pairs):
        notes.append("the runs differ in images or split, so their metrics are not of the same images")
    if any(one.has_other_weights(other) for one, other in pairs):
        notes.append("the runs differ in the content of their pretrained weights")
    for group in runs_of_same_experiment(runs):
        notes.append(f"the same experiment: {', '.join(run.short_id for run in group)}")
    if validated := [run.short_id for run in runs if run.fold == "val"]:
        notes.append(
            f"the out-of-fold scores of {', '.join(validated)} are on validation folds: the best epochs were chosen on"
            " the same images, so these scores are optimistic"
        )
    if len(runs) > MOST_CURVES:
        notes.append(f"the plot shows the first {MOST_CURVES} of {len(runs)} runs")
    for test in tests:
        if test.result and test.result.left_out:
            count = test.result.left_out
            images = counted(count, f"{image_kind([runs[0], test.run])}image")
            notes.append(
                f"{images} of only one of {runs[0].short_id} and {test.run.short_id}"
                f" {'is' if count == 1 else 'are'} left out of their test"
            )
    return notes
