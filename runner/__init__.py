"""A distributed experiment runner with tracking, for transfer learning on image folders.

`from runner import load_model; load_model().predict(["image.jpg"])`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.serving.load import load_model as load_model

__version__ = "0.1.0"
__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    """`load_model`, when it is asked for: the console script imports this package too."""
    if name == "load_model":
        from runner.serving.load import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
