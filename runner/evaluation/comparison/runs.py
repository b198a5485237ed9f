"""What a comparison takes from MLflow: which runs, and what they hold."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.evaluation.comparison.page import MOST
from runner.evaluation.comparison.values import Match, Point, Seen, twins
from runner.evaluation.significance import holm, paired
from runner.tracking import run_lookup as records
from runner.tracking.run_lookup import Found
from runner.utils.errors import UserError
from runner.utils.text import did_you_mean

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from runner.evaluation.predictions import Prediction

CURVES = ("val/top1", "val/loss")
BEST_TRIALS = 7
"""Trials of a study that are compared with its baseline."""


def of_words(client: MlflowClient, words: Sequence[str]) -> list[Found]:
    """The runs that were named, in that order. Raises `UserError` for one that is not there, or is there twice."""
    chosen: dict[str, Found] = {}
    for word in words:
        run = records.find(client, word)
        if run.run_id in chosen:
            raise UserError(
                f"Run {run.run_id[:8]} ({run.name}) is named twice, as {word!r} too; name different runs."
            )
        chosen[run.run_id] = run
    return list(chosen.values())


def of_study(client: MlflowClient, name: str) -> tuple[list[Found], int, str]:
    """A study's baseline and best finished trials, the direction of its objective, and what was chosen.

    Raises `UserError` for an unknown name, and where fewer than two trials have finished.
    """
    experiments = [each.experiment_id for each in client.search_experiments()]
    known = client.search_runs(experiments, max_results=50_000, order_by=["attributes.start_time DESC"])
    inside = [run for run in known if "runner.study" in run.data.tags]
    parents = {
        run.data.tags["runner.study"]: run
        for run in reversed(inside)
        if "mlflow.parentRunId" not in run.data.tags
    }
    if name not in parents:
        names = ", ".join(map(repr, sorted(parents)[:10])) or "none"
        raise UserError(
            f"There is no study {name!r}{did_you_mean(name, list(parents))}; the records hold {names}."
        )
    parent = parents[name]  # the newest of that name
    sign = -1 if parent.data.params.get("study.objective") == "loss" else 1
    trials = [
        run
        for run in inside
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
        and "runner.trial" in run.data.tags
        and run.info.status == "FINISHED"
        and "objective" in run.data.metrics
    ]
    trials.sort(key=lambda run: (-sign * run.data.metrics["objective"], int(run.data.tags["runner.trial"])))
    baseline = [run for run in trials if re.fullmatch(r"trial \d+: baseline", run.info.run_name or "")][:1]
    best = [run for run in trials if run not in baseline][: BEST_TRIALS if baseline else BEST_TRIALS + 1]
    if len(baseline) + len(best) < 2:
        raise UserError(
            f"Study {name!r} has {len(trials)} finished trial{'s' * (len(trials) != 1)}, too few to compare; let it"
            " run on."
        )
    said = f"{'baseline and ' if baseline else ''}the best {len(best)} of {len(trials)} finished trials of study {name}"
    chosen = [Found(run.info.run_id, run.info.run_name or "", run.info.status) for run in baseline + best]
    return chosen, sign, said


def look(client: MlflowClient, run: Found) -> Seen:
    """A run's settings, metrics and curves."""
    kept = client.get_run(run.run_id)
    info, data = kept.info, kept.data
    began = info.start_time / 1000
    return Seen(
        run_id=run.run_id,
        name=run.name,
        experiment=client.get_experiment(info.experiment_id).name,
        status=info.status,
        began=began,
        seconds=info.end_time / 1000 - began if info.end_time else None,
        manifest=data.tags.get("runner.manifest", ""),
        settings=dict(data.params),
        metrics=dict(data.metrics),
        curves={name: curve(client, run.run_id, name) for name in CURVES if name in data.metrics},
    )


def curve(client: MlflowClient, run_id: str, name: str) -> list[Point]:
    """A metric over epochs; of points of the same epoch the newest."""
    points = sorted(client.get_metric_history(run_id, name), key=lambda each: (each.step, each.timestamp))
    return list({each.step: (each.step, each.value) for each in points if math.isfinite(each.value)}.values())


def match(client: MlflowClient, chosen: Sequence[Found], seen: Sequence[Seen]) -> list[Match]:
    """The paired test of each run against the first; what stands in the way is said in its place."""
    with tempfile.TemporaryDirectory(prefix="runner-") as name:
        mine = predictions(client, chosen[0], Path(name) / "0")
        found: list[Match] = []
        for place, (run, each) in enumerate(zip(chosen[1:], seen[1:], strict=True), 1):
            theirs = predictions(client, run, Path(name) / str(place))
            if isinstance(mine, str) or isinstance(theirs, str):
                fault = next(side for side in (mine, theirs) if isinstance(side, str))
                found.append(Match(each, None, fault))
            else:
                result = paired(mine, theirs)
                found.append(Match(each, result, "" if result else "no test image in common"))
    tested = [each for each in found if each.result]
    corrected = iter(holm([each.result.p for each in tested if each.result]))
    return [
        Match(each.run, each.result, each.fault, next(corrected) if each.result else 1.0) for each in found
    ]


def predictions(client: MlflowClient, run: Found, folder: Path) -> list[Prediction] | str:
    """What a run said of each test image; or why that is not known."""
    from runner.evaluation.predictions import read_csv

    folder.mkdir()
    short = run.run_id[:8]
    try:
        path = records.artifact(client, run, "predictions.csv", folder)
    except UserError:
        return f"{short} has no predictions"
    try:
        return read_csv(path.read_bytes().decode("utf-8", "surrogateescape"))
    except UserError:
        return f"{short} has damaged predictions"


def remarks(runs: Sequence[Seen], matches: Sequence[Match]) -> list[str]:
    """What a reader should know before judging, a clause each."""
    notes = []
    if unfinished := [f"{run.short} ({run.status.lower()})" for run in runs if run.status != "FINISHED"]:
        notes.append(f"not finished: {', '.join(unfinished)}")
    if len({run.manifest for run in runs if run.manifest}) > 1:
        notes.append(
            "the runs have not all the same images and split: their scores are not of the same images"
        )
    notes += [f"identical settings: {', '.join(run.short for run in group)}" for group in twins(runs)]
    if len(runs) > MOST:
        notes.append(f"the picture shows the first {MOST} of {len(runs)} runs")
    for each in matches:
        if each.result and each.result.left_out:
            count = each.result.left_out
            notes.append(
                f"{count:,} test image{'s' * (count != 1)} that only one of {runs[0].short} and {each.run.short} was"
                f" judged on {'are' if count != 1 else 'is'} left out of their test"
            )
    return notes
