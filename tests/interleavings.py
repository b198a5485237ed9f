"""All orders in which processes that share a store can send their requests, without processes or threads.

A process is a function of a client. It is run up to the request whose answer it does not have yet; then the request is
answered by the store, and it is run again from the start with the answers so far. So a process may stand at any
request while others go on, and may be killed there. What two orders have in common is tried once.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

WRITES = ("create_model_version", "set_registered_model_alias", "set_model_version_tag")
NOW = int(time.time() * 1000)


@dataclass(frozen=True)
class Version:
    """A version of the one registered model; `creation_timestamp` in ms."""

    version: int
    tags: dict[str, str]
    run_id: str
    name: str = "crown"
    creation_timestamp: int = NOW


@dataclass(frozen=True)
class Registry:
    """MLflow's registry with one model, as a value: each request returns the registry after it, and the answer."""

    versions: tuple[Version, ...] = ()
    aliases: dict[str, int] = field(default_factory=dict)

    def get_registered_model(self, _name: str) -> tuple[Registry, Any]:
        return self, SimpleNamespace(aliases=self.aliases, latest_versions=self.versions[-1:])

    def get_model_version(self, _name: str, number: str) -> tuple[Registry, Version]:
        return self, self.versions[int(number) - 1]

    def search_model_versions(self, condition: str, order_by: Any = None) -> tuple[Registry, list[Version]]:
        """Conditions are as `run_id = 'r'` or ``tags.`a` = 'x' AND tags.`b` = 'y'``."""
        found = list(self.versions)
        for part in condition.split(" AND "):
            key, value = part.split(" = ")
            tag = key.removeprefix("tags.").strip("`")
            found = [
                each
                for each in found
                if (each.run_id if key == "run_id" else each.tags.get(tag)) == value.strip("'")
            ]
        return self, found[::-1]

    def create_model_version(self, run: str, tags: dict[str, str]) -> tuple[Registry, Version]:
        version = Version(len(self.versions) + 1, tags, run)
        return dataclasses.replace(self, versions=(*self.versions, version)), version

    def set_registered_model_alias(self, _name: str, alias: str, number: Any) -> tuple[Registry, None]:
        return dataclasses.replace(self, aliases={**self.aliases, alias: int(number)}), None

    def set_model_version_tag(self, _name: str, number: str, tag: str, value: str) -> tuple[Registry, None]:
        versions = list(self.versions)
        version = versions[int(number) - 1]
        versions[int(number) - 1] = dataclasses.replace(version, tags={**version.tags, tag: value})
        return dataclasses.replace(self, versions=tuple(versions)), None


Process = Callable[[Any], str]
"""A function of a client: the same answers lead to the same requests."""


class _NeedsAnswer(BaseException):
    """A process has sent a request to which it has no answer yet."""


class _Client:
    def __init__(self, answers: tuple[Any, ...]) -> None:
        self.answers = list(answers)

    def __getattr__(self, request: str) -> Callable[..., Any]:
        def send(*args: Any, **named: Any) -> Any:
            if self.answers:
                return self.answers.pop(0)
            raise _NeedsAnswer(request, args, named)

        return send


class _Stop:
    """Where a process stands after some answers: its next request, or its result."""

    def __init__(self, process: Process, answers: tuple[Any, ...] = (), wrote: bool = False) -> None:
        self.process, self.answers, self.wrote = process, answers, wrote
        self.request: tuple[str, Any, Any] | None = None
        self.result = ""
        self._next: dict[str, _Stop] = {}
        try:
            self.result = process(_Client(answers))
        except _NeedsAnswer as needs:
            self.request = needs.args  # type: ignore[assignment]

    def after(self, answer: Any) -> _Stop:
        key = repr(answer)
        if key not in self._next:
            wrote = self.request is not None and self.request[0] in WRITES
            self._next[key] = _Stop(self.process, (*self.answers, answer), wrote)
        return self._next[key]


Ending = tuple[Registry, list[str]]
"""A registry, and what the processes returned."""


class Interleavings:
    """The orders in which the requests of processes can follow each other.

    Args:
        registry: The registry before.
        processes: What runs at the same time.
        kills: How many times a process may be killed behind a request that changes the registry, and start again.
    """

    def __init__(self, registry: Registry, processes: list[Process], kills: int = 0) -> None:
        self.starts = tuple(_Stop(process) for process in processes)
        self.registries = {repr(registry): registry}
        self.first: _Moment = (registry, self.starts, kills)

    def all_endings(self) -> Iterator[Ending]:
        """Each different way in which all processes can end."""
        moments, seen = [self.first], set()
        while moments:
            moment = moments.pop()
            registry, stops, kills = moment
            if (key := (id(registry), stops, kills)) in seen:
                continue
            seen.add(key)
            if following := self._following(moment):
                moments += following
            else:
                yield registry, [stop.result for stop in stops]

    def drawn_endings(self, count: int, seed: int = 0) -> Iterator[Ending]:
        """The endings of orders that are drawn, for processes that have too many."""
        rng = random.Random(seed)
        for _ in range(count):
            moment = self.first
            while following := self._following(moment):
                moment = rng.choice(following)
            yield moment[0], [stop.result for stop in moment[1]]

    def _following(self, moment: _Moment) -> list[_Moment]:
        """What can happen next."""
        registry, stops, kills = moment
        following = []
        for index, stop in enumerate(stops):
            if stop.request is None:
                continue
            name, args, named = stop.request
            after, answer = getattr(registry, name)(*args, **named)
            if after is not registry:
                after = self.registries.setdefault(repr(after), after)
            following.append((after, _replace(stops, index, stop.after(answer)), kills))
            if kills and stop.wrote:
                following.append((registry, _replace(stops, index, self.starts[index]), kills - 1))
        return following


_Moment = tuple[Registry, tuple[_Stop, ...], int]


def _replace(stops: tuple[_Stop, ...], index: int, stop: _Stop) -> tuple[_Stop, ...]:
    return (*stops[:index], stop, *stops[index + 1 :])


class RegistryClient:
    """A client of a registry that nobody else changes meanwhile."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def __getattr__(self, request: str) -> Callable[..., Any]:
        def send(*args: Any, **named: Any) -> Any:
            self.registry, answer = getattr(self.registry, request)(*args, **named)
            return answer

        return send
