"""TODO."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.explain.methods import METHODS
from runner.utils.console import Terminal
from runner.utils.errors import UserError

if TYPE_CHECKING:
    from runner.serving.predictor import LoadedModel


PREDICTED, TRUE = "predicted", "true"


def pictures(
    model: LoadedModel,
    paths: Sequence[Path],
    folder: Path,
    terminal: Terminal,
    method: str = "gradcam",
    layer: str = "",
    target: str = PREDICTED,
) -> list[tuple[str, str]]:
    """Draw files with the map of a class: `folder`/NAME.METHOD.png; the files that are no images, and why.

    Args:
        model: Says what is in them.
        paths: The files. The name of a file's folder, where it is one of the classes, is taken for the true one.
        folder: To write to.
        terminal: Shows progress.
        method: One of `METHODS`.
        layer: A layer's name; empty: the last convolution.
        target: predicted, true, or a class.

    Raises `UserError` for an unknown layer or class, and where the true class is asked for and not known.
    """
    import torch

    from runner.explain import cam, overlay

    layer = layer or cam.default_layer(model.network)
    cam.layer_index(model.network, layer)
    fixed = _fixed(model, target)
    by_folder = target == TRUE and fixed is None
    if by_folder:
        for path in paths:
            if _true(model, path) is None:
                raise UserError(
                    f"{path} lies in the folder {path.absolute().parent.name!r}, which is none of the model's classes;"
                    " name the class with --target."
                )
    faults: list[tuple[str, str]] = []
    taken: set[str] = set()
    with terminal.progress("explain", len(paths)) as advance:
        for files, views, wrong in model.views(paths):
            faults += [(name, fault) for name, fault in zip(files, wrong, strict=True) if fault]
            good = [Path(name) for name, fault in zip(files, wrong, strict=True) if not fault]
            if good:
                images = torch.stack(views)
                probabilities = model.classifier.logits(images).double().softmax(1)
                predicted = probabilities.argmax(1).tolist()
                trues = [_true(model, path) for path in good]
                asked = [
                    model.classes.index(str(true)) if by_folder else fixed if fixed is not None else said
                    for true, said in zip(trues, predicted, strict=True)
                ]
                found = cam.explain(model.network, images, asked, layer, method)
                for place, path in enumerate(good):
                    said = predicted[place]
                    above = overlay.title(
                        model.classes[said], float(probabilities[place, said]), trues[place]
                    )
                    about = f"{METHODS[method]} for {model.classes[asked[place]]}"
                    file = folder / _unique(f"{path.stem}.{method}", taken)
                    overlay.draw(views[place], found[place], above, about, file)
            advance(len(files))
    return faults


def _fixed(model: LoadedModel, target: str) -> int | None:
    """The index of a class that is asked about in every image. Raises `UserError` for an unknown one."""
    from runner.utils.text import did_you_mean

    if target in model.classes:
        return model.classes.index(target)
    if target in (PREDICTED, TRUE):
        return None
    raise UserError(
        f"The model knows no class {target!r}{did_you_mean(target, model.classes)}; --target takes predicted, true, or one"
        f" of its {len(model.classes)} classes."
    )


def _true(model: LoadedModel, path: Path) -> str | None:
    name = path.absolute().parent.name  # of a link, where it lies
    return name if name in model.classes else None


def _unique(stem: str, taken: set[str]) -> str:
    """A file name that no other picture has: images of one name may lie in several folders."""
    stem = re.sub(r"[/\x00]", "_", stem).encode(errors="surrogateescape")[-200:].decode(errors="ignore")
    name, number = f"{stem}.png", 2
    while name in taken:
        name, number = f"{stem}.{number}.png", number + 1
    taken.add(name)
    return name
