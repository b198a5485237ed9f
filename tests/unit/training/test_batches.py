"""The order of an epoch's images, and the shares of processes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from runner.training.batches import class_weights, epoch_batches, micro_batches


def order(labels: Tensor, batch_size: int, sampling: str, seed: int = 0, epoch: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch in epoch_batches(labels, batch_size, sampling, seed, epoch)]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5))
def test_shuffled_is_a_permutation_in_full_batches(count: int, size: int, epoch: int) -> None:
    batches = order(torch.zeros(count, dtype=torch.long), size, "shuffled", epoch=epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(count))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert len(batches) == math.ceil(count / size)


@pytest.mark.parametrize("sampling", ["shuffled", "balanced"])
def test_the_order_is_a_function_of_seed_and_epoch(sampling: str) -> None:
    labels = torch.arange(50) % 3
    torch.manual_seed(1)
    first = order(labels, 8, sampling, 3, 4)
    torch.manual_seed(2)
    assert order(labels, 8, sampling, 3, 4) == first
    assert order(labels, 8, sampling, 3, 5) != first
    assert order(labels, 8, sampling, 4, 4) != first


def test_the_batch_size_does_not_change_the_order() -> None:
    labels = torch.arange(50) % 3
    large, small = (
        [index for batch in order(labels, size, "shuffled") for index in batch] for size in (32, 7)
    )
    assert large == small


def test_balanced_draws_every_class_equally_often() -> None:
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    drawn = [
        index
        for epoch in range(3)
        for batch in order(labels, 100, "balanced", epoch=epoch)
        for index in batch
    ]
    assert len(drawn) == 3000
    counts = torch.bincount(labels[drawn], minlength=3)
    assert all(900 < count < 1100 for count in counts.tolist())
    assert len({index for index in drawn if labels[index] == 2}) == 10


@given(st.integers(0, 40), st.integers(1, 3), st.integers(1, 3))
def test_micro_batches_of_all_processes_cover_a_batch_in_order(
    count: int, processes: int, accumulate: int
) -> None:
    batch = np.arange(count) * 7
    ranks = [SimpleNamespace(num_processes=processes, process_index=rank) for rank in range(processes)]
    parts = [list(micro_batches(batch, accumulate, rank)) for rank in ranks]  # type: ignore[arg-type]
    in_order = [parts[rank][number].indices for number in range(accumulate) for rank in range(processes)]
    assert np.concatenate(in_order).tolist() == batch.tolist()
    lengths = [len(indices) for indices in in_order]
    assert max(lengths) - min(lengths) <= 1
    for own in parts:
        assert [part.last for part in own] == [False] * (accumulate - 1) + [True]


def test_class_weights_are_scikit_learns_balanced() -> None:
    labels = np.array([0] * 7 + [1] * 2 + [2] * 11)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights(torch.tensor(labels), 3).tolist() == pytest.approx(expected.tolist())
