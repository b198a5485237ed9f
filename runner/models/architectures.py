"""What an architecture is, and where its frozen part ends for what may train."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runner.config.choices import ARCHITECTURES
from runner.config.schema import ModelConfig, Normalization
from runner.models.pretrained import missing_download
from runner.models.transfer_model import ModelSpec, TransferModel
from runner.portable.model import is_within
from runner.utils.errors import UserError

TRAINABLE = ("head", "last:1", "all")
"""Values of `model.trainable` that are described."""


@dataclass(frozen=True)
class SplitPoint:
    """Where the frozen part of a network with a pooled head of pool 1 ends."""

    trainable: str
    """Value of `model.trainable`."""
    layer: str
    """Name of the last frozen layer; empty if nothing is frozen."""
    values: int
    """Values of an image that leave it."""

    def __str__(self) -> str:
        return f"{self.layer}, {self.values:,} values" if self.layer else "nothing is frozen"


@dataclass(frozen=True)
class Architecture:
    """An architecture, as far as it is known without its weights."""

    arch: str
    """Value of `model.arch`."""
    input_size: int
    """Height and width of images, in pixels; 0 if it cannot be used."""
    weights: str | None
    """Its usual weights."""
    weights_here: bool
    """Whether they, or weights of an installed package, are on this host."""
    parameters: int = 0
    """Of the backbone, without a head; 0: not counted."""
    split_points: tuple[SplitPoint, ...] = ()
    note: str = ""
    """Why it is one block, or cannot be used."""


def describe_architecture(arch: str, details: bool = True) -> Architecture:
    """Facts of an architecture. It is built without memory for its weights, if details are wanted."""
    try:
        backbone = ARCHITECTURES.find(arch).implementation
    except ValueError as error:
        return Architecture(arch, 0, None, False, note=str(error))
    size, weights = backbone.preprocessing(None).crop, backbone.default_weights()
    names = [weights, *(each for each in backbone.weights_names() if each == "package")]
    here = any(name is not None and _is_here(arch, name) for name in names)
    if not details:
        return Architecture(arch, size, weights, here)
    parameters, split_points, note = 0, [], ""
    for trainable in TRAINABLE:
        try:
            model = _model(arch, size, trainable)
        except UserError as error:
            note = str(error)
            continue
        note = note or model.note
        parameters = sum(
            value.numel() for name, value in model.named_parameters() if not is_within(name, model.head_name)
        )
        split_points.append(SplitPoint(trainable, model.split_layer, _values(model)))
    return Architecture(arch, size, weights, here, parameters, tuple(split_points), note)


def _is_here(arch: str, weights: str) -> bool:
    from importlib.util import find_spec

    from runner.models.timm_weights import PACKAGES
    from runner.portable.backbones.timm_networks import PACKAGE, PREFIX

    if weights == PACKAGE:
        return find_spec(PACKAGES[arch.removeprefix(PREFIX).partition(".")[0]].module) is not None
    return missing_download(ModelConfig(arch=arch, weights=weights, head="pooled")) is None


def _model(arch: str, size: int, trainable: str) -> TransferModel:
    spec = ModelSpec(
        arch=arch,
        head="pooled",
        pool=1,
        width=1,
        dropout=0.0,
        trainable=trainable,
        classes=("a", "b"),
        normalization=Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        input_size=size,
    )
    return TransferModel(spec, training_seed=0, random_weights=False)


def _values(model: TransferModel) -> int:
    """Values of an image that leave the frozen part, found without computing."""
    if not model.split_index:
        return 0
    size = model.spec.input_size
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8, device="meta")
    with torch.no_grad(), torch.device("meta"):
        return model.eval().to("meta").run(images, 0, model.split_index)[0].numel()
