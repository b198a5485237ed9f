"""Checks of Grad-CAM for a report: ROAD scores, and pointing scores where bounding boxes of the objects are known."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runner.evaluation.checkpoint_evaluation import CheckpointEvaluation
from runner.explain import cam, faithfulness
from runner.explain.faithfulness import Box
from runner.portable.images import open_rgb
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.intervals import CONFIDENCE
from runner.utils.text import one_line


@dataclass(frozen=True)
class CheckResult:
    """The metrics of a check, and its table in the report: heading, and rows of text and value."""

    heading: str
    rows: Sequence[tuple[str, str]]
    metrics: Mapping[str, float]


def sample_indices(digests: Sequence[str], count: int) -> list[int]:
    """Indices of `count` images, sorted: those with the smallest content digests, so the sample is always the same."""
    return sorted(sorted(range(len(digests)), key=lambda index: digests[index])[:count])


def check_faithfulness(evaluation: CheckpointEvaluation, count: int, terminal: Terminal) -> CheckResult:
    """Measure ROAD scores of `count` ≥ 2 images."""
    indices = sample_indices(evaluation.predictions.digests, count)
    digests = [evaluation.predictions.digests[index] for index in indices]
    with terminal.progress("faithfulness", len(indices)) as advance:
        measured = faithfulness.measure(
            evaluation.network, evaluation.images(indices), digests, advance=advance
        )
    gain = measured.difference
    return CheckResult(
        f"Does Grad-CAM show what the prediction depends on? ROAD on {measured.images} images",
        [
            ("Grad-CAM of the predicted class", f"{measured.score:+.4f}"),
            ("random maps of the same resolution", f"{measured.random:+.4f}"),
            (f"gain ({CONFIDENCE:.0%} interval)", f"{gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"),
            ("outcome", "better than chance" if gain.low > 0 else "not significantly better than chance"),
            ("images where Grad-CAM scores higher", f"{measured.win_rate:.0%}"),
        ],
        measured.metrics(),
    )


def check_pointing(
    evaluation: CheckpointEvaluation, boxes: Mapping[int, Box], terminal: Terminal
) -> CheckResult:
    """Measure whether Grad-CAM points at the objects.

    Args:
        evaluation: A checkpoint with its predictions.
        boxes: By index in the split, as `read_boxes` returns them.
        terminal: For progress.
    """
    indices = sorted(boxes)
    images = evaluation.images(indices)
    predicted = evaluation.predictions.predicted[indices].tolist()
    with terminal.progress("explain", len(indices)) as advance:
        single_maps = []
        for image, target in zip(images.split(1), predicted, strict=True):
            single_maps.append(cam.explain(evaluation.network, image, [target]))
            advance(1)
    maps = np.concatenate(single_maps)
    ordered = [boxes[index] for index in indices]
    area = images.shape[-1] * images.shape[-2]
    metrics = {
        "pointing": faithfulness.pointing_game(maps, ordered),
        "pointing_energy": faithfulness.energy_in_boxes(maps, ordered),
        "pointing_chance": sum((b[2] - b[0]) * (b[3] - b[1]) for b in ordered) / len(ordered) / area,
    }
    rows = [
        ("Grad-CAM maxima inside the object's box", f"{metrics['pointing']:.1%}"),
        ("share of Grad-CAM inside the box", f"{metrics['pointing_energy']:.1%}"),
        ("chance level (the boxes' share of the image)", f"{metrics['pointing_chance']:.1%}"),
    ]
    return CheckResult(f"Does Grad-CAM point at the object? {len(indices)} images with boxes", rows, metrics)


def read_boxes(path: Path, evaluation: CheckpointEvaluation, terminal: Terminal) -> dict[int, Box]:
    """Read bounding boxes and convert them to the pixels that the model sees.

    Args:
        path: CSV file with the columns path, left, top, right and bottom, in pixels of the upright image. Images of
            other splits are ignored.
        evaluation: Its split defines the images.
        terminal: For a warning about objects that the model does not see.

    Returns:
        Boxes by index in the split; at least one.

    Raises:
        UserError: The file cannot be read, is not such a table, or has no box of an image in the split.
    """
    boxes: dict[int, Box] = {}
    outside = 0
    augment = evaluation.experiment.augment
    try:
        for index, image, box in _rows(path, evaluation):
            if index in boxes:
                raise ValueError(f"{evaluation.entries[index].path}: has two boxes, only one is supported")
            width, height = open_rgb(io.BytesIO(image)).size  # upright
            visible = (
                faithfulness.box_in_squashed(box, width, height, augment.input_size)
                if augment.crop_mode == "squash"
                else faithfulness.box_in_crop(box, width, height, augment.input_resize, augment.input_size)
            )
            if visible is None:
                outside += 1
            else:
                boxes[index] = visible
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}" if error.strerror else one_line(str(error), 300)
        raise UserError(f"{path} cannot be read ({reason}).") from None
    except (KeyError, TypeError, ValueError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} is not a table path,left,top,right,bottom in pixels ({one_line(str(error), 300)})."
        ) from None
    if outside:
        terminal.warn(
            f"{outside} objects in {path} lie outside the center crop of their image and are left out"
        )
    if not boxes:
        raise UserError(
            f"{path} has no box inside the center crop of an image in the {evaluation.split} split; its paths must be"
            f" those of the manifest, such as {evaluation.entries[0].path}."
        )
    return boxes


def _rows(path: Path, evaluation: CheckpointEvaluation) -> Iterator[tuple[int, bytes, Box]]:
    """Index in the split, content of the image file and box of each row. Raises as the conversions do."""
    index_of = {entry.path: index for index, entry in enumerate(evaluation.entries)}
    for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")):
        name = row["path"]
        if (index := index_of.get(name)) is None:
            continue
        try:
            left, top, right, bottom = (float(row[side]) for side in ("left", "top", "right", "bottom"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None
        if not all(map(math.isfinite, (left, top, right, bottom))):
            raise ValueError(f"{name}: the box has an infinite edge")
        if not (left < right and top < bottom):
            raise ValueError(f"{name}: the box {left:g},{top:g},{right:g},{bottom:g} is empty")
        yield index, evaluation.loader.files.read(name), (left, top, right, bottom)
