"""Class activation maps: where in an image a network finds a class. The methods are the grad-cam package's.

What lies in front of the layer that is looked at runs without gradients, whatever trains there; what lies behind it
runs in float32 on a copy of the layer's output. So a frozen network works, an in-place ReLU spoils nothing, stored
rows can be explained as well as images, and the network stays as it was: its modes, gradients and weights.
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

from runner.portable.network import VGG
from runner.utils.errors import UserError

KINDS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
}
"""The package's class for each of `METHODS` that works on a layer's output."""
CHUNK = 8
"""Images that go through at once."""


def default_layer(network: VGG) -> str:
    """The last convolution, with the normalisation and ReLU behind it: what Grad-CAM's authors look at."""
    layers = list(network.layers())
    place = max(place for place, (_, layer) in enumerate(layers) if isinstance(layer, nn.Conv2d))
    while isinstance(layers[place + 1][1], (nn.BatchNorm2d, nn.ReLU)):
        place += 1
    return layers[place][0]


def layer_index(network: VGG, layer: str) -> int:
    """The place of a layer whose output is a map. Raises `UserError` with the nearest names."""
    from runner.utils.text import did_you_mean

    names = [name for name, _ in network.layers()]
    maps = [name for name in names if name.startswith("features.") or name == "avgpool"]
    if layer not in maps:
        raise UserError(
            f"There is no layer {layer!r} whose output is a map{did_you_mean(layer, maps)};"
            f" the network has {maps[0]} to {maps[-2]}, and {maps[-1]}."
        )
    return names.index(layer)


def activations(network: VGG, images: Tensor, layer: str) -> Tensor:
    """What a layer makes of images (n × 3 × h × w, uint8): n × channels × h' × w', float32, on the device."""
    place = layer_index(network, layer)
    device = next(network.parameters()).device
    with evaluation_mode(network), torch.no_grad(), torch.autocast(device.type, enabled=False):
        return torch.cat(
            [
                network.run(chunk.to(device), 0, place + 1).contiguous().clone()
                for chunk in images.split(CHUNK)
            ]
        )


def probabilities(network: VGG, rows: Tensor, layer: str) -> Tensor:
    """Softmax probabilities (n × classes, float32, on the CPU) of a layer's output."""
    place = layer_index(network, layer)
    with evaluation_mode(network), torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        return torch.cat(
            [
                network.run(chunk.clone(), place + 1, network.depth).softmax(1).cpu()
                for chunk in rows.split(CHUNK)
            ]
        )


def maps(
    network: VGG, rows: Tensor, targets: Sequence[int], layer: str, method: str = "gradcam"
) -> np.ndarray:
    """Where a class is found: n × h' × w' in [0, 1], float32, in the layer's resolution.

    Args:
        network: Unwrapped, in float32; it is left as it was.
        rows: A layer's output (n × channels × h' × w'), computed by `activations` or taken from the store.
        targets: For each row the index of the class that is asked about.
        layer: The layer that the rows are of.
        method: One of `KINDS`; scorecam needs images: `score_maps`.
    """
    import pytorch_grad_cam  # takes seconds (OpenCV)

    kind = _eigencam() if method == "eigencam" else getattr(pytorch_grad_cam, KINDS[method])
    focus = _Focus(network, layer_index(network, layer))
    rows = rows.to(focus.anchor.device).float()
    return _run(kind, focus, rows, targets)


def score_maps(network: VGG, images: Tensor, targets: Sequence[int], layer: str) -> np.ndarray:
    """The same by Score-CAM: a forward pass for every channel of the layer, of images (n × 3 × h × w, uint8).

    The maps have the resolution of the images.
    """
    import pytorch_grad_cam

    focus = _Focus(network, layer_index(network, layer), start=1)
    found = []
    for image, target in zip(images.split(1), targets, strict=True):  # it masks each once a channel
        with torch.no_grad():
            values = network.run(image.to(focus.anchor.device), 0, 1)  # it masks what is normalised
        with contextlib.redirect_stderr(io.StringIO()):  # the package shows a bar for every image
            found.append(_run(pytorch_grad_cam.ScoreCAM, focus, values, [target]))
    return np.concatenate(found)


def explain(
    network: VGG, images: Tensor, targets: Sequence[int], layer: str = "", method: str = "gradcam"
) -> np.ndarray:
    """Maps of images (n × 3 × h × w, uint8) in their own resolution: n × h × w in [0, 1], float32.

    Raises `UserError` for an unknown layer, and one whose output is a single pixel.
    """
    layer = layer or default_layer(network)
    if method == "scorecam":
        return score_maps(network, images, targets, layer)
    rows = activations(network, images, layer)
    if rows.shape[-2:].numel() == 1:
        raise UserError(
            f"The output of {layer} is a single pixel, which says nothing of where; look at an earlier layer."
        )
    return resize_maps(maps(network, rows, targets, layer, method), images.shape[-2:])


def resize_maps(found: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Maps (n × h' × w') in another size (h, w), bilinearly."""
    values = F.interpolate(
        torch.from_numpy(found)[:, None], size=tuple(size), mode="bilinear", align_corners=False
    )
    return values[:, 0].numpy()


def _eigencam() -> type:
    """The package's EigenCAM, with an SVD that does not take pixels × pixels of memory for an early layer."""
    from pytorch_grad_cam import EigenCAM

    class Economical(EigenCAM):
        def get_cam_image(self, input_tensor, target_layer, targets, activations, grads, eigen_smooth):  # type: ignore[no-untyped-def]
            maps = []
            for each in activations:
                channels = each.reshape(len(each), -1).T
                channels = channels - channels.mean(axis=0)
                _, _, directions = np.linalg.svd(channels, full_matrices=False)
                found = (channels @ directions[0]).reshape(each.shape[1:])
                # A direction has no sign of its own: let it point to where the layer is active.
                maps.append(found if (found * each.mean(axis=0)).sum() >= 0 else -found)
            return np.array(maps, np.float32)

    return Economical


class _Focus(nn.Module):
    """A network as the package wants it: from layer `start` (default: the rows of `place`) to logits.

    Its one parameter says the device; the network's own are out of the package's reach, which resets gradients.
    """

    def __init__(self, network: VGG, place: int, start: int | None = None) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1, device=next(network.parameters()).device))
        self.target = nn.Identity()
        self.network = [network]  # in a list: no submodule
        self.place = place
        self.start = place + 1 if start is None else start

    def forward(self, values: Tensor) -> Tensor:
        network = self.network[0]
        with torch.no_grad():
            values = network.run(values, self.start, self.place + 1)
        values = self.target(values.detach().clone().requires_grad_(True))
        return network.run(values.clone(), self.place + 1, network.depth)


def _run(kind: type, focus: _Focus, values: Tensor, targets: Sequence[int]) -> np.ndarray:
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network = focus.network[0]
    found = []
    with (
        evaluation_mode(network),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(values.device.type, enabled=False),
    ):
        cam = kind(focus, [focus.target])
        try:  # not its `with`, which swallows IndexErrors
            for start in range(0, len(values), CHUNK):
                chunk = values[start : start + CHUNK].clone()
                wanted = [ClassifierOutputTarget(each) for each in targets[start : start + CHUNK]]
                found.append(cam(chunk, wanted))
        finally:
            cam.activations_and_grads.release()
    return np.concatenate(found).astype(np.float32)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for the weights, within the block only."""
    modes = {module: module.training for module in network.modules()}
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        network.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, training in modes.items():
            module.training = training
