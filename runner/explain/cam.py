"""Class activation maps (CAM): which regions of an image support a class. Computed by the grad-cam package.

The layers up to the explained one run without gradients, even where they train. The layers after it run in float32 on
a copy of that layer's output. So frozen models work, in-place ReLUs overwrite nothing, cached features can be explained
like images, and the model keeps its modes, gradients and weights.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.explain.methods import METHODS, Method
from runner.portable.model import LayeredModel
from runner.utils.errors import UserError
from runner.utils.text import did_you_mean

BATCH_SIZE = 8
"""Images per forward and backward pass."""


def layer_index(model: LayeredModel, layer: str) -> int:
    """The index of a layer whose output has a height and width. Raises `UserError`, which names similar layers."""
    spatial = model.spatial_layers
    if layer not in spatial:
        raise UserError(
            f"The model has no layer {layer!r} with a spatial output{did_you_mean(layer, spatial)};"
            f" --layer takes {' to '.join(dict.fromkeys((spatial[0], spatial[-1])))}."
        )
    return model.layer_names.index(layer)


def activations(model: LayeredModel, images: Tensor, layer: str) -> Tensor:
    """A layer's output (float32, on the model's device) for images (n × 3 × h × w, uint8), in its own layout.

    If the model pools several maps, the output of one layer for one variant does not tell its logits: then these are
    the normalized images.
    """
    index = _start(model, layer) - 1
    device = next(model.parameters()).device
    with evaluation_mode(model), torch.no_grad():
        outputs = (model.run(batch.to(device), 0, index + 1) for batch in images.split(BATCH_SIZE))
        return torch.cat([batch.contiguous().clone() for batch in outputs])


def map_size(model: LayeredModel, outputs: Tensor, layer: str) -> torch.Size:
    """Height and width of the maps in `activations`."""
    layout = model.layouts.get(layer)
    return (layout.to_map(outputs) if layout and _start(model, layer) > 1 else outputs).shape[-2:]


def _start(model: LayeredModel, layer: str) -> int:
    """The index of the first layer that runs after `activations`."""
    index = layer_index(model, layer)
    return index + 1 if model.pools_last_only or index == model.pooling_index else 1


def probabilities(model: LayeredModel, outputs: Tensor, layer: str) -> Tensor:
    """Softmax probabilities (n × classes, float32, on the CPU) from `activations`."""
    start = _start(model, layer)
    with evaluation_mode(model), torch.no_grad():
        logits = (model.run(batch.clone(), start, model.depth) for batch in outputs.split(BATCH_SIZE))
        return torch.cat([batch.softmax(1).cpu() for batch in logits])


def layer_maps(
    model: LayeredModel, outputs: Tensor, targets: Sequence[int], layer: str, method: str = "gradcam"
) -> np.ndarray:
    """Maps from the output of a layer: n × h' × w' in [0, 1], float32, in the layer's resolution.

    If the model pools several maps, they are n × h × w in the images' resolution: the mean over the variants.

    Args:
        model: Unwrapped, in float32. It is not changed.
        outputs: From `activations`, or the layer's output from the feature cache.
        targets: The class index to explain, for each image.
        layer: Name of the layer.
        method: One of `METHODS` that does not run images.
    """
    tapped = _TappedModel(model, layer_index(model, layer), _start(model, layer))
    outputs = outputs.to(tapped.device.device).float()
    return _compute(METHODS[method], tapped, outputs, targets)


def image_maps(
    model: LayeredModel, images: Tensor, targets: Sequence[int], layer: str, method: str = "scorecam"
) -> np.ndarray:
    """Maps by a method that runs masked images (n × 3 × h × w, uint8): n × h × w in [0, 1], float32.

    Score-CAM needs a forward pass for each channel of the layer.
    """
    tapped = _TappedModel(model, layer_index(model, layer), 1)
    heatmaps = []
    # Score-CAM batches an image's channels itself.
    for image, target in zip(images.split(1), targets, strict=True):
        with torch.no_grad():
            normalized = model.run(image.to(tapped.device.device), 0, 1)  # it masks normalized images
        with contextlib.redirect_stderr(io.StringIO()):  # the package prints a progress bar for each image
            heatmaps.append(_compute(METHODS[method], tapped, normalized, [target]))
    return np.concatenate(heatmaps)


def explain(
    model: LayeredModel,
    images: Tensor,
    targets: Sequence[int],
    layer: str = "",
    method: str = "gradcam",
    outputs: Tensor | None = None,
) -> np.ndarray:
    """Maps in the resolution of the images: n × h × w in [0, 1], float32.

    Args:
        model: Unwrapped, in float32. It is not changed.
        images: n × 3 × h × w, uint8.
        targets: The class index to explain, for each image.
        layer: Name of the layer to explain; empty means the model's `cam_layer`.
        method: One of `METHODS`.
        outputs: `activations` of the images, where they are known; otherwise they are computed.

    Raises `UserError` if there is no such layer, or if its output is a single pixel.
    """
    layer = layer or model.cam_layer
    if METHODS[method].runs_images:
        return image_maps(model, images, targets, layer, method)
    if outputs is None:
        outputs = activations(model, images, layer)
    if map_size(model, outputs, layer).numel() == 1:
        raise UserError(
            f"The output of {layer} is a single pixel and cannot show a region; choose an earlier layer."
        )
    return resize_maps(layer_maps(model, outputs, targets, layer, method), images.shape[-2:])


def resize_maps(heatmaps: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Maps (n × h' × w') resized to (h, w) by bilinear interpolation."""
    values = F.interpolate(
        torch.from_numpy(heatmaps)[:, None], size=tuple(size), mode="bilinear", align_corners=False
    )
    return values[:, 0].numpy()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within the block, the model is in evaluation mode, computes in float32, and no weight requires gradients."""
    modes = {module: module.training for module in model.modules()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = next(model.parameters()).device
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, training in modes.items():
            module.training = training


class _TappedModel(nn.Module):
    """A model as the grad-cam package expects it: from layer `start` to the logits.

    `taps` pass on the output of layer `index`, one for each variant of an image: the package attaches its hooks there.
    The model is not a submodule, because the package would reset its gradients; `device` is the one parameter, by which
    the package finds the device.
    """

    def __init__(self, model: LayeredModel, index: int, start: int) -> None:
        super().__init__()
        self.device = nn.Parameter(torch.zeros(1, device=next(model.parameters()).device))
        taps = len(model.variants) if index < model.pooling_index else 1
        self.taps = nn.ModuleList(nn.Identity() for _ in range(taps))
        self.hidden = [model]  # a list hides it from torch
        self.outputs: Tensor | None = None
        """What really goes in, where the package is given maps made of it."""
        self.index = index
        self.start = start

    def forward(self, values: Tensor) -> Tensor:
        model = self.hidden[0]
        values = values if self.outputs is None else self.outputs
        if not model.pools_last_only and self.index < model.pooling_index:
            maps = model.maps(values, self._tap)
            return model.run(maps, model.pooling_index, model.depth)
        with torch.no_grad():
            values = model.run(values, self.start, self.index + 1)
        return model.run(self._tap(values, 0, self.index), self.index + 1, model.depth)

    def as_maps(self, values: Tensor) -> Tensor:
        """What the package is given for values of layer `start`: it takes the size of the maps from it."""
        model = self.hidden[0]
        layout = model.layouts.get(model.layer_names[self.index]) if self.start > 1 else None
        if layout is None or layout.kind == "channels_first":
            return values
        self.outputs = values
        return layout.to_map(values)

    def _tap(self, values: Tensor, number: int, index: int) -> Tensor:
        """The output of a layer for a variant, as it goes on; a mirror image's map is turned back for the package."""
        if index != self.index:
            return values
        model = self.hidden[0]
        values = values.detach().clone()
        if (layout := model.layouts.get(model.layer_names[index])) is not None:
            maps = layout.to_map(values).clone().requires_grad_(True)
            if model.variants[number].mirrored:
                return self.taps[number](maps.flip(-1)).flip(-1)
            return layout.from_map(self.taps[number](maps), values).clone()
        return self.taps[number](values.requires_grad_(True)).clone()


def _compute(method: Method, tapped: _TappedModel, values: Tensor, targets: Sequence[int]) -> np.ndarray:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    heatmaps = []
    with evaluation_mode(tapped.hidden[0]), torch.inference_mode(False), torch.enable_grad():
        cam = method.load()(tapped, list(tapped.taps))
        try:  # its own context manager would swallow IndexErrors
            for start in range(0, len(values), BATCH_SIZE):
                batch = slice(start, start + BATCH_SIZE)
                maps = tapped.as_maps(values[batch]).clone()
                heatmaps.append(cam(maps, list(map(ClassifierOutputTarget, targets[batch]))))
        finally:
            cam.activations_and_grads.release()
    return np.concatenate(heatmaps).astype(np.float32)
