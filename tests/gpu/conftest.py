"""Tests that compute on a GPU: `pytest -m gpu tests/gpu`, in a process of their own.

RUNNER_TEST_DEVICE=cpu runs most of them on the CPU, to try the tests themselves.
"""

from __future__ import annotations

import os

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

DEVICE = os.environ.get("RUNNER_TEST_DEVICE", "cuda")


@pytest.fixture(autouse=True, scope="session")
def _needs_the_device() -> None:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if AcceleratorState._shared_state.get("device", torch.device(DEVICE)).type != DEVICE:
        pytest.skip("this process computes on another device already: run tests/gpu alone")


@pytest.fixture(scope="session")
def accelerator(_needs_the_device: None) -> Accelerator:
    """One process on the device, in float32."""
    return Accelerator(cpu=DEVICE == "cpu", mixed_precision="no")


@pytest.fixture
def on_gpu(accelerator: Accelerator) -> torch.device:
    """The GPU, for tests that mean nothing on a CPU."""
    if accelerator.device.type != "cuda":
        pytest.skip("means nothing on a CPU")
    return accelerator.device
