"""Registries of choices."""

from __future__ import annotations

import pytest

from runner.utils.registry import Registry


def test_a_choice_is_registered_and_found() -> None:
    registry: Registry[object] = Registry("a.b")

    @registry.register("one", "the first", uses=("x",))
    def first() -> int:
        return 1

    choice = registry.find("one")
    assert (choice.name, choice.description, choice.uses) == ("one", "the first", {"x"})
    assert choice.implementation is first
    assert [*registry.choices] == ["one"]


def test_a_name_is_registered_once() -> None:
    registry: Registry[object] = Registry("a.b")
    registry.register("one", "the first")(1)
    with pytest.raises(ValueError, match=r"a\.b=one"):
        registry.register("one", "another")(2)
    registry.remove("one")
    registry.register("one", "another")(2)
    assert registry.find("one").implementation == 2


def test_an_unknown_choice_lists_the_known_ones() -> None:
    registry: Registry[object] = Registry("a.b")
    registry.register("cosine", "…")(1)
    with pytest.raises(ValueError, match=r"a\.b must be one of cosine; .*did you mean 'cosine'"):
        registry.find("cosin")


def test_choices_are_loaded_at_the_first_look_up() -> None:
    loaded: list[int] = []
    registry: Registry[object] = Registry("a.b", lambda: loaded.append(1))
    registry.register("one", "the first")(1)
    assert not loaded
    registry.find("one")
    assert loaded
