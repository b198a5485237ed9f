"""Which processes of a launch compute features together: those that see the same cache."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from runner.features import cache_hosts
from runner.features.cache_hosts import CacheHosts, find_cache_hosts
from runner.tracking import process_identity
from runner.utils.errors import UserError

BOOT = "/proc/sys/kernel/random/boot_id"


def on_host(monkeypatch: pytest.MonkeyPatch, name: str, boot: str) -> str:
    """The digest that a process of such a host has."""
    read_text = Path.read_text

    def read(path: Path, *args: Any, **options: Any) -> str:
        return boot if str(path) == BOOT else read_text(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(process_identity.socket, "gethostname", lambda: name)
        patch.setattr(Path, "read_text", read)
        return process_identity.this_host()


def test_hosts_with_the_same_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    first = on_host(monkeypatch, "localhost", "11111111")
    assert on_host(monkeypatch, "localhost", "11111111") == first
    assert on_host(monkeypatch, "localhost", "22222222") != first
    assert on_host(monkeypatch, "node-2", "11111111") != first


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`find(hosts, roots)`: what each rank finds, on its host and with its cache. A thread plays each rank."""

    def run(
        hosts: Sequence[str], roots: Sequence[Path], recipes: Sequence[str] | None = None
    ) -> list[CacheHosts]:
        barrier, here = threading.Barrier(len(hosts)), threading.local()
        contributions: list[Any] = [None] * len(hosts)
        results: list[Any] = [None] * len(hosts)

        def gather(values: list[Any]) -> list[Any]:
            (contributions[here.rank],) = values
            barrier.wait(60)
            gathered = [*contributions]
            barrier.wait(60)
            return gathered

        def play(rank: int) -> None:
            here.rank = rank
            results[rank] = find_cache_hosts(roots[rank], rank, recipes[rank] if recipes else "")

        monkeypatch.setattr(cache_hosts, "gather_object", gather)
        monkeypatch.setattr(cache_hosts, "this_host", lambda: f"boot of {hosts[here.rank]}")
        monkeypatch.setattr(cache_hosts.socket, "gethostname", lambda: hosts[here.rank])
        threads = [threading.Thread(target=play, args=(rank,)) for rank in range(len(hosts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results

    return run


def test_without_a_shared_cache_each_host_computes_for_itself(find: Any, tmp_path: Path) -> None:
    """Whatever the order of the ranks: MPI may deal them out to the hosts in turn."""
    roots = [tmp_path / "a", tmp_path / "b"] * 2
    found = find(["a", "b", "a", "b"], roots)
    assert [hosts.ranks for hosts in found] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert {hosts.count for hosts in found} == {1}
    for hosts in found:
        with pytest.raises(
            UserError, match=r"features\.shared is true, but b cannot see what the first host"
        ):
            hosts.require_one_cache(tmp_path)
    assert [*tmp_path.glob("*/*")] == []


def test_hosts_with_one_cache_compute_together(find: Any, tmp_path: Path) -> None:
    found = find(["a", "b", "c", "b"], [tmp_path, tmp_path, tmp_path / "of c", tmp_path])
    assert [hosts.ranks for hosts in found] == [[0, 1, 3], [0, 1, 3], [2], [0, 1, 3]]
    assert [hosts.count for hosts in found] == [2, 2, 1, 2]
    assert {(*hosts.without_first_cache,) for hosts in found} == {("c",)}
    find(["a", "b"], [tmp_path, tmp_path])[1].require_one_cache(tmp_path)


def test_hosts_whose_processors_differ_compute_for_themselves(find: Any, tmp_path: Path) -> None:
    found = find(["a", "b", "c"], [tmp_path] * 3, ["amx", "avx2", "amx"])
    assert [hosts.ranks for hosts in found] == [[0, 2], [1], [0, 2]]
    assert {(*hosts.with_other_features,) for hosts in found} == {("b",)}
    assert found[1].without_first_cache == []


def test_a_host_that_cannot_write_computes_for_itself(find: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = find(["a", "b"], [tmp_path, tmp_path / "file" / "cache"])
    assert [hosts.ranks for hosts in found] == [[0], [1]]


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE])
def test_a_host_that_may_not_look_computes_for_itself(
    find: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Not as an error, which would be one host's alone: the others would wait for it."""
    exists, closed = Path.exists, tmp_path / "closed"

    def refuse(path: Path) -> bool:
        if path.is_relative_to(closed):
            raise OSError(number, os.strerror(number), str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", refuse)
    found = find(["a", "b", "a"], [tmp_path, closed, tmp_path])
    assert [hosts.ranks for hosts in found] == [[0, 2], [1], [0, 2]]


def test_one_host_writes_nothing(find: Any, tmp_path: Path) -> None:
    found = find(["a", "a"], [tmp_path / "cache"] * 2)
    assert [(hosts.ranks, hosts.count) for hosts in found] == [([0, 1], 1)] * 2
    assert not (tmp_path / "cache").exists()
