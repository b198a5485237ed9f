"""Predictions for tests: from given logits, from pairs of classes, and random ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from runner.evaluation.predictions import Predictions

ODD_NAMES = ("a,b", "<b>$x_1$</b>", "line\r\nbreak", 'quo"te', "Ωμέγα 犬", "_^{x}$")
"""Class names that CSV, HTML or matplotlib could misread."""


def predictions_of(
    logits: object, labels: Sequence[int], classes: tuple[str, ...] | None = None
) -> Predictions:
    values = np.array(logits, dtype=np.float64)
    return Predictions(
        paths=tuple(f"{index:04}.png" for index in range(len(labels))),
        digests=tuple(f"{index:064x}" for index in range(len(labels))),
        labels=np.array(labels, dtype=np.int64),
        logits=values,
        classes=classes or tuple(f"class {index:03}" for index in range(values.shape[1])),
    )


def from_pairs(
    pairs: Sequence[tuple[int, int]], classes: int, names: tuple[str, ...] | None = None
) -> Predictions:
    """Predictions with these (true, predicted) classes."""
    logits = 5 * np.eye(classes)[[predicted for _, predicted in pairs]]
    return predictions_of(logits, [true for true, _ in pairs], names)


def random_predictions(images: int, classes: int, seed: int = 0, scale: float = 1.0) -> Predictions:
    """Labels are drawn from softmax(logits); the logits are then multiplied by `scale`: 1 is perfectly calibrated."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (images, classes))
    # Gumbel noise: the argmax of logits plus noise is a draw from the softmax.
    noise = np.log(-np.log(random.random((images, classes))))
    return predictions_of(logits * scale, (logits - noise).argmax(axis=1).tolist())


@st.composite
def few_predictions(draw: st.DrawFn) -> Predictions:
    """Few images and classes, with ties, and with logits that are not finite."""
    images, classes = draw(st.integers(1, 12)), draw(st.integers(2, 8))
    numbers = st.integers(-2, 2).map(float) | st.sampled_from([0.0, 1e300, math.nan, math.inf, -math.inf])
    logits = draw(arrays(np.float64, (images, classes), elements=numbers))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=images, max_size=images))
    return predictions_of(logits, labels)
