"""Errors of libraries are translated into messages that say what to do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import Make

from runner.training.error_translation import translate_errors
from runner.utils.errors import UserError


def _out_of_memory_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("allocate", "text"),
    [
        (lambda: np.ones(10**15), "Unable to allocate"),
        (lambda: torch.ones(10**14), "DefaultCPUAllocator"),
        (_out_of_memory_on_a_gpu, "2.00 GiB"),
    ],
    ids=["of numpy", "of torch", "of CUDA"],
)
def test_too_little_memory_names_the_settings_to_change(
    make: Make, accelerator: Accelerator, allocate: Callable[[], object], text: str
) -> None:
    with pytest.raises(UserError) as caught, translate_errors(make(), accelerator):
        allocate()
    message = str(caught.value)
    assert text in message
    assert "lower train.batch_size (8)" in message
    assert "train.accumulate (1)" in message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Timed out waiting 5000ms for send operation to complete", "has not answered for 30 minutes"),
        ("Connection closed by peer [127.0.0.1]:30094", "exited unexpectedly"),
    ],
)
def test_a_process_that_hangs_is_told_from_one_that_is_gone(
    make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    with pytest.raises(UserError, match=sentence), translate_errors(make(), accelerator):
        raise RuntimeError(f"[unbound_buffer.cc:129] {text}")


def test_other_errors_pass_unchanged(make: Make, accelerator: Accelerator) -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit"), translate_errors(make(), accelerator):
        raise RuntimeError("shapes do not fit")
