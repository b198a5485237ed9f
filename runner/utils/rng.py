"""Seeds torch's global CPU generator for a block: torchvision and torch's initializers draw from no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generator for the block and restore its state afterwards."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs, which is slow
    try:
        yield
    finally:
        generator.set_state(state)
