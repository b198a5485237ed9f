"""The report of an evaluation: statistics, pictures and page, in MLflow beside the run that they are of."""

from __future__ import annotations

import argparse
import csv
import io
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from runner.data.transforms import EVALUATION_VIEW
from runner.evaluation import report_page, statistics
from runner.evaluation.checkpoint_predictions import Judged
from runner.evaluation.predictions import Predictions
from runner.explain import cam, faithfulness, overlay
from runner.explain.faithfulness import Box, Faithfulness
from runner.portable.images import open_rgb
from runner.tracking.journal import now_ms
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.run_lookup import RunInfo
from runner.utils.atomic_files import output_folder, write_text
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.intervals import CONFIDENCE
from runner.utils.text import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

SHOWN = 12
"""Images in each gallery."""

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Heading, header, rows."""


def write(
    run: RunInfo,
    best: Judged,
    val: Predictions,
    asked: argparse.Namespace,
    client: MlflowClient,
    folder: Path,
    terminal: Terminal,
) -> str:
    """Write the report of a checkpoint and give it to MLflow: where a person finds it. For rank 0.

    Args:
        run: Whose it is.
        best: The checkpoint, judged.
        val: What it says of the validation split, on which the temperature is found.
        asked: The command line: faithfulness, boxes, out.
        client: Of the run's server.
        folder: To write to.
        terminal: Shows progress.

    Raises `UserError` for boxes that do not fit.
    """
    out = output_folder(asked.out) if asked.out else None
    boxes = _boxes(asked.boxes, best, terminal) if asked.boxes else {}
    outcomes = best.outcomes
    folder.mkdir(parents=True)
    write_text(folder / "predictions.csv", outcomes.as_csv())
    galleries = [
        (
            "Most confident errors",
            _gallery(best, statistics.most_confident_errors(outcomes, SHOWN), folder, terminal),
        ),
        ("Least confident hits", _gallery(best, statistics.least_confident_correct(outcomes, SHOWN), folder, terminal)),
    ]
    metrics: dict[str, float] = {}
    extra: list[Table] = []
    if asked.faithfulness:
        measured = _faithfulness(best, asked.faithfulness, terminal)
        metrics |= measured.metrics()
        extra.append(_faithfulness_table(measured))
        _say_faithfulness(measured, terminal)
    if boxes:
        table, scores = _pointing(best, boxes, terminal)
        metrics |= scores
        extra.append(table)
    page = folder / "report.html"
    metrics |= report_page.write(
        page,
        title=f"{best.ready.experiment.name}, run {run.run_id[:8]}: {best.split} split",
        under=f"Run {run.run_id} ({run.name}), {best.which} checkpoint, of epoch {best.epoch}.",
        test=outcomes,
        val=val,
        folder=folder,
        galleries=[each for each in galleries if each[1]],
        extra=extra,
    )
    if out is not None:
        shutil.copytree(folder, out, dirs_exist_ok=True)
    try:
        _log(run, best, metrics, client, folder)
    except Exception as error:  # each kind of artifact store raises its own; what was computed is kept
        terminal.warn(f"MLflow did not take the report ({' '.join(str(error).split())[:200]})")
        if out is None:
            out = output_folder(tracking_server(asked.tracking).root / "reports" / f"{run.run_id}-{best.split}")
            shutil.copytree(folder, out, dirs_exist_ok=True)
    if out is None:
        return f"in MLflow: run {run.run_id[:8]}, artifact evaluation/{best.split}/{page.name}"
    return str(out / page.name)


def _log(run: RunInfo, best: Judged, metrics: dict[str, float], client: MlflowClient, folder: Path) -> None:
    from mlflow.entities import Metric

    client.log_artifacts(run.run_id, str(folder), f"evaluation/{best.split}")
    time = now_ms()
    points = [
        Metric(f"evaluation/{best.split}/{name}", float(value), time, 0)
        for name, value in metrics.items()
        if math.isfinite(value)  # MLflow would store another number
    ]
    client.log_batch(run.run_id, points)


def _views(best: Judged, places: Sequence[int]) -> Tensor:
    entries = best.ready.manifest.select(best.split)
    batches = best.ready.loader.batches([entries[place] for place in places], EVALUATION_VIEW, [range(len(places))])
    return next(iter(batches))


def _gallery(best: Judged, places: Sequence[int], folder: Path, terminal: Terminal) -> list[tuple[Path, str]]:
    """Pictures of images of the split with the Grad-CAM of what was predicted, and their captions."""
    if not len(places):
        return []
    outcomes, network = best.outcomes, best.ready.network
    views = _views(best, places)
    predicted = [int(outcomes.predicted[place]) for place in places]
    pictures = []
    with terminal.progress("explain", len(places)) as advance:
        for number, place in enumerate(places):
            found = cam.explain(network, views[number : number + 1], [predicted[number]])[0]
            said, true = outcomes.classes[predicted[number]], outcomes.classes[outcomes.labels[place]]
            above = overlay.title(said, float(outcomes.confidence[place]), true)
            kind = "hit" if outcomes.right[place] else "error"
            path = folder / "galleries" / f"{kind}-{number + 1:02}.png"
            overlay.draw(views[number], found, above, f"Grad-CAM for {said}", path)
            pictures.append((path, f"{above} · {outcomes.paths[place]}"))
            advance(1)
    return pictures


def sample(digests: Sequence[str], count: int) -> list[int]:
    """Places of `count` images, the same whenever they are asked for: the first by their contents' digests."""
    return sorted(sorted(range(len(digests)), key=lambda place: digests[place])[:count])


def _faithfulness(best: Judged, count: int, terminal: Terminal) -> Faithfulness:
    places = sample(best.outcomes.digests, count)
    digests = [best.outcomes.digests[place] for place in places]
    with terminal.progress("faithfulness", len(places)) as advance:
        return faithfulness.measure(best.ready.network, _views(best, places), digests, advance=advance)


def _say_faithfulness(measured: Faithfulness, terminal: Terminal) -> None:
    gain = measured.difference
    terminal.line(
        f"Grad-CAM's ROAD score on {measured.images} images: {measured.score:+.4f}, of random maps"
        f" {measured.random:+.4f}; gain {gain.mean:+.4f}, {CONFIDENCE:.0%} interval {gain.low:+.4f} to {gain.high:+.4f}"
        f" ({'better than chance' if gain.low > 0 else 'not better than chance for certain'})"
    )


def _faithfulness_table(measured: Faithfulness) -> Table:
    gain = measured.difference
    return (
        f"Does it look at what it says? ROAD on {measured.images} images",
        ("", "value"),
        [
            ("Grad-CAM, last convolution, predicted class", f"{measured.score:+.4f}"),
            ("random maps of the same resolution", f"{measured.random:+.4f}"),
            (
                f"gain ({CONFIDENCE:.0%} interval)",
                f"{gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})",
            ),
            ("images on which Grad-CAM is the better", f"{measured.win_rate:.0%}"),
        ],
    )


def _pointing(best: Judged, boxes: dict[int, Box], terminal: Terminal) -> tuple[Table, dict[str, float]]:
    places = sorted(boxes)
    views = _views(best, places)
    predicted = [int(best.outcomes.predicted[place]) for place in places]
    wanted = [boxes[place] for place in places]
    parts = []
    with terminal.progress("explain", len(places)) as advance:
        for number, target in enumerate(predicted):
            parts.append(cam.explain(best.ready.network, views[number : number + 1], [target]))
            advance(1)
    found = np.concatenate(parts)
    area = views.shape[-1] * views.shape[-2]
    chance = sum((b[2] - b[0]) * (b[3] - b[1]) for b in wanted) / len(wanted) / area
    scores = {
        "pointing": faithfulness.pointing_game(found, wanted),
        "pointing_energy": faithfulness.energy_in_boxes(found, wanted),
        "pointing_chance": chance,
    }
    rows = [
        ("maxima of Grad-CAM that lie in the object's box", f"{scores['pointing']:.1%}"),
        ("share of Grad-CAM that lies in it", f"{scores['pointing_energy']:.1%}"),
        ("by chance (share of the view that the boxes take)", f"{chance:.1%}"),
    ]
    for what, value in rows:
        terminal.line(f"{what}: {value}")
    return (f"Does it look at the object? {len(places)} images with boxes", ("", "value"), rows), scores


def _boxes(path: Path, best: Judged, terminal: Terminal) -> dict[int, Box]:
    """The boxes of a CSV file in the views of the split's images. Raises `UserError` where they do not fit."""
    entries = {entry.path: place for place, entry in enumerate(best.ready.manifest.select(best.split))}
    augment, root = best.ready.experiment.augment, best.ready.manifest.root
    found: dict[int, Box] = {}
    outside = 0
    where = "the table"
    try:
        for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")):
            where = row["path"]
            if (place := entries.get(where)) is None:
                continue
            if place in found:
                raise ValueError("has two boxes; one is needed")
            box = (float(row["left"]), float(row["top"]), float(row["right"]), float(row["bottom"]))
            if not all(map(math.isfinite, box)):
                raise ValueError(f"the box {box} has no end")
            if not (box[0] < box[2] and box[1] < box[3]):
                raise ValueError(f"the box {box} is empty")
            width, height = open_rgb(root / where).size  # upright, as it is seen
            seen = faithfulness.box_in_crop(box, width, height, augment.resize, augment.crop)
            if seen is None:
                outside += 1
            else:
                found[place] = seen
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}: {error.filename}).") from None
    except (KeyError, TypeError, ValueError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} is no table path,left,top,right,bottom of pixels ({one_line(f'{where}: {error}', 300)})."
        ) from None
    if outside:
        terminal.warn(
            f"{outside} objects of {path} lie outside the view, which is cut from the image's centre"
        )
    if not found:
        raise UserError(
            f"{path} has no box in the view of an image of the {best.split} split; its paths must be the manifest's,"
            f" as {next(iter(entries))}."
        )
    return found
