"""Pictures of objects whose bounding boxes are known, and an experiment that learns them in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

OBJECTS = {"coin": (230, 200, 40), "leaf": (40, 190, 60), "rose": (220, 40, 90)}
"""RGB of each class's objects."""
SIDE, SIZE, EACH = 64, 24, 32
"""Pixels of a picture and of the object in it; pictures per class."""
Corners = tuple[int, int, int, int]
"""left, top, right, bottom; right and bottom are exclusive."""


def draw_object(label: str, number: int) -> tuple[Image.Image, Corners]:
    """A square of its class's color somewhere in gray noise, and its box."""
    generator = np.random.default_rng([sorted(OBJECTS).index(label), number])
    picture = generator.normal(110, 30, (SIDE, SIDE, 3))
    left, top = (int(each) for each in generator.integers(0, SIDE - SIZE + 1, 2))
    color = np.array(OBJECTS[label])
    picture[top : top + SIZE, left : left + SIZE] = color + generator.normal(0, 20, (SIZE, SIZE, 3))
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    return image, (left, top, left + SIZE, top + SIZE)


def write_objects(root: Path) -> dict[str, Corners]:
    """Write the pictures to class folders; returns the box of each by its path."""
    boxes = {}
    for label in OBJECTS:
        (root / label).mkdir(parents=True)
        for number in range(EACH):
            image, box = draw_object(label, number)
            image.save(root / label / f"{number:02}.png")
            boxes[f"{label}/{number:02}.png"] = box
    return boxes


def objects_words(root: Path, folder: Path) -> list[str]:
    """Command-line words of an experiment on them: vgg11, of which the last two convolutions train."""
    return [
        *("--config", "quickstart", "--name", "objects", "--data.kind", "folder", "--data.root", str(root)),
        *("--cache", str(folder / "cache"), "--tracking.root", str(folder / "mlruns")),
        *("--tracking.system_metrics", "false", "--tracking.model", "false", "--tracking.gallery", "2"),
        *("--model.arch", "vgg11", "--model.trainable", "features.16", "--model.pool", "1"),
        *("--model.width", "32", "--model.dropout", "0", "--augment.views", "none"),
        *("--augment.resize", str(SIDE), "--augment.crop", str(SIDE), "--schedule.kind", "constant"),
        *("--optim.name", "adam", "--optim.lr", "0.0005", "--train.epochs", "10", "--train.batch_size", "8"),
        *("--train.precision", "no", "--features.batch_size", "8", "--features.compile", "false"),
    ]
