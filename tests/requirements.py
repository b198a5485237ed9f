"""Tests of what not every machine can do are skipped there, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

import pytest

from benchmarks.support.requirements import MissingRequirementError

Entered = TypeVar("Entered")


@contextmanager
def or_skip(context: AbstractContextManager[Entered]) -> Iterator[Entered]:
    """Enter a context. Skips the test where this machine lacks what it needs."""
    with ExitStack() as stack:
        try:
            entered = stack.enter_context(context)
        except MissingRequirementError as error:
            pytest.skip(str(error))
        yield entered
