"""The champion if several hosts register at the same time: their requests in all orders, with kills in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
from interleavings import NOW, Ending, Interleavings, Process, Registry, RegistryClient, Version
from mlflow.exceptions import MlflowException
from stores import FailingClient

from runner.config.identity import MANIFEST_TAG
from runner.tracking import champion
from runner.tracking.champion import (
    NEWEST_TAG,
    SCORE_TAG,
    STATE_TAG,
    ComparisonBase,
    decide_champion,
    make_champion,
    read_comparison_base,
)

NAME = "crown"


def tags_of(score: float, manifest: str = "m", metric: str = "top1") -> dict[str, str]:
    return {SCORE_TAG: f"val/{metric} {score!r}", MANIFEST_TAG: manifest}


def registering(run: str, score: float, manifest: str = "m") -> Process:
    """Register the model of a run as `register_model` does: also if it was begun before."""

    def process(client: Any) -> str:
        known = client.search_model_versions(f"run_id = '{run}'")
        if known:
            return decide_champion(client, known[0])
        base = read_comparison_base(client, NAME, manifest)
        return decide_champion(
            client, client.create_model_version(run, {**tags_of(score, manifest), **base.tags()})
        )

    return process


def registry(*scores: float, best: int = 1) -> Registry:
    """A registry with versions of earlier runs, which are named 1, 2, …"""
    versions = tuple(Version(number, tags_of(score), str(number)) for number, score in enumerate(scores, 1))
    return Registry(versions, {"champion": best, "champion-m": best} if scores else {})


def best_version(versions: Iterable[Version], manifest: str = "m") -> int:
    """The version with the highest score; of equal ones the earlier."""
    scores = {
        each.version: float(each.tags[SCORE_TAG].split()[1])
        for each in versions
        if each.tags[MANIFEST_TAG] == manifest
    }
    return max(scores, key=lambda version: (scores[version], -version))


def is_right(ending: Ending) -> bool:
    found, messages = ending
    best = best_version(found.versions)
    return found.aliases == {"champion": best, "champion-m": best} and not any(
        "keep changing" in message for message in messages
    )


def wrong_endings(endings: Iterable[Ending]) -> list[Ending]:
    """Those in which another than the best version is the champion."""
    all_of_them = list(endings)
    assert all_of_them
    return [ending for ending in all_of_them if not is_right(ending)]


SCORES = [(0.6, 0.4), (0.6, 0.6)]


@pytest.mark.parametrize("scores", SCORES)
def test_the_better_of_two_is_the_champion_in_any_order(scores: tuple[float, float]) -> None:
    a, b = scores
    orders = Interleavings(registry(), [registering("a", a), registering("b", b)])
    assert wrong_endings(orders.all_endings()) == []


@pytest.mark.parametrize("before", [0.3, 0.5, 0.6, 0.9])
def test_an_earlier_champion_is_compared(before: float) -> None:
    orders = Interleavings(registry(before), [registering("a", 0.6), registering("b", 0.4)])
    assert wrong_endings(orders.all_endings()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scores", "earlier"),
    [((0.6, 0.4), ()), ((0.6, 0.6), ()), ((0.6, 0.4), (0.5,)), ((0.6, 0.7), (0.5,))],
)
def test_a_killed_one_whose_model_is_delivered_again(
    scores: tuple[float, float], earlier: tuple[float, ...]
) -> None:
    """It may be killed behind any write: of the version, of an alias, of a tag."""
    a, b = scores
    orders = Interleavings(registry(*earlier), [registering("a", a), registering("b", b)], kills=1)
    assert wrong_endings(orders.all_endings()) == []


@pytest.mark.slow
def test_both_are_killed() -> None:
    orders = Interleavings(registry(), [registering("a", 0.6), registering("b", 0.6)], kills=2)
    assert wrong_endings(orders.all_endings()) == []


@pytest.mark.slow
def test_four_at_once() -> None:
    runs = [registering(run, score) for run, score in zip("abcd", (0.6, 0.4, 0.7, 0.5), strict=True)]
    orders = Interleavings(registry(0.55), runs, kills=2)
    assert wrong_endings(orders.drawn_endings(300)) == []


@pytest.mark.slow
def test_images_have_their_champions_at_once() -> None:
    """The overall champion is that of one of them, whichever was the first."""
    runs = [
        registering("a", 0.6),
        registering("b", 0.4),
        registering("c", 0.2, "n"),
        registering("d", 0.3, "n"),
    ]
    for found, messages in Interleavings(registry(), runs, kills=1).drawn_endings(300):
        bests = {manifest: best_version(found.versions, manifest) for manifest in "mn"}
        assert {manifest: found.aliases[f"champion-{manifest}"] for manifest in "mn"} == bests, messages
        assert found.aliases["champion"] in bests.values(), messages


# The test finds what simpler rules do wrong


def without_a_lock(run: str, score: float) -> Process:
    """Compares with the champion once, and sets the alias."""

    def process(client: Any) -> str:
        version = client.create_model_version(run, tags_of(score))
        best = client.get_registered_model(NAME).aliases.get("champion")
        other = client.get_model_version(NAME, str(best)) if best else None
        if other is None or score > float(other.tags[SCORE_TAG].split()[1]):
            for alias in ("champion", "champion-m"):
                client.set_registered_model_alias(NAME, alias, version.version)
        return ""

    return process


def test_a_simple_comparison_is_found_wrong() -> None:
    orders = Interleavings(registry(), [without_a_lock("a", 0.6), without_a_lock("b", 0.4)])
    assert any(not is_right(ending) for ending in orders.all_endings())


def test_without_pending_versions_it_is_found_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins when the first has its version, and not yet its alias: then it does not compare with it."""
    monkeypatch.setattr(champion, "_pending", lambda *_: [])
    orders = Interleavings(registry(), [registering("a", 0.6), registering("b", 0.4)])
    assert any(not is_right(ending) for ending in orders.all_endings())


def test_without_reading_again_it_is_found_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(champion, "ROUNDS", 1)
    orders = Interleavings(registry(), [registering("a", 0.6), registering("b", 0.4)])
    assert any(not is_right((found, [])) for found, _ in orders.all_endings())


@pytest.mark.parametrize("first", ["other", "nobody"])
def test_an_alias_that_two_set_at_once_is_set_again(first: str) -> None:
    """MLflow adds a new alias for one of them, and answers the other with an error."""
    client = RegistryClient(Registry(registry(0.5).versions))
    set_alias = client.set_registered_model_alias

    def refuse_new(name: str, alias: str, number: Any) -> None:
        if alias == "champion-m" and alias not in client.registry.aliases:
            if first == "other":
                set_alias(name, alias, 1)
            raise MlflowException("UNIQUE constraint failed")
        set_alias(name, alias, number)

    vars(client)["set_registered_model_alias"] = refuse_new
    if first == "other":
        registering("a", 0.6)(client)
        assert client.registry.aliases == {"champion": 2, "champion-m": 2}
    else:
        with pytest.raises(MlflowException, match="UNIQUE"):
            registering("a", 0.6)(client)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (0.4, "version 2 is the new champion (val/loss 0.4000 against 0.5000 of version 1)"),
        (0.6, "the champion stays (val/loss 0.6000 against 0.5000 of version 1)"),
    ],
)
def test_a_champion_by_loss_has_the_lowest(loss: float, message: str) -> None:
    first = Version(1, tags_of(0.5, metric="loss"), "1")
    client: Any = RegistryClient(Registry((first,), {"champion": 1, "champion-m": 1}))
    base = read_comparison_base(client, NAME, "m")
    second = client.create_model_version("2", {**tags_of(loss, metric="loss"), **base.tags()})
    assert message in decide_champion(client, second)


# A choice by hand


def break_off(
    client: RegistryClient, run: str, score: float, behind: str = "set_registered_model_alias"
) -> None:
    failing: Any = FailingClient(client, 1, (behind,), after=True)
    with pytest.raises(ConnectionError):
        registering(run, score)(failing)


@pytest.mark.parametrize("behind", ["create_model_version", "set_registered_model_alias"])
def test_a_repeated_delivery_does_not_undo_a_choice(behind: str) -> None:
    client: Any = RegistryClient(registry(0.5, 0.8, best=2))
    break_off(client, "a", 0.9, behind)
    make_champion(client, "1")
    message = registering("a", 0.9)(client)
    assert message == "model 'crown' version 3 is registered; the champion is version 1 now"
    assert client.registry.aliases == {"champion": 1, "champion-m": 1}
    assert "version 4 is the new champion (val/top1 0.6000 against 0.5000 of version 1)" in (
        registering("b", 0.6)(client)
    )


def test_a_choice_in_the_user_interface_is_respected() -> None:
    """While the registration of a run is interrupted."""
    client: Any = RegistryClient(registry(0.5, 0.8, best=2))
    break_off(client, "a", 0.9)
    for alias in ("champion", "champion-m"):
        client.set_registered_model_alias(NAME, alias, 1)
    assert "the champion stays (val/top1 0.4000 against 0.5000 of version 1)" in registering("b", 0.4)(client)
    assert "the champion is version 1 now" in registering("a", 0.9)(client)
    assert client.registry.aliases == {"champion": 1, "champion-m": 1}


def test_a_choice_in_the_user_interface_is_what_the_next_run_is_compared_with() -> None:
    client: Any = RegistryClient(registry(0.5, 0.8, best=2))
    break_off(client, "a", 0.9)
    for alias in ("champion", "champion-m"):
        client.set_registered_model_alias(NAME, alias, 1)
    assert "version 4 is the new champion (val/top1 0.6000 against 0.5000 of version 1)" in (
        registering("b", 0.6)(client)
    )


def test_a_choice_among_models_that_register_at_once_is_final() -> None:
    client: Any = RegistryClient(registry(0.5))
    break_off(client, "a", 0.9, "create_model_version")
    assert "the champion stays (val/top1 0.6000 against 0.9000 of version 2)" in registering("b", 0.6)(client)
    make_champion(client, "b")
    assert "the champion is version 3 now" in registering("a", 0.9)(client)
    assert client.registry.aliases == {"champion": 3, "champion-m": 3}


def test_an_overall_champion_that_was_chosen_stays_until_there_is_a_better_one() -> None:
    client: Any = RegistryClient(registry(0.5, 0.8, best=2))
    client.set_registered_model_alias(NAME, "champion", 1)
    registering("a", 0.6)(client)
    assert client.registry.aliases == {"champion": 1, "champion-m": 2}
    registering("b", 0.9)(client)
    assert client.registry.aliases == {"champion": 4, "champion-m": 4}


def test_a_model_that_is_passed_over_is_not_compared_again() -> None:
    client: Any = RegistryClient(registry(0.9, 0.5, best=2))
    assert "version 3 is the new champion" in registering("a", 0.6)(client)


# Versions that are pending


def test_a_lost_host_is_not_waited_for_for_ever() -> None:
    pending = Version(3, {**tags_of(0.9), **ComparisonBase(1, 1).tags()}, "a")
    before = registry(0.5, 0.8)
    client: Any = RegistryClient(dataclasses.replace(before, versions=(*before.versions, pending)))
    assert read_comparison_base(client, NAME, "m") == ComparisonBase(1, 1)
    old = dataclasses.replace(pending, creation_timestamp=NOW - 25 * 3600 * 1000)
    client = RegistryClient(dataclasses.replace(before, versions=(*before.versions, old)))
    assert read_comparison_base(client, NAME, "m") == ComparisonBase(1, 3)


@pytest.mark.parametrize("minutes", [1, 20])
def test_the_next_host_decides_for_one_that_was_lost_a_while_ago(minutes: int) -> None:
    """After that, a choice in the user interface is respected, also of a version that the lost one did not know."""
    lost = Version(
        2, {**tags_of(0.9), **ComparisonBase(1, 1).tags()}, "a", creation_timestamp=NOW - minutes * 60_000
    )
    before = registry(0.5)
    client: Any = RegistryClient(dataclasses.replace(before, versions=(*before.versions, lost)))
    assert "version 2" in registering("b", 0.6)(client)
    assert client.registry.aliases["champion-m"] == 2
    for alias in ("champion", "champion-m"):
        client.set_registered_model_alias(NAME, alias, 3)
    registering("c", 0.4)(client)
    assert client.registry.aliases["champion-m"] == (3 if minutes == 20 else 2), (
        "the other host may be at work"
    )


def test_changed_tags_stop_nobody() -> None:
    client: Any = RegistryClient(registry(0.5))
    break_off(client, "a", 0.9, "create_model_version")
    client.set_model_version_tag(NAME, "2", NEWEST_TAG, "?")
    assert "version 3 is the new champion" in registering("b", 0.6)(client)
    client.set_model_version_tag(NAME, "3", SCORE_TAG, "val/top1 ?")
    assert "version 3, which has no val/top1 to compare" in registering("a", 0.9)(client)


def test_a_version_that_an_earlier_program_registered_is_compared() -> None:
    client: Any = RegistryClient(registry(0.5, 0.8))
    assert "version 2 is the new champion" in registering("2", 0.8)(client)
    assert client.registry.versions[1].tags[STATE_TAG] == "decided"
