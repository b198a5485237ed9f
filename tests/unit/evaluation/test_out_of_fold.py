"""Out-of-fold predictions: means over seeds, scores of all folds together, and the table."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest

from runner.evaluation.out_of_fold import FoldPredictions, fold_table, mean_predictions, pool
from runner.evaluation.predictions import Predictions, read_predictions
from runner.evaluation.statistics import bootstrap

CLASSES = ("a", "b", "c")


def predictions(paths: str, seed: int = 0) -> Predictions:
    """Random logits for images of these one-letter paths."""
    random = np.random.default_rng([seed, *map(ord, paths)])
    labels = np.arange(len(paths)) % 3
    logits = random.normal(0, 2, (len(paths), 3))
    return Predictions(tuple(paths), tuple(f"{ord(path):040x}" for path in paths), labels, logits, CLASSES)


def test_a_single_model_keeps_its_logits() -> None:
    only = predictions("abc")
    assert mean_predictions([only]) is only


def test_several_models_have_the_mean_of_their_probabilities() -> None:
    parts = [predictions("abcd", seed) for seed in range(3)]
    mean = np.mean([part.probabilities for part in parts], axis=0)
    assert np.allclose(mean_predictions(parts).probabilities, mean, rtol=1e-12, atol=0)


def test_an_image_without_a_prediction_in_one_model_has_none() -> None:
    parts = [predictions("abcd", seed) for seed in range(2)]
    parts[1].logits[2, 0] = math.inf
    assert mean_predictions(parts).finite.tolist() == [True, True, False, True]


def test_a_probability_of_zero_is_a_prediction() -> None:
    certain = predictions("ab")
    certain.logits[:] = [[2000, 0, 0], [0, 2000, 0]]
    mean = mean_predictions([certain, certain])
    assert mean.finite.all()
    assert mean.predicted.tolist() == [0, 1]


def test_models_of_other_images_have_no_mean() -> None:
    with pytest.raises(ValueError, match="not of the same images"):
        mean_predictions([predictions("ab"), predictions("ac")])
    with pytest.raises(ValueError, match="no predictions"):
        mean_predictions([])


def test_folds_together_have_the_scores_of_all_images() -> None:
    first, second = predictions("abcdef"), predictions("ghij")
    whole = Predictions(
        first.paths + second.paths,
        first.digests + second.digests,
        np.concatenate([first.labels, second.labels]),
        np.concatenate([first.logits, second.logits]),
        CLASSES,
    )
    pooled = pool([first, second])
    assert pooled.scores == whole.scores
    assert pooled.intervals == bootstrap(whole)
    assert pooled.metrics()["out_of_fold/top1_low"] == pooled.intervals["top1"].low


def test_no_image_is_in_two_folds() -> None:
    with pytest.raises(ValueError, match="2 images are in more than one fold"):
        pool([predictions("abc"), predictions("bcd")])


@pytest.mark.parametrize(("seeds", "columns"), [((7, 7), ["fold"]), ((7, 8), ["fold", "split"])])
def test_the_table_says_the_fold_and_the_division(seeds: tuple[int, int], columns: list[str]) -> None:
    table = fold_table(
        [FoldPredictions(seeds[0], 0, predictions("ab")), FoldPredictions(seeds[1], 1, predictions("cd"))]
    )
    header, *rows = csv.reader(io.StringIO(table))
    assert header[7:] == columns
    assert [row[7:] for row in rows] == [
        [str(fold), str(seed)][: len(columns)] for fold, seed in ((0, seeds[0]),) * 2 + ((1, seeds[1]),) * 2
    ]
    read = read_predictions(table)
    assert [row.path for row in read] == (["a", "b", "c", "d"] if len(columns) == 1 else ["a", "b"])
