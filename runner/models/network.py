"""The network as it trains: first weights, keyed dropout, what is frozen, and the cut between that and the rest."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from runner.config.schema import Normalization
from runner.models.dropout import KeyedDropout
from runner.portable.network import VGG, build_head, is_within
from runner.utils import hashing
from runner.utils.errors import UserError
from runner.utils.rng import seeded
from runner.utils.text import one_line


@dataclass(frozen=True)
class ModelSpec:
    """What decides a network's shape and numbers' meaning; with its weights, all that a checkpoint needs."""

    arch: str
    head: str
    pool: int
    width: int
    dropout: float
    trainable: str
    classes: tuple[str, ...]
    normalization: Normalization


class TransferModel(VGG):
    """A VGG with its head, as `runner.portable.network` computes it, made ready to train.

    Args:
        architecture: Shape, head and freezing.
        fit_seed: Of the head's first weights and the dropout masks.
        random: Draw the weights in front of the head as torchvision does, the same in every run; otherwise
            they have no values until weights are loaded.

    Raises `UserError` where `trainable` names no layer.
    """

    def __init__(self, architecture: ModelSpec, training_seed: int, random: bool) -> None:
        with seeded(hashing.derive_seed("head", training_seed)):
            head = build_head(
                architecture.head,
                architecture.pool,
                architecture.width,
                architecture.dropout,
                len(architecture.classes),
            )
        normalization = architecture.normalization
        super().__init__(
            architecture.arch,
            architecture.head,
            architecture.pool,
            head,
            normalization.mean,
            normalization.std,
        )
        self.spec = architecture
        self._fill(random)
        _key_dropouts(self, training_seed)
        self.index_layers()
        self._freeze()
        self.split_index = self._find_split()
        self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> TransferModel:
        """As usual, but frozen batch normalisation stays in evaluation: its statistics are frozen too."""
        super().train(mode)
        for layer in self._layers:
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not _trains(layer):
                layer.eval()
        return self

    @property
    def trains_batch_norm(self) -> bool:
        """Whether batch normalisation trains, and so depends on what is in its batch."""
        return any(
            isinstance(layer, nn.modules.batchnorm._BatchNorm) and _trains(layer) for layer in self._layers
        )

    @property
    def split_layer(self) -> str:
        """The last layer of the prefix; empty where there is none worth keeping."""
        return self.layer_names[self.split_index - 1] if self.split_index else ""

    @property
    def frozen_stages(self) -> tuple[tuple[int, int], ...]:
        """The prefix in parts (start, stop): the convolutions, the same for every head, and what this head adds."""
        end = self.layer_names.index("avgpool")
        middle = [end] if 0 < end < self.split_index else []
        bounds = [0, *middle, self.split_index] if self.split_index else []
        return tuple(itertools.pairwise(bounds))

    def trainable_state(self) -> dict[str, Tensor]:
        """Tensors of the layers that train, by their names in the state dict."""
        trainable = {name for name, layer in self.layers() if _trains(layer)}
        return {name: value for name, value in self.state_dict().items() if name.rpartition(".")[0] in trainable}

    def frozen_state(self) -> dict[str, Tensor]:
        """The other tensors of the state dict."""
        trainable = self.trainable_state()
        return {name: value for name, value in self.state_dict().items() if name not in trainable}

    def parameter_groups(self, lr: float, groups: dict[str, float]) -> list[dict[str, object]]:
        """Parameter groups for an optimiser: the longest name in `groups` decides, else `lr`.

        Raises `UserError` for a name that has no trainable parameter.
        """
        members: dict[str, list[nn.Parameter]] = {"": [], **{name: [] for name in groups}}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                owner = max((each for each in groups if is_within(name, each)), key=len, default="")
                members[owner].append(parameter)
        for name in groups:
            if not members[name]:
                raise UserError(
                    f"optim.groups names {name!r}, where nothing trains of its own;"
                    f" model.trainable is {self.spec.trainable!r}."
                )
        return [
            {"params": parameters, "lr": groups.get(name, lr)}
            for name, parameters in members.items()
            if parameters
        ]

    def _fill(self, random: bool) -> None:
        """Give memory, and values if `random`, to what was built without (torchvision's VGG initialisation)."""
        bare = [layer for _, layer in self.layers() if any(p.is_meta for p in layer.parameters())]
        with seeded(hashing.derive_seed("backbone", self.spec.arch)):
            for layer in bare:
                layer.to_empty(device="cpu")
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.reset_running_stats()  # old weight files lack num_batches_tracked
                if not random:
                    continue
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                    nn.init.zeros_(cast(Tensor, layer.bias))
                elif isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, 0, 0.01)
                    nn.init.zeros_(layer.bias)
                elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.reset_parameters()

    def _freeze(self) -> None:
        trainable = self.spec.trainable
        begin = self.head_name if trainable == "head" else trainable
        names = [name for name, layer in self.layers() if any(True for _ in layer.parameters())]
        first = 0
        if trainable != "all":
            inside = [place for place, name in enumerate(names) if is_within(name, begin)]
            if not inside:
                from runner.utils.text import did_you_mean

                raise UserError(
                    f"model.trainable is {one_line(trainable, 100)!r}, which names no layer with weights"
                    f"{did_you_mean(begin[:100], names)};"
                    f" it takes head, all, or a layer such as {names[len(names) // 2]}."
                )
            first = inside[0]
        frozen = set(names[:first])
        for name, layer in self.layers():
            if name in frozen:
                layer.requires_grad_(False)

    def _find_split(self) -> int:
        """The number of leading layers that are frozen and deterministic; 0 where nothing with weights is."""
        cut = 0
        for layer in self._layers:
            if _trains(layer) or (isinstance(layer, nn.Dropout) and layer.p > 0):
                break
            cut += 1
        return cut if any(True for layer in self._layers[:cut] for _ in layer.parameters()) else 0


def _key_dropouts(network: nn.Module, training_seed: int) -> None:
    for name, module in list(network.named_modules()):
        for child, layer in module.named_children():
            if isinstance(layer, nn.Dropout):
                setattr(module, child, KeyedDropout(layer.p, f"{name}.{child}".lstrip("."), training_seed))


def _trains(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())
