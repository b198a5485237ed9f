"""The limit of collective operations: short, except where processes wait for long work."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch.distributed

from runner.utils import long_wait


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[timedelta]:
    """The time limits that are set in torch."""
    limits: list[timedelta] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "set_timeout", limits.append, raising=False)
    monkeypatch.setattr(long_wait, "_timeout", long_wait.DEFAULT)
    return limits


def test_long_waits_nest_and_end_with_errors(limits: list[timedelta]) -> None:
    short = timedelta(minutes=1)
    long_wait.set_timeout(short)
    with long_wait.long_wait(), pytest.raises(ZeroDivisionError), long_wait.long_wait():
        raise ZeroDivisionError
    assert limits == [short, long_wait.LONG, long_wait.LONG, long_wait.LONG, short]


def test_a_longer_setting_counts(limits: list[timedelta]) -> None:
    long_wait.set_timeout(timedelta(hours=9))
    with long_wait.long_wait():
        assert limits[-1] == timedelta(hours=9)
