"""Shared by the tests of training."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from accelerate import Accelerator


@pytest.fixture(autouse=True, scope="module")
def _release_memory(accelerator: Accelerator) -> Iterator[None]:
    """Collect garbage once per module: the accelerator would after each training, which takes longer than training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.utils.memory.gc.collect", lambda *_: 0)
        yield
    accelerator.free_memory()
    gc.collect()
