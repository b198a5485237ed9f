"""Axes of plots over searched settings: linear or logarithmic, with few ticks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TICKS = 5
"""Labeled ticks on an axis."""


def is_number(distribution: BaseDistribution) -> bool:
    """Whether values between those of a setting make sense: not for names and switches."""
    choices = distribution.choices if isinstance(distribution, CategoricalDistribution) else ()
    return all(isinstance(each, int | float) and not isinstance(each, bool) for each in choices)


def is_log(distribution: BaseDistribution) -> bool:
    """Whether a number is drawn on a logarithmic scale: as it is searched, or if its choices span over 100 times."""
    if isinstance(distribution, CategoricalDistribution):
        choices = [float(each) for each in distribution.choices if isinstance(each, int | float)]
        return min(choices) > 0 and max(choices) > 100 * min(choices)
    return bool(getattr(distribution, "log", False))


def scale(axes: Axes, which: Literal["x", "y"], distribution: BaseDistribution) -> None:
    """Set the scale of the axis of a setting that is a number, and few ticks. The points are drawn already."""
    from matplotlib.ticker import MaxNLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    if not is_log(distribution):
        axis.set_major_locator(MaxNLocator(MAX_TICKS - 1))
        return
    axes.set(**{f"{which}scale": "log"})
    low, high = sorted(axis.get_view_interval())
    ticks = _log_ticks(low, high)
    axis.set_ticks(ticks, labels=[f"{tick:.4g}" for tick in ticks])
    axis.set_minor_formatter(NullFormatter())


def _log_ticks(low: float, high: float) -> list[float]:
    """At most `MAX_TICKS` round numbers in a range: 1, 2 and 5 of each power of ten, or powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks, tens = (
        [each for power in powers for digit in digits if low <= (each := float(f"{digit}e{power}")) <= high]
        for digits in ((1, 2, 5), (1,))
    )
    for candidates in (ticks, ticks[::2], tens):
        if len(candidates) <= MAX_TICKS:
            return candidates if len(candidates) > 1 else [low, high]
    return tens[:: -(-len(tens) // MAX_TICKS)]
