"""Statistics of predictions, against scikit-learn and against numbers computed by hand."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_predictions import few_predictions, from_pairs, predictions_of, random_predictions
from sklearn import metrics as sklearn_metrics

from runner.evaluation import statistics
from runner.evaluation.metrics import softmax
from runner.evaluation.predictions import Predictions
from runner.evaluation.statistics import ConfusedPair


class TestClasses:
    def test_known_predictions(self) -> None:
        case = from_pairs([(0, 0), (0, 0), (0, 1), (1, 1), (2, 1)], 4, ("a", "b", "c", "d"))
        a, b, c, d = statistics.class_scores(case)
        assert (a.name, a.precision, a.recall, a.f1, a.support, a.predicted) == ("a", 1, 2 / 3, 0.8, 3, 2)
        assert (b.precision, b.recall, b.f1, b.support, b.predicted) == (1 / 3, 1, 0.5, 1, 3)
        assert math.isnan(c.precision)
        assert (c.recall, c.f1, c.support, c.predicted) == (0, 0, 1, 0)
        assert all(map(math.isnan, (d.precision, d.recall, d.f1)))
        assert (d.support, d.predicted) == (0, 0)

    def test_a_predicted_class_without_images(self) -> None:
        scores = statistics.class_scores(from_pairs([(0, 1)], 2))[1]
        assert (scores.precision, scores.support, scores.predicted) == (0, 0, 1)
        assert math.isnan(scores.recall)
        assert math.isnan(scores.f1)

    def test_the_confusion_matrix_is_that_of_scikit_learn(self) -> None:
        case = random_predictions(300, 7)
        expected = sklearn_metrics.confusion_matrix(case.labels, case.predicted, labels=range(7))
        assert (statistics.confusion(case) == expected).all()

    def test_confused_pairs_are_sorted_by_count_and_name(self) -> None:
        pairs = [(0, 1), (2, 0), (2, 0), (1, 0), (0, 0), (0, 0), (1, 2)]
        case = from_pairs(pairs, 3, ("z", "y", "x"))
        assert statistics.confused_pairs(case) == [
            ConfusedPair("x", "z", 2, 1.0),
            ConfusedPair("y", "x", 1, 1 / 2),
            ConfusedPair("y", "z", 1, 1 / 2),
            ConfusedPair("z", "y", 1, 1 / 3),
        ]

    def test_invalid_logits_predict_no_class(self) -> None:
        case = predictions_of([[math.nan, 0], [1, 0]], [0, 0])
        assert statistics.confusion(case).tolist() == [[1, 0], [0, 0]]
        assert statistics.confused_pairs(case) == []
        first = statistics.class_scores(case)[0]
        assert (first.recall, first.precision, first.predicted) == (0.5, 1, 1)

    @pytest.mark.parametrize("classes", [3, 8, 30])
    def test_top_k_accuracy_is_that_of_scikit_learn(self, classes: int) -> None:
        case = random_predictions(200, classes)
        curve = statistics.topk_accuracy(case)
        assert len(curve) == min(20, classes)
        assert (np.diff(curve) >= 0).all()
        for k in range(1, len(curve)):
            expected = sklearn_metrics.top_k_accuracy_score(
                case.labels, case.logits, k=k, labels=range(classes)
            )
            assert curve[k - 1] == pytest.approx(expected)
        assert classes > 20 or curve[-1] == 1

    def test_invalid_logits_are_in_no_top_k(self) -> None:
        case = predictions_of(np.full((4, 3), np.nan), [0, 1, 2, 0])
        assert statistics.topk_accuracy(case).tolist() == [0, 0, 0]


class TestCalibration:
    def test_known_numbers(self) -> None:
        probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.4, 0.6]])
        measured = statistics.calibration(probabilities, np.array([0, 1, 0, 1]), bins=5)
        # (0.4, 0.6] has two correct predictions of 0.6; (0.6, 0.8] a wrong one; (0.8, 1] a correct one.
        assert measured.count.tolist() == [0, 0, 2, 1, 1]
        assert measured.ece == pytest.approx(2 / 4 * 0.4 + 1 / 4 * 0.8 + 1 / 4 * 0.1)
        assert measured.mce == pytest.approx(0.8)
        assert measured.edges == pytest.approx(np.array([0, 0.2, 0.4, 0.6, 0.8, 1]))
        assert (measured.confidence[2], measured.accuracy[2]) == pytest.approx((0.6, 1))
        assert math.isnan(measured.confidence[0])
        assert math.isnan(measured.accuracy[0])

    def test_calibrated_predictions_have_almost_no_error(self) -> None:
        case = random_predictions(20000, 10)
        assert statistics.calibration(case.probabilities, case.labels).ece < 0.015
        overconfident = random_predictions(20000, 10, scale=4)
        assert statistics.calibration(overconfident.probabilities, overconfident.labels).ece > 0.1

    @given(few_predictions(), st.integers(1, 20))
    def test_every_valid_prediction_is_in_a_bin(self, case: Predictions, bins: int) -> None:
        measured = statistics.calibration(case.probabilities, case.labels, bins)
        assert len(measured.count) == bins
        assert measured.count.sum() == case.finite.sum()
        filled = measured.count > 0
        assert (measured.edges[:-1] - 1e-9 <= measured.confidence)[filled].all()
        assert (measured.confidence <= measured.edges[1:] + 1e-9)[filled].all()
        if case.finite.any():
            assert 0 <= measured.ece <= measured.mce <= 1 + 1e-9
        else:
            assert math.isnan(measured.ece)
            assert math.isnan(measured.mce)

    def test_a_probability_rounded_above_one_is_in_the_last_bin(self) -> None:
        measured = statistics.calibration(np.array([[1.0000000002, 0.0]]), np.array([0]))
        assert measured.count[-1] == 1


class TestTemperature:
    @pytest.mark.parametrize("scale", [0.3, 1.0, 2.5, 7.0])
    def test_the_scale_of_the_logits_is_found(self, scale: float) -> None:
        case = random_predictions(20000, 10, scale=scale)
        assert statistics.fit_temperature(case.logits, case.labels) == pytest.approx(scale, rel=0.05)

    def test_it_minimizes_the_loss(self) -> None:
        case = random_predictions(400, 5, scale=3)
        temperature = statistics.fit_temperature(case.logits, case.labels)

        def loss(value: float) -> float:
            return float(sklearn_metrics.log_loss(case.labels, softmax(case.logits / value), labels=range(5)))

        assert all(
            loss(temperature) < loss(temperature * factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2)
        )
        before = statistics.calibration(case.probabilities, case.labels).ece
        assert statistics.calibration(softmax(case.logits / temperature), case.labels).ece < before

    def test_it_stays_within_its_bounds(self) -> None:
        correct, wrong = np.eye(3) * 9, np.roll(np.eye(3), 1, axis=1) * 9
        low, high = statistics.TEMPERATURES
        assert statistics.fit_temperature(correct, np.arange(3)) == pytest.approx(low, rel=1e-3)
        assert statistics.fit_temperature(wrong, np.arange(3)) == pytest.approx(high)

    def test_invalid_logits_are_left_out(self) -> None:
        case = random_predictions(400, 5, scale=3)
        more = np.vstack([case.logits, np.full((1, 5), np.nan)])
        expected = statistics.fit_temperature(case.logits, case.labels)
        assert statistics.fit_temperature(more, np.append(case.labels, 0)) == expected
        assert statistics.fit_temperature(np.full((2, 3), np.inf), np.array([0, 1])) == 1


class TestBootstrap:
    @given(few_predictions())
    def test_the_values_are_the_scores(self, case: Predictions) -> None:
        intervals = statistics.bootstrap(case, resamples=20)
        for name, interval in intervals.items():
            assert interval.value == pytest.approx(case.scores[name], abs=1e-12)
        recalls = [each.recall for each in statistics.class_scores(case) if each.support]
        assert np.mean(recalls) == pytest.approx(intervals["balanced_accuracy"].value, abs=1e-12)

    def test_it_resamples_images(self) -> None:
        case = random_predictions(300, 6, seed=3)
        random = np.random.default_rng(5)
        accuracies, recalls = [], []
        for _ in range(3000):
            drawn = random.integers(0, 300, 300)
            labels, correct = case.labels[drawn], case.correct[drawn]
            accuracies.append(correct.mean())
            recalls.append(np.mean([correct[labels == each].mean() for each in np.unique(labels)]))
        intervals = statistics.bootstrap(case, resamples=3000)
        for name, samples in (("top1", accuracies), ("balanced_accuracy", recalls)):
            assert intervals[name].low == pytest.approx(np.quantile(samples, 0.025), abs=0.008)
            assert intervals[name].high == pytest.approx(np.quantile(samples, 0.975), abs=0.008)

    def test_an_interval_contains_its_value_and_is_repeatable(self) -> None:
        for seed in range(8):
            case = random_predictions(150, 9, seed)
            intervals = statistics.bootstrap(case)
            assert list(intervals) == ["top1", "top5", "balanced_accuracy"]
            for each in intervals.values():
                assert 0 <= each.low <= each.value <= each.high <= 1
            assert intervals == statistics.bootstrap(case)
            assert intervals != statistics.bootstrap(case, seed=1)

    def test_more_images_and_a_lower_confidence_give_narrower_intervals(self) -> None:
        def width(case: Predictions, confidence: float = 0.95) -> float:
            interval = statistics.bootstrap(case, confidence=confidence)["top1"]
            return interval.high - interval.low

        few, many = random_predictions(100, 5), random_predictions(10000, 5)
        assert width(many) == pytest.approx(width(few) / 10, rel=0.3)
        assert width(few, 0.5) < width(few)

    @pytest.mark.parametrize("right", [True, False])
    def test_all_right_or_all_wrong_gives_the_exact_interval(self, right: bool) -> None:
        """118 of 118: 0.025 ** (1 / 118). Balanced accuracy counts classes of 40 and 78 images as 40 each."""
        labels = np.repeat([0, 1], [40, 78])
        ranks = np.zeros(118) if right else np.full(118, np.inf)
        intervals = statistics.bootstrap_ranks(labels, ranks, 8)
        for name, images in (("top1", 118), ("top5", 118), ("balanced_accuracy", 80)):
            each, limit = intervals[name], 0.025 ** (1 / images)
            expected = (1, limit, 1) if right else (0, 0, 1 - limit)
            assert (each.value, each.low, each.high) == pytest.approx(expected)
        assert intervals["top1"].low == pytest.approx(0.9692 if right else 0, abs=5e-5)

    def test_only_metrics_without_width_are_exact(self) -> None:
        intervals = statistics.bootstrap_ranks(np.repeat([0, 1], 59), np.array([1] + [0] * 117), 8)
        assert intervals["top1"].low < intervals["top1"].high == 1
        assert intervals["top5"].low == pytest.approx(0.025 ** (1 / 118))

    def test_a_metric_that_is_1_for_every_model_has_no_width(self) -> None:
        each = statistics.bootstrap(from_pairs([(0, 0), (1, 1), (1, 1)], 3))["top5"]
        assert (each.value, each.low, each.high) == (1, 1, 1)

    def test_it_is_fast(self) -> None:
        case = random_predictions(2206, 101)
        start = time.process_time()
        statistics.bootstrap(case)
        assert time.process_time() - start < 2


class TestSelection:
    def test_confident_errors_and_unsure_correct_predictions(self) -> None:
        case = predictions_of([[0, 3], [1, 0], [0, 1], [0, 3], [5, 0], [math.nan, 0]], [0, 0, 0, 0, 0, 0])
        assert statistics.most_confident_errors(case, 9) == [0, 3, 2, 5]
        assert statistics.most_confident_errors(case, 2) == [0, 3]
        assert statistics.least_confident_correct(case, 9) == [1, 4]
        assert statistics.least_confident_correct(case, 1) == [1]

    def test_equally_confident_ones_are_sorted_by_path(self) -> None:
        case = predictions_of([[0, 3]] * 3, [0, 0, 0])
        reverse = Predictions(case.paths[::-1], case.digests, case.labels, case.logits, case.classes)
        assert statistics.most_confident_errors(reverse, 3) == [2, 1, 0]
