"""The model registry: which model is the champion."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import (
    Store,
    new_run,
)

from runner.tracking.champion import make_champion
from runner.tracking.model_registry import ModelInfo, register_model
from runner.utils.errors import UserError

Register = Callable[[ModelInfo], str]


@pytest.fixture
def store(mlflow_store: Store) -> Store:
    return mlflow_store


@pytest.fixture
def register(store: Store, tiny: Path) -> Register:
    """Register the model of a new run; returns the sentence about it."""
    return lambda info: register_model(store[1], new_run(store), tiny, info)


def model_info(top1: float, manifest: str = "m", name: str = "crown") -> ModelInfo:
    metrics = {"val/top1": top1, "val/balanced_accuracy": 1 - top1}
    return ModelInfo(name, metrics, "val/top1", manifest, step=3, time=1_700_000_000_000)


def champion(client: Any, name: str = "crown") -> int:
    return int(client.get_model_version_by_alias(name, "champion").version)


# The champion


def test_the_score_of_the_run_decides(store: Store, register: Register) -> None:
    """A model of lower top-1 becomes the champion if its run is selected by balanced accuracy."""

    def scored(top1: float, balanced: float, score: str) -> ModelInfo:
        metrics = {"val/top1": top1, "val/balanced_accuracy": balanced}
        return dataclasses.replace(model_info(0), metrics=metrics, score=score)

    register(scored(0.9, 0.3, "val/top1"))
    message = register(scored(0.5, 0.4, "val/balanced_accuracy"))
    assert (
        "version 2 is the new champion (val/balanced_accuracy 0.4000 against 0.3000 of version 1)" in message
    )
    message = register(scored(0.6, 0.9, "val/balanced_accuracy"))
    assert (
        "version 3 is the new champion (val/balanced_accuracy 0.9000 against 0.4000 of version 2)" in message
    )
    message = register(scored(0.6, 1.0, "val/top1"))
    assert "the champion stays (val/top1 0.6000 against 0.6000 of version 3)" in message
    assert champion(store[1]) == 3


def test_scores_are_compared_with_all_digits(store: Store, register: Register) -> None:
    register(model_info(0.1 + 0.2))
    assert "the champion stays" in register(model_info(0.3))
    assert "is the new champion" in register(model_info(0.30000000000000010))
    assert champion(store[1]) == 3


def test_each_set_of_images_has_its_champion(store: Store, register: Register) -> None:
    client = store[1]
    register(model_info(0.5, "a" * 64))
    message = register(model_info(0.4, "b" * 64))
    assert (
        "version 2 is the champion, as the first (val/top1 0.4000) of its images, crown@champion-bbbbbbbb"
        in message
    )
    assert "crown@champion is still version 1" in message
    command = f"./launch.sh runs champion {client.get_model_version('crown', '2').run_id[:8]}"
    assert command in message
    assert "the champion stays" in register(model_info(0.3, "b" * 64))
    assert "version 4 is the new champion" in register(model_info(0.6, "b" * 64))
    assert champion(client) == 1
    assert "other images" not in register(model_info(0.6, "a" * 64))
    aliases = client.get_registered_model("crown").aliases
    assert {name: int(version) for name, version in aliases.items()} == {
        "champion": 5,
        "champion-aaaaaaaa": 5,
        "champion-bbbbbbbb": 4,
    }
    run_id = client.get_model_version("crown", "4").run_id
    assert "version 4" in make_champion(client, run_id)
    assert champion(client) == 4
    make_champion(client, client.get_model_version("crown", "1").run_id)
    manifest = client.get_model_version("crown", "1").tags["runner.manifest"]
    aliases = client.get_registered_model("crown").aliases
    assert int(aliases[f"champion-{manifest[:8]}"]) == champion(client) == 1
    make_champion(client, run_id)
    assert "version 6 is the new champion (val/top1 0.7000 against 0.6000" in register(
        model_info(0.7, "b" * 64)
    )
    assert champion(client) == 6


def test_a_run_without_a_registered_model_makes_no_champion(store: Store) -> None:
    with pytest.raises(UserError, match="has no registered model"):
        make_champion(store[1], new_run(store))


def test_a_champion_of_an_earlier_version_is_compared(store: Store, register: Register) -> None:
    """It has no alias of its images, and its score has all digits."""
    client = store[1]
    register(model_info(0.5))
    client.delete_registered_model_alias("crown", "champion-m")
    client.delete_model_version_tag("crown", "1", "runner.score")
    client.set_model_version_tag("crown", "1", "val/top1", "0.50001")
    assert "the champion stays" in register(model_info(0.5))
    assert "is the new champion" in register(model_info(0.6))


def test_a_model_may_be_logged_only(store: Store, register: Register) -> None:
    assert "not registered" in register(model_info(0.5, name=""))
    assert store[1].search_registered_models() == []


def test_a_champion_without_a_score_stays(store: Store, register: Register) -> None:
    register(model_info(0.5))
    for tag in ("val/top1", "runner.score"):
        store[1].delete_model_version_tag("crown", "1", tag)
    assert "has no val/top1 to compare" in register(model_info(0.9))
    assert champion(store[1]) == 1


def test_a_removed_alias_is_set_again(store: Store, register: Register) -> None:
    register(model_info(0.5))
    store[1].delete_registered_model_alias("crown", "champion")
    assert "the champion stays" in register(model_info(0.1))
    assert champion(store[1]) == 1


def test_other_aliases_are_left_alone(store: Store, register: Register) -> None:
    client = store[1]
    register(model_info(0.5))
    client.set_registered_model_alias("crown", "mine", "1")
    register(model_info(0.6))
    aliases = client.get_registered_model("crown").aliases
    assert {name: int(version) for name, version in aliases.items()} == {
        "champion": 2,
        "champion-m": 2,
        "mine": 1,
    }


def test_each_experiment_has_its_champion(store: Store, register: Register) -> None:
    register(model_info(0.5))
    assert "version 1 is the champion, as the first" in register(model_info(0.1, name="other"))
    assert (champion(store[1]), champion(store[1], "other")) == (1, 1)


@pytest.mark.parametrize(
    "name", ["two words", "ünïcode 猫", "100 %", "a=b and c", "a@b", "a;b", 'say "it"', "x" * 200, "it's"]
)
def test_an_experiment_may_have_any_name(store: Store, register: Register, name: str) -> None:
    assert "is the champion, as the first" in register(model_info(0.5, name=name))
    assert "version 2 is registered" in register(model_info(0.4, name=name))
    assert champion(store[1], name) == 1


def test_a_version_names_its_origin(store: Store, register: Register) -> None:
    register(model_info(0.5))
    (version,) = store[1].search_model_versions("name = 'crown'")
    assert version.tags == {
        "val/top1": "0.5000",
        "val/balanced_accuracy": "0.5000",
        "runner.score": "val/top1 0.5",
        "runner.manifest": "m",
        "runner.champion_before": "0",
        "runner.newest_before": "0",
        "runner.champion_decision": "decided",
    }
    assert f"Best checkpoint of run {version.run_id}" in version.description
