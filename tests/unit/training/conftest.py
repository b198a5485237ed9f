"""Shared by the tests of training."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from accelerate import Accelerator
from fits import separable_features
from helpers import Make, small_model
from interrupted_fits import BASE, NewTraining, Training
from torch import Tensor


@pytest.fixture(autouse=True, scope="module")
def _release_memory(accelerator: Accelerator) -> Iterator[None]:
    """Collect garbage once per module: the accelerator would after each training, which takes longer than training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.utils.memory.gc.collect", lambda *_: 0)
        yield
    accelerator.free_memory()
    gc.collect()


@pytest.fixture
def new_training(make: Make, accelerator: Accelerator) -> NewTraining:
    """`new_training("--optim.lr", "0.1", …)`: a training on two views of separable features, used in turn."""

    def build(
        *words: str, views: tuple[Sequence[Tensor], list[int]] | None = None, **model_fields: Any
    ) -> Training:
        if views is None:
            values, labels = separable_features()
            views = [values, values + 0.1], labels
        model = small_model(**model_fields)
        weights = {name: value.clone() for name, value in model.trainable_state().items()}
        return Training(make(*BASE, *words), model, weights, views, accelerator)

    return build


@pytest.fixture
def training(new_training: NewTraining) -> Training:
    return new_training()
