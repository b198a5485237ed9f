"""Trains image classifiers by transfer learning, on one or several processes, and tracks the runs.

The Python interface is `load_model`: `load_model().predict(["image.jpg"])` classifies images with the newest model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.config.choices import provider

if TYPE_CHECKING:
    from runner.serving.load import load_model as load_model

__version__ = "0.1.0"
__all__ = ["load_model"]


@provider
def _register_choices() -> None:
    """Import the modules that register the values of data.kind, optim.name, schedule.kind and train.best."""
    import runner.data.datasets
    import runner.evaluation.metrics
    import runner.training.lr_schedule
    import runner.training.optimizers  # noqa: F401


def __getattr__(name: str) -> Any:
    """Import `load_model` on first use: every start of the console script imports this package."""
    if name == "load_model":
        from runner.serving.load import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
