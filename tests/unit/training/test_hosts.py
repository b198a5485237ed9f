"""The processes of a launch: what their hosts are called, and how they differ."""

from __future__ import annotations

import pytest

from runner.training import hosts
from runner.training.hosts import ProcessInfo, World, program_versions, raise_if_different
from runner.utils.errors import UserError

TWINS = [
    ProcessInfo("node", "boot 1", "10.0.0.1", "H100", "a"),
    ProcessInfo("node", "boot 1", "10.0.0.1", "H100", "b"),
    ProcessInfo("node", "boot 2", "10.0.0.2", "H100", "c"),
    ProcessInfo("other", "boot 3", "10.0.0.3", "cpu", "d"),
]


def test_hosts_of_one_name_are_numbered() -> None:
    world = World(TWINS)
    assert world.hosts == ["node#1", "node#2", "other"]
    assert world.labels == ["node#1 (rank 0)", "node#1 (rank 1)", "node#2 (rank 2)", "other (rank 3)"]
    assert world.tags() == {"runner.hosts": "node#1, node#2, other", "runner.world_size": "4"}
    assert world.describe() == {
        "hosts": {"node#1": ["H100", "H100"], "node#2": ["H100"], "other": ["cpu"]},
        "world_size": 4,
    }


def test_a_host_is_found_by_its_address_or_name() -> None:
    world = World(TWINS)
    assert world.label_at("10.0.0.2") == "node#2 (rank 2)"
    assert world.label_at("other") == "other (rank 3)"
    assert world.label_at("10.0.0.9") == ""


def test_a_host_alone_has_its_name() -> None:
    assert World(TWINS[:2]).hosts == ["node"]


def test_the_first_that_differs_is_named_with_its_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_world", World(TWINS))
    same = {"optim.lr": "0.1", "seed.train": "1"}
    raise_if_different("settings", [same] * 4)
    raise_if_different("data", [same, {}, {"seed.train": "1"}, same])
    with pytest.raises(UserError, match=r"The settings of this launch differ: other has another optim\.lr"):
        raise_if_different("settings", [same, same, same, {**same, "optim.lr": "0.5"}])
    many = {str(number): "2" for number in range(9)}
    with pytest.raises(UserError, match=r"node#2 has another 0 \(3 there, 2 on node#1\), .*, …;"):
        raise_if_different("data", [many, many, dict.fromkeys(many, "3"), many])


def test_the_version_of_the_code_is_that_of_its_files() -> None:
    versions = program_versions()
    assert versions == program_versions()
    assert len(versions["version of the runner's code"]) == 8
    assert "torch" in versions
