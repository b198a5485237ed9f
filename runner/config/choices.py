"""Settings whose values are implemented, and registered, in higher layers.

    DATASETS     data.kind        runner/data/datasets.py
    OPTIMIZERS   optim.name       runner/training/optimizers.py
    SCHEDULES    schedule.kind    runner/training/lr_schedule.py
    METRIC_NAMES train.best, train.monitor   runner/evaluation/metrics.py

This layer imports none of them. `runner/__init__.py`, which may import everything, provides a function that does.
Only `ARCHITECTURES` (model.arch) lists what a lower layer registers: the backbones of `runner/portable/backbone.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runner.portable import backbones
from runner.portable.backbone import Backbone
from runner.utils.registry import Choice, Registry

_providers: list[Callable[[], object]] = []


def provider(load: Callable[[], None]) -> Callable[[], None]:
    """Decorates a function that imports the registering modules. It runs once, at the first look-up of a choice."""
    _providers.append(load)
    return load


def _load() -> None:
    while _providers:
        load = _providers.pop()  # taken out first: the modules that it imports may look choices up themselves
        try:
            load()
        except BaseException:
            _providers.append(load)  # the next look-up reports the same error, not a missing choice
            raise


DATASETS: Registry[Any] = Registry("data.kind", _load)
OPTIMIZERS: Registry[Any] = Registry("optim.name", _load)
SCHEDULES: Registry[Any] = Registry("schedule.kind", _load)
METRIC_NAMES: Registry[Any] = Registry("train.best", _load)


def _add_backbones() -> None:
    for arch, backbone in backbones.BACKBONES.items():
        if arch not in ARCHITECTURES:
            ARCHITECTURES.register(arch, backbone.description)(backbone)


class _Architectures(Registry[Backbone]):
    """Those with an adapter of their own, and all of torchvision and timm: they are looked up only if one is named."""

    is_open = True

    def find(self, name: str, setting: str = "") -> Choice[Backbone]:
        """The architecture of a name. Raises `ValueError` in a sentence with similar names."""
        if (known := self.choices.get(name)) is not None:
            return known
        backbone = backbones.find_backbone(name)
        return Choice(name, backbone.description, frozenset(), backbone)


ARCHITECTURES: Registry[Backbone] = _Architectures("model.arch", _add_backbones)
