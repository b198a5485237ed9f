"""Registries: the named choices of a setting, each registered by a decorator where it is implemented."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from runner.utils.text import did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """One value of a setting, and what implements it."""

    name: str
    description: str
    """A few words for `--help`."""
    uses: frozenset[str]
    """Settings of the same group that only some choices use, and this one does."""
    implementation: T


class Registry(Generic[T]):
    """The choices of a setting.

    A lower layer creates the registry and validates the setting against it. Higher layers register choices:

        @SCHEDULES.register("cosine", "cosine decay to 0")
        def cosine(...): ...

    Args:
        setting: Dotted name of the setting, for messages.
        load: Imports the modules that register choices. It is called before each look-up, so that creating a
            registry imports nothing.
    """

    is_open = False
    """Whether there are choices that are not registered."""

    def __init__(self, setting: str, load: Callable[[], object] = lambda: None) -> None:
        self.setting = setting
        self._load = load
        self._choices: dict[str, Choice[T]] = {}

    def register(self, name: str, description: str, uses: Iterable[str] = ()) -> Callable[[T], T]:
        """A decorator that adds a choice. Raises `ValueError` if the name is taken."""

        def add(implementation: T) -> T:
            if name in self._choices:
                raise ValueError(f"{self.setting}={name} is registered twice")
            self._choices[name] = Choice(name, description, frozenset(uses), implementation)
            return implementation

        return add

    def remove(self, name: str) -> None:
        """Remove a choice that was registered."""
        del self._choices[name]

    def __contains__(self, name: str) -> bool:
        """Whether a choice of this name is registered so far."""
        return name in self._choices

    @property
    def choices(self) -> dict[str, Choice[T]]:
        """All choices by name, in the order of registration."""
        self._load()
        return dict(self._choices)

    def find(self, name: str, setting: str = "") -> Choice[T]:
        """The choice called `name`. Raises `ValueError` with one sentence that lists the choices.

        Args:
            name: Its name.
            setting: The setting whose value it is; empty: that of the registry.
        """
        choices = self.choices
        if name not in choices:
            raise ValueError(
                f"{setting or self.setting} must be one of {', '.join(choices)}; it is {name!r}"
                f"{did_you_mean(str(name), choices)}"
            )
        return choices[name]
