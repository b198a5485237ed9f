"""Calls a function on many items in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Iterator[tuple[Item, Result]]:
    """Each item with the function's result, in the order of the items.

    At most `ahead` items are processed before the caller takes them, so that results do not fill the memory.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        pending = deque((item, pool.submit(function, item)) for item in islice(remaining, ahead))
        try:
            while pending:
                item, future = pending.popleft()
                pending.extend(
                    (following, pool.submit(function, following)) for following in islice(remaining, 1)
                )
                yield item, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
