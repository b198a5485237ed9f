"""Metrics: equal to scikit-learn's, exact with ties and invalid logits, and gathered without gaps."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sklearn_metrics

from runner.config.choices import METRIC_NAMES
from runner.config.train_schema import TrainConfig
from runner.evaluation import metrics
from runner.evaluation.metrics import METRICS, Metric, Scores, sample_results, scores_from_logits

pytestmark = [
    pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true"),
    pytest.mark.filterwarnings("ignore:A single label was found"),
]

Case = tuple[np.ndarray, list[int]]


def scores_of(logits: object, labels: list[int]) -> Scores:
    return scores_from_logits(torch.as_tensor(logits), labels)


@st.composite
def cases(draw: st.DrawFn, ties: bool = False) -> Case:
    """Logits (n × classes) and labels; without ties no two logits are equal."""
    images, classes = draw(st.integers(1, 12)), draw(st.integers(2, 9))
    numbers = (
        st.integers(-2, 2).map(float) if ties else st.integers(-8000, 8000).map(lambda each: each / 1000)
    )
    logits = draw(arrays(np.float64, (images, classes), elements=numbers, unique=not ties))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=images, max_size=images))
    return logits, labels


class TestAgainstScikitLearn:
    @given(cases())
    def test_top1_is_accuracy(self, case: Case) -> None:
        logits, labels = case
        scores = scores_of(logits, labels)
        expected = sklearn_metrics.accuracy_score(labels, logits.argmax(1))
        assert scores["top1"] == pytest.approx(expected, abs=1e-12)
        assert scores.hits1 == round(expected * len(labels))
        assert scores.images == len(labels)

    @given(cases())
    def test_top5_is_top_k_accuracy(self, case: Case) -> None:
        logits, labels = case
        classes = logits.shape[1]
        assume(classes > 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # with fewer than six classes every prediction is correct
            expected = sklearn_metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(classes))
        scores = scores_of(logits, labels)
        assert scores["top5"] == pytest.approx(expected, abs=1e-12)
        assert scores.hits5 == round(expected * len(labels))

    @given(cases())
    def test_balanced_accuracy_is_the_mean_recall_of_classes_with_images(self, case: Case) -> None:
        logits, labels = case
        predicted = logits.argmax(1)
        value = scores_of(logits, labels)["balanced_accuracy"]
        expected = sklearn_metrics.balanced_accuracy_score(labels, predicted)
        assert value == pytest.approx(expected, abs=1e-12)
        present = sorted(set(labels))
        recall = sklearn_metrics.recall_score(labels, predicted, labels=present, average="macro")
        assert value == pytest.approx(recall, abs=1e-12)

    @given(cases(ties=True))
    def test_loss_is_log_loss(self, case: Case) -> None:
        logits, labels = case
        odds = np.exp(logits)
        probabilities = odds / odds.sum(1, keepdims=True)
        expected = sklearn_metrics.log_loss(labels, probabilities, labels=range(logits.shape[1]))
        assert scores_of(logits, labels)["loss"] == pytest.approx(expected, rel=1e-9)

    def test_known_numbers(self) -> None:
        scores = scores_of([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], [0, 2, 1, 0])
        assert (scores.hits1, scores.hits5, scores.images) == (2, 4, 4)
        assert scores["balanced_accuracy"] == pytest.approx((1 / 2 + 0 + 1) / 3)
        log_sum = np.log(1 + np.e + np.e**2)
        assert scores["loss"] == pytest.approx(((log_sum - 2) * 2 + (log_sum - 1) + log_sum) / 4)


class TestTies:
    @given(cases(ties=True))
    def test_the_smaller_index_comes_first(self, case: Case) -> None:
        logits, labels = case
        ranks = sample_results(torch.tensor(logits), torch.tensor(labels))[:, metrics.RANK].tolist()
        for row, label, rank in zip(logits, labels, ranks, strict=True):
            order = sorted(range(len(row)), key=lambda index: (-row[index], index))
            assert rank == order.index(label)

    @pytest.mark.parametrize(("label", "rank"), [(0, 0), (1, 1), (5, 5)])
    def test_only_one_of_equal_logits_wins(self, label: int, rank: int) -> None:
        assert sample_results(torch.zeros(1, 7), torch.tensor([label]))[0, metrics.RANK] == rank

    def test_a_constant_prediction_is_correct_for_one_class(self) -> None:
        scores = scores_of(torch.zeros(14, 7), [*range(7), *range(7)])
        assert scores.hits1 == 2
        assert scores.hits5 == 10
        assert scores["balanced_accuracy"] == pytest.approx(1 / 7)


class TestInvalidLogits:
    @pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("classes", [2, 3, 5, 6, 101])
    @pytest.mark.parametrize("index", [0, 1])
    def test_they_are_wrong_in_every_metric(self, number: float, classes: int, index: int) -> None:
        logits = torch.zeros(1, classes)
        logits[0, 0] = 1.0
        logits[0, index] = number
        scores = scores_of(logits, [0])
        assert (scores.hits1, scores.hits5, scores["balanced_accuracy"]) == (0, 0, 0)

    def test_only_nan_is_wrong(self) -> None:
        scores = scores_of(torch.full((3, 3), torch.nan), [0, 1, 2])
        assert [scores[name] for name in ("top1", "top5", "balanced_accuracy")] == [0, 0, 0]
        assert not np.isfinite(scores["loss"])

    def test_other_images_are_not_affected(self) -> None:
        logits = torch.eye(8)
        logits[3] = torch.nan
        scores = scores_of(logits, list(range(8)))
        assert (scores.hits1, scores.hits5, scores.images) == (7, 7, 8)


class TestScores:
    def test_a_class_without_images_does_not_count_in_balanced_accuracy(self) -> None:
        logits = torch.eye(5)[[0, 0, 1]]
        assert scores_of(logits, [0, 1, 1])["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)

    def test_names_of_logged_metrics_and_json(self) -> None:
        scores = scores_of(torch.eye(6)[[0, 1, 2, 0]], [0, 1, 2, 3])
        assert scores.metrics("val") == {
            "val/top1": 0.75,
            "val/top5": 1.0,
            "val/balanced_accuracy": 0.75,
            "val/loss": scores["loss"],
        }
        assert Scores.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores
        with pytest.raises(KeyError):
            Scores.from_dict({"top1": 1.0, "images": 4})

    @pytest.mark.parametrize(("classes", "top5"), [(3, False), (5, False), (6, True)])
    def test_top5_is_not_shown_where_it_is_1_for_every_model(self, classes: int, top5: bool) -> None:
        scores = scores_of(torch.eye(classes), [*range(classes)])
        assert ("top5" in [metric.name for metric in scores.shown]) is top5
        assert scores["top5"] == 1, "it is recorded"
        earlier = {name: value for name, value in scores.to_dict().items() if name != "classes"}
        assert len(Scores.from_dict(earlier).shown) == 4, "records of earlier versions have no classes"

    def test_half_precision_logits_are_evaluated_in_double_precision(self) -> None:
        results = sample_results(torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16), torch.tensor([1]))
        assert results.dtype == torch.float64
        assert results[0, metrics.LOSS].item() == pytest.approx(np.log1p(np.exp(-1)), rel=1e-12)


class TestTable:
    def test_names_and_directions(self) -> None:
        assert {name: metric.direction for name, metric in METRICS.items()} == {
            "top1": "maximize",
            "top5": "maximize",
            "balanced_accuracy": "maximize",
            "loss": "minimize",
        }
        assert [metric.name for metric in METRICS.values()] == list(METRICS)

    @pytest.mark.parametrize(("name", "best"), [("top1", 0.9), ("loss", 0.1)])
    def test_the_direction_decides_what_is_better(self, name: str, best: float) -> None:
        metric = METRICS[name]
        other = 1 - best
        assert metric.better(best, other)
        assert not metric.better(other, best)
        assert not metric.better(best, best)
        assert not metric.better(float("nan"), other)

    @pytest.mark.parametrize(
        ("key", "name"), [("test/best/top1", "top1"), ("val/loss", "loss"), ("lr", None), ("loss/lr", None)]
    )
    def test_a_logged_name_ends_with_its_metric(self, key: str, name: str | None) -> None:
        assert metrics.metric_of(key) is (METRICS[name] if name else None)

    @pytest.mark.parametrize(("setting", "wrong"), [("best", ""), ("best", "los"), ("monitor", "los")])
    def test_training_takes_any(self, setting: str, wrong: str) -> None:
        assert list(METRIC_NAMES.choices) == list(METRICS)
        assert getattr(TrainConfig(**{setting: "loss"}), setting) == "loss"
        with pytest.raises(
            ValueError, match=rf"train\.{setting} must be one of top1, .*, loss; it is '{wrong}'"
        ):
            TrainConfig(**{setting: wrong})

    def test_a_metric_that_is_added_is_computed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        worst = Metric("worst_loss", "worst loss", "minimize", lambda results, _: float(results[:, 0].max()))
        monkeypatch.setitem(METRICS, worst.name, worst)
        scores = scores_of([[0.0, 0.0], [9.0, 0.0]], [0, 0])
        assert scores["worst_loss"] == pytest.approx(np.log(2))
        assert "test/worst_loss" in scores.metrics("test")
        assert Scores.from_dict(scores.to_dict()) == scores

    def test_command_lines_read_it_without_torch(self) -> None:
        code = "import sys, runner.evaluation.metrics; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class TestGather:
    def rows(self, indices: list[int]) -> torch.Tensor:
        return torch.tensor([[i + 0.5, i, 0.0] for i in indices], dtype=torch.float64).reshape(-1, 3)

    def test_rows_come_in_the_order_of_the_split(self, accelerator) -> None:  # type: ignore[no-untyped-def]
        indices = [4, 0, 3, 1, 2]
        gathered = metrics.gather(indices, self.rows(indices), 5, accelerator)
        assert torch.equal(gathered, self.rows([0, 1, 2, 3, 4]))

    @pytest.mark.parametrize(
        "indices",
        [[0, 1, 2], [1, 2, 3], [0, 1, 3, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 4], []],
        ids=["last missing", "first missing", "one for another", "one twice", "one too many", "none"],
    )
    def test_each_image_must_come_once(self, accelerator, indices: list[int]) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(RuntimeError, match="do not cover the 4 images once each"):
            metrics.gather(indices, self.rows(indices), 4, accelerator)

    @given(st.integers(0, 25), st.integers(1, 3), st.data())
    def test_uneven_processes_are_put_together(self, total: int, processes: int, data: st.DataObject) -> None:
        order = data.draw(st.permutations(range(total)))
        own = [order[rank::processes] for rank in range(processes)]
        for rank in range(processes):
            gathered = metrics.gather(own[rank], self.rows(own[rank]), total, SimulatedProcesses(self, own))
            assert torch.equal(gathered, self.rows(list(range(total))))


class SimulatedProcesses:
    """Several processes in one: pads and gathers as Accelerate does, from the indices of every process."""

    def __init__(self, test: TestGather, own: list[list[int]]) -> None:
        self.longest = max(map(len, own))
        self.all = [
            torch.cat([torch.tensor(indices, dtype=torch.float64)[:, None], test.rows(indices)], dim=1)
            for indices in own
        ]

    def pad_across_processes(self, rows: torch.Tensor, dim: int, pad_index: int) -> torch.Tensor:
        assert dim == 0
        return torch.cat([rows, rows.new_full((self.longest - len(rows), rows.shape[1]), pad_index)])

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        padded = [self.pad_across_processes(each, 0, -1) for each in self.all]
        assert any(torch.equal(rows, each) for each in padded)
        return torch.cat(padded)
