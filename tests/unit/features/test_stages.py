"""Which processes of a launch compute features together: those of one host."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.features import stages
from runner.features.stages import StoredStages
from runner.tracking import process_identity
from runner.utils.console import Terminal

BOOT = "/proc/sys/kernel/random/boot_id"


def on_host(monkeypatch: pytest.MonkeyPatch, name: str, boot: str) -> str:
    """The digest that a process of such a host has."""
    read_text = Path.read_text

    def read(path: Path, *args: Any, **options: Any) -> str:
        return boot if str(path) == BOOT else read_text(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(process_identity.socket, "gethostname", lambda: name)
        patch.setattr(Path, "read_text", read)
        return process_identity.this_boot()


def test_hosts_with_the_same_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    first = on_host(monkeypatch, "localhost", "11111111")
    assert on_host(monkeypatch, "localhost", "11111111") == first
    assert on_host(monkeypatch, "localhost", "22222222") != first
    assert on_host(monkeypatch, "node-2", "11111111") != first


@pytest.mark.parametrize(("rank", "expected"), [(0, [0, 2]), (1, [1, 3]), (2, [0, 2]), (3, [1, 3])])
def test_the_processes_of_a_host_share_its_batches(
    rank: int, expected: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever the order of the ranks: MPI may deal them out to the hosts in turn."""
    extractor: Any = SimpleNamespace(accelerator=SimpleNamespace(process_index=rank))
    stored = StoredStages(tmp_path, extractor, SimpleNamespace(), Terminal(enabled=False))  # type: ignore[arg-type]
    monkeypatch.setattr(stages, "gather_object", lambda _: ["a", "b", "a", "b"])
    assert stored._host_ranks == expected
