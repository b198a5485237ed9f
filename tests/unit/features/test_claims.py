"""Claims on features: who gets one, and when it no longer counts."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import DEAD, wait_for

from runner.features import claims as claims_module
from runner.features.claims import LEASE, Claims
from runner.tracking.process_identity import ProcessIdentity

ELSEWHERE = ProcessIdentity("node-7/abcd/1", 1, 1.0)


def write_claim(folder: Path, name: str, owner: ProcessIdentity = ELSEWHERE, age: float = 0.0) -> Path:
    """A claim of another process, which gave its last sign of life `age` seconds ago."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(dataclasses.asdict(owner) | {"token": "of the other"}))
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "claims"


@pytest.mark.parametrize(("mine", "theirs"), [("", ""), ("01", "01"), ("", "10"), ("10", ""), ("011", "01")])
def test_overlapping_parts_have_one_owner(folder: Path, mine: str, theirs: str) -> None:
    first, second = Claims(folder), Claims(folder)
    assert first.claim(0, [mine]) == [mine]
    assert second.claim(0, [theirs]) == []
    assert [claim.bits for claim in second.others(0)] == [mine]
    first.release()
    assert second.others(0) == []
    assert second.claim(0, [theirs]) == [theirs]
    second.release()
    assert [*folder.iterdir()] == []


def test_what_does_not_overlap_is_free(folder: Path) -> None:
    first, second = Claims(folder), Claims(folder)
    assert first.claim(0, ["00", "01"]) == ["00", "01"]
    assert second.claim(0, ["01", "1", "00"]) == ["1"]
    assert second.claim(-1, [""]) == [""], "another view"
    assert first.others(0)[0].host_name
    assert {claim.bits for claim in first.others(0)} == {"1"}
    first.release()
    second.release()


def test_a_claim_counts_for_the_time_of_the_lease(folder: Path) -> None:
    path = write_claim(folder, "0.", age=LEASE - 10)
    assert Claims(folder).claim(0, ["11"]) == []
    write_claim(folder, "0.", age=LEASE + 1)
    mine = Claims(folder)
    assert mine.claim(0, ["11"]) == ["11"]
    assert not path.exists()
    mine.release()


@pytest.mark.parametrize("hours", [-1, 1])
def test_the_clocks_of_hosts_do_not_matter(folder: Path, hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_claim(folder, "0.01", age=LEASE - 10)
    write_claim(folder, "0.10", age=LEASE + 1)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + hours * 3600)
    assert [claim.bits for claim in Claims(folder).others(0)] == ["01"]


def test_a_dead_process_of_this_host_claims_nothing(folder: Path) -> None:
    write_claim(folder, "0.", owner=DEAD)
    mine = Claims(folder)
    assert mine.others(0) == []
    assert mine.claim(0, [""]) == [""]
    mine.release()


def test_a_damaged_claim_counts_until_its_lease_ends(folder: Path) -> None:
    path = write_claim(folder, "0.1")
    path.write_text("{")
    (folder / "what is this").touch()
    assert [claim.host_name for claim in Claims(folder).others(0)] == ["an unknown host"]
    os.utime(path, (0, 0))
    assert Claims(folder).others(0) == []


def test_the_owner_renews_its_claim(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "RENEWAL", 0.01)
    mine = Claims(folder)
    mine.claim(0, ["1"])
    os.utime(folder / "0.1", (0, 0))
    wait_for(lambda: (folder / "0.1").stat().st_mtime > 0)
    mine.release()


def test_an_owner_that_was_stopped_leaves_its_successor_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[int] = []
    renew = Claims._renew
    monkeypatch.setattr(claims_module, "RENEWAL", 0.01)
    monkeypatch.setattr(Claims, "_renew", lambda self: (renew(self), beats.append(1)))
    mine = Claims(folder)
    mine.claim(0, ["1"])
    path = write_claim(folder, "0.1", age=10)
    before, seen = path.stat().st_mtime, len(beats)
    wait_for(lambda: len(beats) > seen + 2)
    assert path.stat().st_mtime == before
    mine.release()
    assert path.exists()


def test_a_new_claim_is_not_taken_for_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process replaces the ended claim just before this one removes it."""
    path = write_claim(folder, "0.1", age=LEASE + 1)
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        if self == path:
            path.write_text(path.read_text().replace("of the other", "of a third"))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert Claims(folder).others(0) == []
    assert "of a third" in path.read_text()


def test_two_lengths_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both looked before either had claimed; then one of them at least goes away."""
    first, second = Claims(folder), Claims(folder)
    others = Claims.others
    held: list[list[str]] = []

    def meanwhile(self: Claims, view: int) -> Any:
        if self is first and not held:
            held.append(second.claim(0, ["01"]))
        return others(self, view)

    monkeypatch.setattr(Claims, "others", meanwhile)
    assert [first.claim(0, ["0"]), *held] == [["0"], []]
    first.release()


def test_no_two_threads_ever_hold_overlapping_parts(folder: Path) -> None:
    parts = ["", *("".join(bits) for n in (1, 2, 3) for bits in itertools.product("01", repeat=n))]
    holders: dict[int, list[str]] = {}
    lock, problems, successes = threading.Lock(), [], []

    def work(number: int) -> None:
        draw, claims = random.Random(number), Claims(folder)
        for _ in range(30):
            chosen = draw.choice(parts)
            if not claims.claim(0, [chosen]):
                continue
            with lock:
                for other in itertools.chain(*holders.values()):
                    if other.startswith(chosen) or chosen.startswith(other):
                        problems.append((chosen, other))
                holders[number] = [chosen]
                successes.append(chosen)
            time.sleep(draw.uniform(0, 0.002))
            with lock:
                del holders[number]
            claims.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert problems == []
    assert successes


def refuse(_source: Path, _target: Path) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def send_twice(source: Path, target: Path, link: Callable[..., None] = os.link) -> None:
    link(source, target)
    link(source, target)


@pytest.mark.parametrize("link", [refuse, send_twice])
def test_file_systems_with_other_links(folder: Path, link: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has no hard links; a network file system sends a request again whose answer was lost."""
    monkeypatch.setattr(os, "link", link)
    first, second = Claims(folder), Claims(folder)
    assert first.claim(0, ["1"]) == ["1"]
    assert second.claim(0, ["1"]) == []
    first.release()
    assert [*folder.iterdir()] == []


def test_what_killed_processes_left_is_removed(folder: Path) -> None:
    old, new = folder / ".abc.new", folder / ".def.new"
    folder.mkdir()
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    assert Claims(folder).others(0) == []
    assert not old.exists()
    assert new.exists()
