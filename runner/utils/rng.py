"""Lend the CPU's global random generator to a key: torchvision and the initialisers draw from nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generator for the block, and put it back as it was."""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)  # not torch.manual_seed: that would reach for the GPUs, slowly
    try:
        yield
    finally:
        generator.set_state(before)
