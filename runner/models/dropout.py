"""Reproducible dropout: masks are functions of (training seed, step, layer), drawn for the global batch.

A process that holds some samples of the batch applies their part of the mask, so that any number of processes trains
the same model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from runner.utils import hashing

MaskKey: TypeAlias = tuple[int, int, int, torch.Size]
"""Step, number of the call within the forward pass, images in the global batch, and shape of an image's mask."""
DrawKey: TypeAlias = tuple[int, float, int, torch.Size]
"""Seed, probability of zero, images in the global batch, and shape of an image's mask."""
BIASES = {"rel_pos", "meta_mlp"}
"""Names of timm's modules that compute biases of attention from relative positions."""
MOST_DRAWN = 2**28
"""Bytes of remembered masks."""


@functools.cache
def _drawing() -> ThreadPoolExecutor:
    """A thread that draws the masks of the next step: drawing is serial, and would let other cores wait."""
    return ThreadPoolExecutor(1, thread_name_prefix="dropout")


@dataclass
class _DrawnMasks:
    """Masks that were drawn, as bits: reading one takes a twentieth of the time of drawing it."""

    bits: dict[DrawKey, np.ndarray] = field(default_factory=dict)
    bytes: int = 0

    def get(self, key: DrawKey, draw: Callable[[], Tensor]) -> Tensor:
        """The mask of a key, which is drawn if it is not known."""
        if (bits := self.bits.get(key)) is not None:
            _, _, batch_size, shape = key
            size = batch_size * shape.numel()
            return torch.from_numpy(np.unpackbits(bits, count=size).view(bool)).view(batch_size, *shape)
        mask = draw()
        bits = np.packbits(mask.numpy())
        if self.bytes + bits.nbytes > MOST_DRAWN:
            self.bits, self.bytes = {}, 0
        self.bits[key] = bits
        self.bytes += bits.nbytes
        return mask


_drawn: _DrawnMasks | None = None


def remember_masks() -> None:
    """Remember masks from now on: for the folds of a cross-validation, which draw the same with the same seed."""
    global _drawn
    _drawn = _drawn or _DrawnMasks()


class KeyedDropout(nn.Dropout):
    """`nn.Dropout` (inverted dropout, Srivastava et al. 2014) that draws its mask from a key, not a global generator.

    Call `set_batch` before each forward pass in training mode.

    Args:
        p: Probability that a value is set to zero.
        layer: Name of the layer, part of the key.
        training_seed: Part of the key.
    """

    def __init__(self, p: float, layer: str, training_seed: int) -> None:
        super().__init__(p)
        self.layer = layer
        self.training_seed = training_seed
        self.step = 0
        self.samples = slice(0, 0)
        self.batch_size = 0
        self.calls = 0
        """Forward passes since the last batch was announced: some networks use one layer twice."""
        self._masks: dict[MaskKey, Tensor | Future[Tensor]] = {}
        """Of the present step, and of the next one as it is drawn."""

    def set_batch(self, step: int, samples: slice, batch_size: int) -> None:
        """Announce the next input: these samples of a global batch of `batch_size`, at this optimizer step."""
        self.step, self.samples, self.batch_size, self.calls = step, samples, batch_size, 0

    def forward(self, values: Tensor) -> Tensor:
        """Dropout on `values`, n × anything. Raises RuntimeError if n is not the announced number of samples."""
        if not self.training or not self.p:
            return values
        if len(values) != self.samples.stop - self.samples.start:
            raise RuntimeError(f"{self.layer}: got {len(values)} samples, but {self.samples} were announced")
        mask = self._mask(self.mask_shape(values))[self.samples]
        self.calls += 1
        return (values * mask.to(values.device)).div_(1 - self.p)

    def mask_shape(self, values: Tensor) -> torch.Size:
        """The shape of an image's mask."""
        return values.shape[1:]

    def _mask(self, shape: torch.Size) -> Tensor:
        """The mask of the global batch.

        If there is a core for it, that of the next step is drawn meanwhile; most often it has as many images.
        """
        key, following = ((step, self.calls, self.batch_size, shape) for step in (self.step, self.step + 1))
        known = self._masks.get(key)
        mask = known.result() if isinstance(known, Future) else self._draw(key) if known is None else known
        masks = {each: drawn for each, drawn in self._masks.items() if each[0] > self.step}
        masks[key] = mask
        if following not in masks and torch.get_num_threads() > 1:
            masks[following] = _drawing().submit(self._draw, following)
        self._masks = masks
        return mask

    def _draw(self, key: MaskKey) -> Tensor:
        step, call, batch_size, shape = key

        def draw() -> Tensor:
            return self.draw_uniform(step, batch_size, shape, call) >= self.p

        if _drawn is None:
            return draw()
        return _drawn.get((self._seed(step, call), self.p, batch_size, shape), draw)

    def draw_uniform(self, step: int, batch_size: int, shape: Sequence[int], call: int = 0) -> Tensor:
        """Numbers in [0, 1) for the global batch of a step, on the CPU; where they are below p, values become zero."""
        generator = torch.Generator().manual_seed(self._seed(step, call))
        return torch.rand(batch_size, *shape, generator=generator)

    def _seed(self, step: int, call: int) -> int:
        further = (call,) if call else ()
        return hashing.derive_seed("dropout", self.training_seed, step, self.layer, *further)

    def __getstate__(self) -> dict[str, Any]:
        """Without masks, which can be drawn again: a copy need not have them, and a file cannot."""
        return {**self.__dict__, "_masks": {}}


class KeyedDropPath(KeyedDropout):
    """Stochastic depth (Huang et al., ECCV 2016) that is reproducible as `KeyedDropout` is.

    It drops a residual branch of whole images.
    """

    def mask_shape(self, values: Tensor) -> torch.Size:
        """One number."""
        return torch.Size([1] * (values.dim() - 1))


class KeyedBiasDropout(KeyedDropPath):
    """Dropout within what computes biases of attention, which has no images: each process drops the same.

    As stochastic depth, it is off in frozen layers.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Dropout on `values` of any shape."""
        if not self.training or not self.p:
            return values
        mask = self.draw_uniform(self.step, 1, values.shape, self.calls)[0] >= self.p
        self.calls += 1
        return (values * mask.to(values.device)).div_(1 - self.p)


def replace_dropouts(model: nn.Module, training_seed: int) -> None:
    """Replace every layer of dropout and of stochastic depth by one whose masks are reproducible."""
    for name, module in list(model.named_modules()):
        for child, layer in module.named_children():
            path = f"{name}.{child}".lstrip(".")
            if isinstance(layer, nn.Dropout):
                keyed = KeyedBiasDropout if BIASES & {*path.split(".")} else KeyedDropout
                setattr(module, child, keyed(layer.p, path, training_seed))
            elif (probability := _stochastic_depth(layer)) is not None:
                setattr(module, child, KeyedDropPath(probability, path, training_seed))


def set_drop_path(model: nn.Module, rate: float, trained: Iterable[nn.Module], training_seed: int) -> int:
    """Give blocks probabilities of stochastic depth that rise linearly over the whole network to `rate`.

    Args:
        model: With its dropouts replaced.
        rate: That of the last block.
        trained: What has blocks to change.
        training_seed: Part of the keys of new layers.

    Returns how many layers were set.
    """
    parts = {id(part) for module in trained for part in module.modules()}
    sites = [
        (block, name, child)
        for block, module in model.named_modules()
        for name, child in module.named_children()
        # timm has the identity where its own probability is 0.
        if type(child) is KeyedDropPath or (name.startswith("drop_path") and type(child) is nn.Identity)
    ]
    blocks = list(dict.fromkeys(block for block, _, _ in sites))
    count = 0
    for block, name, child in sites:
        if id(child) in parts:
            probability = rate * blocks.index(block) / max(1, len(blocks) - 1)
            keyed = KeyedDropPath(probability, f"{block}.{name}", training_seed)
            setattr(model.get_submodule(block), name, keyed)
            count += 1
    return count


def _stochastic_depth(layer: nn.Module) -> float | None:
    """The probability that a layer of torchvision or timm drops a branch of an image; None for other layers."""
    if isinstance(layer, StochasticDepth) and layer.mode == "row":
        return layer.p
    if type(layer).__name__ == "DropPath" and layer.scale_by_keep:  # timm's, which need not be installed
        return float(layer.drop_prob)  # type: ignore[arg-type]
    return None


def set_dropout_batch(modules: Iterable[nn.Module], step: int, samples: slice, batch_size: int) -> None:
    """`KeyedDropout.set_batch` for every such layer among the modules."""
    for module in modules:
        if isinstance(module, KeyedDropout):
            module.set_batch(step, samples, batch_size)
