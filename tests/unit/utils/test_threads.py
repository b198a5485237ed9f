"""Results of threads come in the order of the items, and not too many in advance."""

from __future__ import annotations

import time

import pytest

from runner.utils.threads import map_in_threads


def test_results_are_in_the_order_of_the_items() -> None:
    def slow_if_even(number: int) -> int:
        time.sleep(0.01 * (number % 2 == 0))
        return number**2

    assert list(map_in_threads(slow_if_even, range(20), 4, 8)) == [(n, n**2) for n in range(20)]
    assert list(map_in_threads(slow_if_even, [], 4, 8)) == []


def test_items_are_started_only_a_few_ahead() -> None:
    started: list[int] = []
    results = map_in_threads(started.append, range(100), 2, 5)
    next(results)
    time.sleep(0.05)
    assert len(started) <= 6
    results.close()  # type: ignore[attr-defined]  # it is a generator
    assert len(started) <= 6, "the remaining items are not processed"


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(lambda number: 1 // number, [1, 0, 1], 2, 2))
