"""Small noisy pictures whose color tells their class: easy to learn, different in every file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"blue": (40, 60, 200), "green": (50, 180, 70), "red": (210, 50, 40)}
"""RGB of each class."""
PER_CLASS = 12


def draw(label: str, number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Picture `number` of a class, width × height pixels."""
    random = np.random.default_rng([sorted(COLORS).index(label), number])
    noise = random.normal(0, 40, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.array(COLORS[label]) + noise, 0, 255).astype(np.uint8))


def write_pictures(root: Path) -> Path:
    """A folder of three class folders of twelve PNG pictures each."""
    for label in COLORS:
        (root / label).mkdir(parents=True)
        for number in range(PER_CLASS):
            draw(label, number).save(root / label / f"{number:02}.png")
    return root


def small_experiment(images: Path, cache: Path, tracking: Path) -> list[str]:
    """Command-line words of an experiment that runs in seconds: vgg11 at random weights on 32 px, three epochs."""
    return [
        *("--config", "quickstart", "--name", "small", "--data.kind", "folder", "--data.root", str(images)),
        *("--cache", str(cache), "--tracking.root", str(tracking)),
        *("--tracking.system_metrics", "false", "--tracking.model", "false", "--tracking.gallery", "0"),
        *("--model.arch", "vgg11", "--model.pool", "1", "--model.width", "16"),
        *("--augment.resize", "36", "--augment.crop", "32", "--augment.views", "2"),
        *("--train.epochs", "3", "--train.batch_size", "8", "--train.precision", "no"),
        *("--features.batch_size", "8"),
    ]
