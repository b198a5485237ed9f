"""The model as it trains: initial weights, reproducible dropout, what is frozen, and where the frozen part ends."""

from __future__ import annotations

import functools
import itertools
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.config.schema import Normalization
from runner.models.batch_norm import SynchronizedBatchNorm
from runner.models.dropout import KeyedDropPath, replace_dropouts, set_drop_path
from runner.models.freezing import block_starts, first_trainable
from runner.models.recompute import recomputed
from runner.portable.head import build_head
from runner.portable.model import LayeredModel, build_backbone, head_spec, pooled_features
from runner.portable.variants import Variant, VariantSpec
from runner.utils import hashing
from runner.utils.errors import UserError
from runner.utils.rng import seeded


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a model except its weights. The fields without docstring are settings of the group `model`."""

    arch: str
    head: str
    pool: int | tuple[int, ...]
    width: int
    dropout: float
    trainable: str
    classes: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    normalization: Normalization
    drop_path: float | None = None
    power: float = 1.0
    norm: str = "none"
    pooled_layers: tuple[str, ...] = ()
    scales: tuple[int, ...] = ()
    """`augment.scales`."""
    tta: str = "none"
    """`augment.tta`."""
    input_size: int = 224
    """Height and width of the images that the model receives, in pixels."""


AS_IT_IS = Variant()


@dataclass(frozen=True)
class Stage:
    """A part of the frozen backbone whose outputs are worth storing."""

    start: int
    """Index of its first layer."""
    stop: int
    """Index after its last layer."""
    inputs: tuple[int, ...] = ()
    """Indices of the stages whose outputs it takes; none: it takes images."""
    variant: Variant = AS_IT_IS
    """The variant of the images that it takes."""


class TransferModel(LayeredModel):
    """A backbone with a new head, ready to train.

    The leading layers that are frozen and deterministic are the frozen backbone. It ends at `split_index`; the layers
    from there on are the trainable part, which may contain frozen layers, too.

    Args:
        spec: Backbone, head and what trains.
        training_seed: Decides the head's initial weights and the dropout masks.
        random_weights: Draw the backbone's weights, the same ones in every run. False: they are uninitialized until
            `load_state_dict` or `pretrained.load_weights` sets them.
        setting: Where `spec.trainable` is given, for messages.

    Raises `UserError` if the architecture cannot take such images or such a head, if `spec.trainable` names no layer
    with weights, or one before the pooling of several maps, if there is no layer that `spec.pooled_layers` names, or if
    there is `spec.drop_path`, but no block that trains can be skipped.
    """

    def __init__(
        self, spec: ModelSpec, training_seed: int, random_weights: bool, setting: str = "model.trainable"
    ) -> None:
        try:
            with seeded(hashing.derive_seed("backbone", spec.arch)):
                backbone = build_backbone(spec.arch, spec.head, spec.pool, spec.input_size, random_weights)
        except ValueError as error:
            raise UserError(f"{error}.") from None
        description, variants = head_spec(vars(spec), backbone), VariantSpec.of(vars(spec))
        try:
            features = pooled_features(backbone, description, variants)
        except ValueError as error:
            raise UserError(f"model.pooled_layers: {error}.") from None
        with seeded(hashing.derive_seed("head", training_seed)):
            head = build_head(description, features, len(spec.classes))
        super().__init__(backbone, head, spec.normalization.mean, spec.normalization.std, variants)
        self.spec = spec
        self.recomputes = False
        """Whether blocks that train are computed again in the backward pass (`train.recompute`)."""
        self.shares_statistics = False
        """Whether batch normalization takes its statistics from the images of all processes."""
        if not random_weights:  # drawn values depend on the layout; otherwise nothing has to be copied later
            self.to(memory_format=torch.channels_last)
        self._allocate()
        replace_dropouts(self, training_seed)
        self.index_layers()
        first_trainable(self, spec.trainable, setting)  # raises
        self._set_drop_path(training_seed)
        self._can_train = [name for name, each in self.named_parameters() if each.requires_grad]
        self.unfreeze(spec.trainable)
        self._trained_layers = [index for index in range(self.depth) if self.layer_trains(index)]
        """Those that train with `spec.trainable`."""
        if not self.pools_last_only and self.split_index <= self.pooling_index:
            raise UserError(
                f"augment.scales, augment.tta and model.pooled_layers are for frozen convolutions, but model.trainable"
                f" is {spec.trainable}; set model.trainable=head, or leave them out."
            )
        self.to(memory_format=torch.channels_last)

    def unfreeze(self, trainable: str) -> None:
        """Train the layers that `trainable` names, and those after them; freeze all before them.

        The model keeps what `spec.trainable` says for `trainable_state`, which a checkpoint has: in an earlier stage of
        a training fewer layers train. Raises `UserError` if there is no such layer, or if it has no weights.
        """
        first = first_trainable(self, trainable)
        parameters = dict(self.named_parameters())
        for name in self._can_train:
            parameters[name].requires_grad_(True)
        for index in range(first):
            for parameter in self.layer_parameters(index):
                parameter.requires_grad_(False)
        frozen = (index for index in range(self.depth) if not self.layer_trains(index))
        self._frozen_drop_paths = [
            part
            for index in frozen
            for module in self.layer_modules(index)
            for part in module.modules()
            if isinstance(part, KeyedDropPath)
        ]
        self.split_index = self._find_split()
        """Number of layers in the frozen backbone, and index of the first layer after it."""

    def train(self, mode: bool = True) -> TransferModel:
        """As usual, except that frozen batch normalization and stochastic depth stay in evaluation mode.

        The statistics of frozen layers are frozen, too, and what a frozen layer computes is the same every time.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and not _trains(module):
                module.eval()
        for module in self._frozen_drop_paths:
            module.eval()
        return self

    @property
    def trains_batch_norm(self) -> bool:
        """Whether batch normalization trains, so that an image's result depends on the other images of its batch."""
        return any(isinstance(module, _BatchNorm) and _trains(module) for module in self.modules())

    @property
    def split_layer(self) -> str:
        """Name of the frozen backbone's last layer; empty if there is no frozen backbone."""
        return self.layer_names[self.split_index - 1] if self.split_index else ""

    @property
    def frozen_stages(self) -> tuple[Stage, ...]:
        """The frozen backbone in parts, each after those whose outputs it takes; the last one ends at `split_index`.

        What goes before the pooling is a part of its own, so that its output is the same for every kind of head.
        """
        pooling, end = self.pooling_index, self.split_index
        if not self.pools_last_only:
            stops = [index + 1 for index in self.pooled_indices]
            first = [Stage(0, stop, (), variant) for variant in self.variants for stop in stops]
            return (*first, Stage(pooling, end, tuple(range(len(first)))))
        if 0 < pooling < end and self.stores_maps:
            return Stage(0, pooling), Stage(pooling, end, (0,))
        return (Stage(0, end),) if end else ()

    def _run(self, values: Tensor, start: int, stop: int) -> Tensor:
        """As usual; with `recomputes`, each block in training so that its intermediate values need no memory."""
        end = min(stop, self.head_index)
        if not (self.recomputes and self.training and torch.is_grad_enabled() and start < end):
            return self._run_once(values, start, stop)
        bounds = sorted({start, end, *(index for index in self._block_starts if start < index < end)})
        for first, after in itertools.pairwise(bounds):
            modules = [module for index in range(first, after) for module in self.layer_modules(index)]
            part = functools.partial(self._run_once, start=first, stop=after)
            values = recomputed(part, modules, values)
        return self._run_once(values, end, stop)

    def _run_once(self, values: Tensor, start: int, stop: int) -> Tensor:
        with SynchronizedBatchNorm() if self.shares_statistics and self.training else nullcontext():
            return super()._run(values, start, stop)

    @functools.cached_property
    def _block_starts(self) -> list[int]:
        return block_starts(self)

    def trainable_state(self) -> dict[str, Tensor]:
        """Tensors of the layers that train with `spec.trainable`, by name: parameters and batch statistics."""
        trainable = {name for index in self._trained_layers for name in self.layer_tensors(index)}
        return {name: value for name, value in self.state_dict().items() if name in trainable}

    def frozen_state(self) -> dict[str, Tensor]:
        """All other tensors of the state dict, by name."""
        trainable = self.trainable_state()
        return {name: value for name, value in self.state_dict().items() if name not in trainable}

    def _allocate(self) -> None:
        """Give parameters memory that have none yet."""

        def allocated(values: Tensor) -> Tensor:
            return torch.empty_like(values, device="cpu") if values.is_meta else values

        self._apply(allocated)

    def _set_drop_path(self, training_seed: int) -> None:
        """Set the probabilities of stochastic depth where layers train."""
        if self.spec.drop_path is None:
            return
        indices = range(first_trainable(self, self.spec.trainable), self.head_index)
        trained = [module for index in indices for module in self.layer_modules(index)]
        if not set_drop_path(self, self.spec.drop_path, trained, training_seed):
            everything = set_drop_path(self, self.spec.drop_path, [self], training_seed)
            mending = "let some train, as with model.trainable=last:1" if everything else "leave it out"
            raise UserError(
                "model.drop_path needs residual blocks that train and have a place for stochastic depth; with"
                f" model.trainable={self.spec.trainable} {self.spec.arch} has none; {mending}."
            )

    def layer_trains(self, index: int) -> bool:
        """Whether a layer has parameters that train."""
        return any(parameter.requires_grad for parameter in self.layer_parameters(index))

    def _find_split(self) -> int:
        """The number of leading layers before the head that are frozen and deterministic; 0 if none has weights."""
        leading = list(
            itertools.takewhile(
                lambda index: (
                    not self.layer_trains(index) and not any(map(_drops, self.layer_modules(index)))
                ),
                range(self.head_index),
            )
        )
        return len(leading) if any(map(self.layer_parameters, leading)) else 0


def _trains(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _drops(layer: nn.Module) -> bool:
    """Whether dropout makes its output random."""
    dropouts = (each for each in layer.modules() if isinstance(each, nn.Dropout))
    return any(each.p > 0 and not isinstance(each, KeyedDropPath) for each in dropouts)
