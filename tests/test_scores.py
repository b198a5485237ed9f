"""Scores against scikit-learn, ties, numbers that are none, and a gathering that leaves nothing out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics

from runner.evaluation import metrics as scores
from runner.evaluation.metrics import Scores

pytestmark = [
    pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true"),
    pytest.mark.filterwarnings("ignore:A single label was found"),
]


def scored(logits: object, labels: list[int]) -> Scores:
    values = torch.as_tensor(logits)
    return scores.count(scores.judge(values, torch.tensor(labels)), labels, values.shape[1])


@st.composite
def judged(draw: st.DrawFn, ties: bool = False) -> tuple[np.ndarray, list[int]]:
    """Logits (n × classes) and labels; without ties no two logits are equal."""
    images, classes = draw(st.integers(1, 12)), draw(st.integers(2, 9))
    numbers = (
        st.integers(-2, 2).map(float) if ties else st.integers(-8000, 8000).map(lambda each: each / 1000)
    )
    logits = draw(arrays(np.float64, (images, classes), elements=numbers, unique=not ties))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=images, max_size=images))
    return logits, labels


class TestAgainstScikitLearn:
    @settings(deadline=None, max_examples=60)
    @given(judged())
    def test_top1_is_accuracy(self, case: tuple[np.ndarray, list[int]]) -> None:
        logits, labels = case
        ours = scored(logits, labels)
        assert ours.top1 == pytest.approx(metrics.accuracy_score(labels, logits.argmax(1)), abs=1e-12)
        assert ours.hits1 == metrics.accuracy_score(labels, logits.argmax(1), normalize=False)
        assert ours.images == len(labels)

    @settings(deadline=None, max_examples=60)
    @given(judged())
    def test_top5_is_top_k_accuracy(self, case: tuple[np.ndarray, list[int]]) -> None:
        logits, labels = case
        classes = logits.shape[1]
        assume(classes > 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about fewer than six classes, where every answer is right
            expected = metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(classes))
        ours = scored(logits, labels)
        assert ours.top5 == pytest.approx(expected, abs=1e-12)
        assert ours.hits5 == round(expected * len(labels))

    @settings(deadline=None, max_examples=60)
    @given(judged())
    def test_recall_is_balanced_accuracy(self, case: tuple[np.ndarray, list[int]]) -> None:
        logits, labels = case
        predicted = logits.argmax(1)
        ours = scored(logits, labels).balanced_accuracy
        assert ours == pytest.approx(metrics.balanced_accuracy_score(labels, predicted), abs=1e-12)
        present = sorted(set(labels))
        macro = metrics.recall_score(labels, predicted, labels=present, average="macro")
        assert ours == pytest.approx(macro, abs=1e-12)

    @settings(deadline=None, max_examples=60)
    @given(judged(ties=True))
    def test_loss_is_log_loss(self, case: tuple[np.ndarray, list[int]]) -> None:
        logits, labels = case
        odds = np.exp(logits)
        shares = odds / odds.sum(1, keepdims=True)
        expected = metrics.log_loss(labels, shares, labels=range(logits.shape[1]))
        assert scored(logits, labels).loss == pytest.approx(expected, rel=1e-9)

    def test_of_known_numbers(self) -> None:
        ours = scored([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], [0, 2, 1, 0])
        assert (ours.hits1, ours.hits5, ours.images) == (2, 4, 4)
        assert ours.balanced_accuracy == pytest.approx((1 / 2 + 0 + 1) / 3)
        log_sum = np.log(1 + np.e + np.e**2)
        assert ours.loss == pytest.approx(((log_sum - 2) * 2 + (log_sum - 1) + log_sum) / 4)


class TestTies:
    @settings(deadline=None, max_examples=60)
    @given(judged(ties=True))
    def test_smaller_index_comes_first(self, case: tuple[np.ndarray, list[int]]) -> None:
        logits, labels = case
        ranks = scores.judge(torch.tensor(logits), torch.tensor(labels))[:, 1].tolist()
        for row, label, rank in zip(logits, labels, ranks, strict=True):
            order = sorted(range(len(row)), key=lambda place: (-row[place], place))
            assert rank == order.index(label)

    @pytest.mark.parametrize(("label", "rank"), [(0, 0), (1, 1), (5, 5)])
    def test_equal_logits_do_not_all_win(self, label: int, rank: int) -> None:
        found = scores.judge(torch.zeros(1, 7), torch.tensor([label]))
        assert found[0, 1] == rank

    def test_one_answer_for_all_is_right_for_one_class(self) -> None:
        ours = scored(torch.zeros(14, 7), [*range(7), *range(7)])
        assert ours.hits1 == 2
        assert ours.hits5 == 10
        assert ours.balanced_accuracy == pytest.approx(1 / 7)


class TestNumbersThatAreNone:
    @pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("classes", [2, 3, 5, 6, 101])
    @pytest.mark.parametrize("place", [0, 1])
    def test_they_are_wrong_in_every_score(self, number: float, classes: int, place: int) -> None:
        logits = torch.zeros(1, classes)
        logits[0, 0] = 1.0
        logits[0, place] = number
        ours = scored(logits, [0])
        assert (ours.hits1, ours.hits5, ours.balanced_accuracy) == (0, 0, 0)

    def test_all_nan_is_wrong(self) -> None:
        ours = scored(torch.full((3, 3), torch.nan), [0, 1, 2])
        assert (ours.hits1, ours.top1, ours.top5, ours.balanced_accuracy) == (0, 0, 0, 0)
        assert not np.isfinite(ours.loss)

    def test_other_images_are_judged_as_before(self) -> None:
        logits = torch.eye(8)
        logits[3] = torch.nan
        ours = scored(logits, list(range(8)))
        assert (ours.hits1, ours.hits5, ours.images) == (7, 7, 8)


class TestCount:
    def test_class_without_images_does_not_enter_the_recall(self) -> None:
        logits = torch.eye(5)[[0, 0, 1]]
        assert scored(logits, [0, 1, 1]).balanced_accuracy == pytest.approx((1 + 1 / 2) / 2)

    def test_metrics_and_fields_have_their_names(self) -> None:
        ours = scored(torch.eye(6)[[0, 1, 2, 0]], [0, 1, 2, 3])
        assert ours.metrics("val") == {
            "val/loss": ours.loss,
            "val/top1": 0.75,
            "val/top5": 1.0,
            "val/balanced_accuracy": 0.75,
        }
        assert Scores(**ours.as_dict()) == ours

    def test_half_precision_logits_are_judged_in_double(self) -> None:
        found = scores.judge(torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16), torch.tensor([1]))
        assert found.dtype == torch.float64
        assert found[0, 0].item() == pytest.approx(np.log1p(np.exp(-1)), rel=1e-12)


class TestGather:
    def rows(self, places: list[int]) -> torch.Tensor:
        return torch.tensor([[place + 0.5, place, 0.0] for place in places], dtype=torch.float64).reshape(
            -1, 3
        )

    def test_order_is_that_of_the_split(self, accelerator) -> None:  # type: ignore[no-untyped-def]
        places = [4, 0, 3, 1, 2]
        found = scores.gather(places, self.rows(places), 5, accelerator)
        assert torch.equal(found, self.rows([0, 1, 2, 3, 4]))

    @pytest.mark.parametrize(
        "places",
        [[0, 1, 2], [1, 2, 3], [0, 1, 3, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 4], []],
        ids=["last missing", "first missing", "one for another", "one twice", "one too many", "none"],
    )
    def test_anything_but_each_image_once_is_refused(self, accelerator, places: list[int]) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(RuntimeError, match="do not cover the 4 images once each"):
            scores.gather(places, self.rows(places), 4, accelerator)

    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 25), st.integers(1, 3), st.data())
    def test_uneven_processes_are_put_together(self, total: int, processes: int, data: st.DataObject) -> None:
        order = data.draw(st.permutations(range(total)))
        own = [order[rank::processes] for rank in range(processes)]
        for rank in range(processes):
            found = scores.gather(own[rank], self.rows(own[rank]), total, Together(self, own))
            assert torch.equal(found, self.rows(list(range(total))))


class Together:
    """Several processes in one: pads and gathers as Accelerate does, from every process's places."""

    def __init__(self, test: TestGather, own: list[list[int]]) -> None:
        self.longest = max(map(len, own))
        self.all = [
            torch.cat([torch.tensor(places, dtype=torch.float64)[:, None], test.rows(places)], dim=1)
            for places in own
        ]

    def pad_across_processes(self, rows: torch.Tensor, dim: int, pad_index: int) -> torch.Tensor:
        assert dim == 0
        return torch.cat([rows, rows.new_full((self.longest - len(rows), rows.shape[1]), pad_index)])

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        padded = [self.pad_across_processes(each, 0, -1) for each in self.all]
        assert any(torch.equal(rows, each) for each in padded)
        return torch.cat(padded)
