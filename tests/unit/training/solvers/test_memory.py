"""What does not fit into memory is refused by all processes, once nothing is left to drop."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from runner.training.setup import SharedSetup
from runner.training.solvers import memory
from runner.training.solvers.memory import check_memory
from runner.utils.errors import UserError

TOTAL = 4e6


def test_what_does_not_fit_is_refused() -> None:
    check_memory(1000, 100, lambda: None)
    with pytest.raises(UserError, match=r"pool less \(model\.pool\)"):
        check_memory(10_000_000, 100_000, lambda: None)


def test_what_can_be_dropped_is_dropped_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repetition or study must not be refused half-way, for what its first trainings keep."""
    shared = SharedSetup.of_trials()
    assert shared.products is not None
    shared.products.of(torch.rand(500, 10))
    table = shared.in_memory.table((Path("store"), 0, ""), 100, torch.Size([1000]), torch.float32)
    table.filled[:] = True
    products, tables = shared.products, shared.in_memory.tables

    def virtual_memory() -> SimpleNamespace:
        return SimpleNamespace(
            available=TOTAL - products.nbytes - sum(each.nbytes for each in tables.values())
        )

    monkeypatch.setattr(psutil, "virtual_memory", virtual_memory)
    check_memory(100, 100, shared.make_room)  # enough is free
    assert products.nbytes > 0
    check_memory(500, 100, shared.make_room)
    assert virtual_memory().available == TOTAL
    with pytest.raises(UserError, match="are free"):
        check_memory(5000, 100, shared.make_room)


def test_rank_0_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process that went on alone would wait for the others for ever."""
    dropped: list[str] = []
    monkeypatch.setattr(memory, "broadcast_object_list", lambda _: ["Rank 0 lacks memory."])
    with pytest.raises(UserError, match=r"Rank 0 lacks memory\."):
        check_memory(1, 1, lambda: dropped.append("features"))
    assert dropped == ["features"]
    monkeypatch.setattr(memory, "broadcast_object_list", lambda _: [""])
    check_memory(10_000_000, 100_000, lambda: dropped.append("again"))
    assert dropped == ["features"]
