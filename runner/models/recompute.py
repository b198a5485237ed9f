"""Activation checkpointing: what a block computes is not kept for the backward pass, but computed again there.

torch's `checkpoint` does it. It computes with the same numbers only if a second forward pass changes nothing: dropout
masks are those of the first one, and running statistics of batch normalization are updated once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from runner.models.dropout import KeyedDropout


def recomputed(function: Callable[[Tensor], Tensor], modules: Sequence[nn.Module], values: Tensor) -> Tensor:
    """The output of a function, whose intermediate values are computed again in the backward pass.

    Args:
        function: Of tensors; it runs the modules.
        modules: All that it runs.
        values: Its input.
    """
    parts = [part for module in modules for part in module.modules()]
    dropouts = [(each, each.calls) for each in parts if isinstance(each, KeyedDropout)]
    norms = [each for each in parts if isinstance(each, _BatchNorm) and each.training]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _again(dropouts, norms)

    output: Tensor = checkpoint(
        function, values, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )
    return output


@contextmanager
def _again(dropouts: Sequence[tuple[KeyedDropout, int]], norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """For the second forward pass."""
    for dropout, calls in dropouts:
        dropout.calls = calls
    statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    try:
        yield
    finally:
        for buffer, before in statistics:
            buffer.data.copy_(before)
