"""`runner explain`: where in images a class is found.

./launch.sh explain IMAGE|FOLDER|GLOB… [--model …] [--method gradcam] [--layer features.29] [--target predicted]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cam_methods import METHODS
from runner.errors import Parser, UserError
from runner.files import writable
from runner.images import expand, shown
from runner.models import load_soon
from runner.predict import PARTLY, add_model
from runner.terminal import Terminal

if TYPE_CHECKING:
    from runner.model import Model

PREDICTED, TRUE = "predicted", "true"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises `UserError`."""
    parser = Parser(prog="runner explain", description="Draw where in images a class is found.")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="an image, a folder, or a pattern")
    add_model(parser)
    parser.add_argument("--method", choices=tuple(METHODS), default="gradcam", help="default: gradcam")
    parser.add_argument(
        "--layer", default="", help="whose output is looked at; default: the last convolution"
    )
    parser.add_argument(
        "--target",
        default=PREDICTED,
        help="predicted, true (the name of the image's folder), or a class; default: predicted",
    )
    parser.add_argument("--out", default="explained", metavar="DIR", help="default: explained")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Explain as the command line says: 0, or 1 where some files were no images.

    Raises `UserError` for what its user can mend, and where no file was an image.
    """
    asked = parse(argv)
    paths = expand(asked.images)
    folder = writable(asked.out)

    terminal = Terminal()
    model = load_soon(asked.model, asked.tracking)
    terminal.line(f"{model.source}, {len(model.classes)} classes")
    faults = pictures(model, paths, folder, terminal, asked.method, asked.layer, asked.target)
    for path, fault in faults:
        print(f"runner: {shown(path)} {fault}", file=sys.stderr)
    if len(faults) == len(paths):
        raise UserError(f"None of {len(paths)} files is an image that can be read.")
    terminal.line(f"pictures in {folder}: {len(paths) - len(faults)}")
    return PARTLY if faults else 0


def pictures(
    model: Model,
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

    from runner import cam, overlay

    layer = layer or cam.default_layer(model.network)
    cam.place_of(model.network, layer)
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


def _fixed(model: Model, target: str) -> int | None:
    """The index of a class that is asked about in every image. Raises `UserError` for an unknown one."""
    from runner.settings import nearest

    if target in model.classes:
        return model.classes.index(target)
    if target in (PREDICTED, TRUE):
        return None
    raise UserError(
        f"The model knows no class {target!r}{nearest(target, model.classes)}; --target takes predicted, true, or one"
        f" of its {len(model.classes)} classes."
    )


def _true(model: Model, path: Path) -> str | None:
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
