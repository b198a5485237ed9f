"""Draws class activation maps of image files, for `runner explain` and `runner predict --explain`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runner.explain.methods import METHODS
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.text import did_you_mean, valid_unicode

if TYPE_CHECKING:
    from runner.serving.predictor import DecodedBatch, LoadedModel

PREDICTED, TRUE = "predicted", "true"
LONGEST_STEM = 200
"""Maximum bytes of a picture's name without the ending. File systems allow 255."""
PICTURE_NAME = re.compile(rf"\.({'|'.join(map(re.escape, METHODS))})(\.\d+)?\.png$")
"""How the name of a picture ends."""


@dataclass(frozen=True)
class ExplanationSettings:
    """What to explain and how."""

    method: str = "gradcam"
    """One of `METHODS`."""
    layer: str = ""
    """Name of the layer; empty means the `cam_layer` of the backbone."""
    target: str = PREDICTED
    """The class to explain: `predicted`, `true` (the name of the file's folder), or the name of a class."""


@dataclass
class Explanations:
    """What became of image files, by path."""

    pictures: dict[str, Path] = field(default_factory=dict)
    """Pictures of the readable ones."""
    titles: dict[str, str] = field(default_factory=dict)
    """Titles of these pictures: the predicted class, its probability, and the true class if it is known."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Why the others are not readable images."""


def is_picture(path: Path) -> bool:
    """Whether a file has the name of a picture that `draw_explanations` drew."""
    return PICTURE_NAME.search(path.name) is not None


def draw_explanations(
    model: LoadedModel,
    paths: Sequence[Path],
    folder: Path,
    terminal: Terminal,
    settings: ExplanationSettings | None = None,
) -> Explanations:
    """Draw a picture of each image file: `folder`/NAME.METHOD.png.

    Files of several folders keep their folders, below the one that has them all: a/x.jpg and b/x.jpg become
    `folder`/a/x.gradcam.png and `folder`/b/x.gradcam.png.

    Args:
        model: Classifies the images. If a file's folder has the name of a class, the title shows it as the true class.
        paths: The files.
        folder: Where to write to.
        terminal: Shows progress.
        settings: What to explain; None means Grad-CAM of the predicted class.

    Raises `UserError` for an unknown layer or class, and if the true class of a file is needed but unknown.
    """
    from runner.explain import cam

    settings = settings or ExplanationSettings()
    layer = settings.layer or model.module.cam_layer
    cam.layer_index(model.module, layer)  # refuse an unknown layer before reading images
    _check_target(model, settings.target, paths)
    places = _picture_paths(paths, folder, settings.method)
    done = Explanations()
    with terminal.progress("explain", len(paths)) as advance:
        for batch in model.decoded_batches(paths):
            done.unreadable |= {p: error for p, error in zip(batch.paths, batch.errors, strict=True) if error}
            if batch.images:
                titles = _draw_batch(model, batch, places, settings)
                done.titles |= titles
                done.pictures |= {path: places[path] for path in titles}
            advance(len(batch.paths))
    return done


def _draw_batch(
    model: LoadedModel, batch: DecodedBatch, places: dict[str, Path], settings: ExplanationSettings
) -> dict[str, str]:
    """Draw the images of a batch to their `places`; returns the titles of its readable files."""
    import torch

    from runner.explain import cam, overlay

    images = torch.stack(batch.images)
    readable = [path for path, error in zip(batch.paths, batch.errors, strict=True) if not error]
    paths = [Path(path) for path in readable]
    probabilities = model.classifier.logits(images).double().softmax(1)
    predicted = probabilities.argmax(1).tolist()
    targets = [
        _target_index(model, settings.target, path, prediction)
        for path, prediction in zip(paths, predicted, strict=True)
    ]
    heatmaps = cam.explain(model.module, images, targets, settings.layer, settings.method)
    titles: dict[str, str] = {}
    for row, (path, prediction, target) in enumerate(zip(paths, predicted, targets, strict=True)):
        probability, true = float(probabilities[row, prediction]), _class_of_folder(model, path)
        title = titles[readable[row]] = overlay.title(model.classes[prediction], probability, true)
        label = f"{METHODS[settings.method].title} for {model.classes[target]}"
        place = places[readable[row]]
        place.parent.mkdir(parents=True, exist_ok=True)
        overlay.draw(batch.images[row], heatmaps[row], title, label, place)
    return titles


def _check_target(model: LoadedModel, target: str, paths: Sequence[Path]) -> None:
    """Raises `UserError` for an unknown class, and if the true class of a file is needed but unknown."""
    if target in model.classes or target == PREDICTED:
        return
    if target != TRUE:
        raise UserError(
            f"The model has no class {target!r}{did_you_mean(target, model.classes)}; --target takes predicted, true,"
            f" or one of its {len(model.classes)} classes."
        )
    for path in paths:
        if _class_of_folder(model, path) is None:
            raise UserError(
                f"--target true needs images in folders named after their class, but {path} is in the folder"
                f" {path.absolute().parent.name!r}; give the class with --target."
            )


def _target_index(model: LoadedModel, target: str, path: Path, predicted: int) -> int:
    if target in model.classes:
        return model.classes.index(target)
    return predicted if target == PREDICTED else model.classes.index(str(_class_of_folder(model, path)))


def _class_of_folder(model: LoadedModel, path: Path) -> str | None:
    """The name of a file's folder if it is a class. For a symbolic link it is the folder of the link."""
    name = valid_unicode(path.absolute().parent.name)
    return name if name in model.classes else None


def _picture_paths(paths: Sequence[Path], folder: Path, method: str) -> dict[str, Path]:
    """Where the picture of each file goes. Files may differ in their endings only: a.jpg and a.png."""
    parents = [os.path.dirname(os.path.abspath(path)) for path in paths]
    common = os.path.commonpath(parents) if parents else ""
    places: dict[str, Path] = {}
    taken: set[Path] = set()
    for path, parent in zip(paths, parents, strict=True):
        encoded = re.sub(r"[/\x00]", "_", f"{path.stem}.{method}").encode(errors="surrogateescape")
        stem = encoded[-LONGEST_STEM:].decode(errors="ignore")
        place = folder / os.path.relpath(parent, common)
        name, number = f"{stem}.png", 2
        while place / name in taken:
            name, number = f"{stem}.{number}.png", number + 1
        taken.add(place / name)
        places[str(path)] = place / name
    return places
