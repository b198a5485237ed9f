"""Whether a process still runs, seen from its host and from others."""

from __future__ import annotations

import dataclasses
import os

import pytest
from stores import DEAD

from runner.tracking.process_identity import ProcessIdentity, is_earlier_boot, this_host


def test_a_process_is_known_by_more_than_its_id() -> None:
    """Ids are reused: a process that started at another time is another process."""
    process = ProcessIdentity.current()
    assert process.pid == os.getpid()
    assert process.alive
    assert not dataclasses.replace(process, started=process.started - 100).alive
    assert not DEAD.alive


def test_a_process_of_another_host_counts_as_alive() -> None:
    assert dataclasses.replace(DEAD, host="another-host").alive


def test_tags_name_a_process() -> None:
    process = ProcessIdentity.current()
    assert ProcessIdentity.from_tags(process.tags()) == process


@pytest.mark.parametrize("name", ["runner.host", "runner.pid", "runner.started"])
def test_missing_tags_name_no_process(name: str) -> None:
    tags = DEAD.tags()
    del tags[name]
    assert ProcessIdentity.from_tags(tags) is None


@pytest.mark.parametrize(
    ("name", "value"), [("runner.pid", "mine"), ("runner.pid", "-1"), ("runner.started", "yesterday")]
)
def test_tags_that_a_person_changed_name_no_process(name: str, value: str) -> None:
    assert ProcessIdentity.from_tags({**DEAD.tags(), name: value}) is None


def test_the_host_is_the_same_at_each_call() -> None:
    assert this_host() == this_host() != ""


def test_a_boot_is_part_of_the_host_and_an_earlier_one_is_recognized() -> None:
    machine, _, boot = this_host().rpartition("/")
    assert len(boot) == 8
    assert is_earlier_boot(f"{machine}/00000000")
    assert is_earlier_boot(machine)
    assert not is_earlier_boot(this_host())
    assert not is_earlier_boot(f"another-{machine}/00000000")
