"""Draws class activation maps of image files, for `runner explain` and `runner predict --explain`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.explain.methods import METHODS
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.text import did_you_mean

if TYPE_CHECKING:
    from runner.serving.predictor import DecodedBatch, LoadedModel

PREDICTED, TRUE = "predicted", "true"
LONGEST_STEM = 200
"""Maximum bytes of a picture's name without the ending. File systems allow 255."""


@dataclass(frozen=True)
class ExplanationSettings:
    """What to explain and how."""

    method: str = "gradcam"
    """One of `METHODS`."""
    layer: str = ""
    """Name of the layer; empty means the `cam_layer` of the backbone."""
    target: str = PREDICTED
    """The class to explain: `predicted`, `true` (the name of the file's folder), or the name of a class."""


def draw_explanations(
    model: LoadedModel,
    paths: Sequence[Path],
    folder: Path,
    terminal: Terminal,
    settings: ExplanationSettings | None = None,
) -> list[tuple[str, str]]:
    """Draw a picture of each image file: `folder`/NAME.METHOD.png.

    Args:
        model: Classifies the images. If a file's folder has the name of a class, the title shows it as the true class.
        paths: The files.
        folder: Where to write to.
        terminal: Shows progress.
        settings: What to explain; None means Grad-CAM of the predicted class.

    Returns the files that are not readable images, each with the reason.

    Raises `UserError` for an unknown layer or class, and if the true class of a file is needed but unknown.
    """
    from runner.explain import cam

    settings = settings or ExplanationSettings()
    layer = settings.layer or model.module.cam_layer
    cam.layer_index(model.module, layer)  # refuse an unknown layer before reading images
    _check_target(model, settings.target, paths)
    unreadable: list[tuple[str, str]] = []
    names: set[str] = set()
    with terminal.progress("explain", len(paths)) as advance:
        for batch in model.decoded_batches(paths):
            unreadable += [item for item in zip(batch.paths, batch.errors, strict=True) if item[1]]
            if batch.images:
                _draw_batch(model, batch, folder, names, settings)
            advance(len(batch.paths))
    return unreadable


def _draw_batch(
    model: LoadedModel, batch: DecodedBatch, folder: Path, names: set[str], settings: ExplanationSettings
) -> None:
    """Draw the images of a batch. `names` are the file names taken so far."""
    import torch

    from runner.explain import cam, overlay

    images = torch.stack(batch.images)
    paths = [Path(path) for path, error in zip(batch.paths, batch.errors, strict=True) if not error]
    probabilities = model.classifier.logits(images).double().softmax(1)
    predicted = probabilities.argmax(1).tolist()
    targets = [
        _target_index(model, settings.target, path, prediction)
        for path, prediction in zip(paths, predicted, strict=True)
    ]
    heatmaps = cam.explain(model.module, images, targets, settings.layer, settings.method)
    for row, (path, prediction, target) in enumerate(zip(paths, predicted, targets, strict=True)):
        probability, true = float(probabilities[row, prediction]), _class_of_folder(model, path)
        title = overlay.title(model.classes[prediction], probability, true)
        label = f"{METHODS[settings.method].title} for {model.classes[target]}"
        name = _unique_name(f"{path.stem}.{settings.method}", names)
        overlay.draw(batch.images[row], heatmaps[row], title, label, folder / name)


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
    name = path.absolute().parent.name
    return name if name in model.classes else None


def _unique_name(stem: str, names: set[str]) -> str:
    """A picture's file name that is not in `names`, which it joins: several folders may hold images of one name."""
    encoded = re.sub(r"[/\x00]", "_", stem).encode(errors="surrogateescape")
    stem = encoded[-LONGEST_STEM:].decode(errors="ignore")
    name, number = f"{stem}.png", 2
    while name in names:
        name, number = f"{stem}.{number}.png", number + 1
    names.add(name)
    return name
