"""What the schema is written with: types with a range, and `setting`, which attaches metadata to a field."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from runner.utils.registry import Registry

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
AtLeastTwo = Annotated[int, Ge(2)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Minutes = Annotated[float, Gt(0), Le(525_600)]
"""A year at most: more does not fit torch's clocks."""
AboveOne = Annotated[float, Gt(1)]
Probability = Annotated[float, Ge(0), Le(1)]
BelowOne = Annotated[float, Ge(0), Lt(1)]
Exponent = Annotated[float, Gt(0), Le(1)]
BetweenZeroAndOne = Annotated[float, Gt(0), Lt(1)]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
Depth = Annotated[int, Ge(1), Le(32)]
"""Bits of gray values."""
Degrees = Annotated[float, Ge(0), Le(180)]
Hue = Annotated[float, Ge(0), Le(0.5)]
Triple = tuple[float, float, float]
"""One number for each of red, green and blue."""
PositiveTriple = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
Interval = tuple[PositiveFloat, PositiveFloat]
"""Minimum and maximum."""

VALIDATION = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
"""How pydantic validates a class and its groups: no conversions, unknown names are errors, numbers are finite."""


@dataclass(frozen=True)
class Metadata:
    """What is known of a setting beside its type, default and docstring. A group's holds for all its settings."""

    unit: str = ""
    """Unit of the value, as "px"."""
    choices: Registry[Any] | None = None
    """The values of a setting whose values are registered by higher layers."""
    changes_results: bool = True
    """False: a run resumes, and the workers of a study agree, whatever the value is."""
    not_searchable: str = ""
    """Why a study must not vary it, to follow "cannot be searched:"; empty: it may."""


def setting(default: Any, **metadata: Any) -> Any:
    """A field of a group of settings, with the fields of `Metadata`. A class as default stands for its instance."""
    notes = {"setting": Metadata(**metadata)}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=notes)
    return dataclasses.field(default=default, metadata=notes)
