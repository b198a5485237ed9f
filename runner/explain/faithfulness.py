"""Does the network look at the object? What is shown to matter is taken away, and the network asked again.

ROAD (Rong et al. 2022, A Consistent and Efficient Evaluation Strategy for Attribution Methods) replaces the most, and
then the least relevant pixels by a noisy linear interpolation of their surroundings; a faithful map makes the
probability of its class fall in the first case and stay in the second. A random map of the same resolution is the
measure: it would score about zero. Where the object's box is known, pointing scores tell more directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from runner.explain import cam
from runner.portable.network import VGG
from runner.utils import hashing
from runner.utils.intervals import PairedDifference, paired_difference
from runner.utils.rng import seeded

PERCENTILES = (70, 90)
"""Pixels are taken away above these percentiles of relevance (most first) or irrelevance (least first)."""

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels of the view; right and bottom lie outside."""


@dataclass(frozen=True)
class Faithfulness:
    """ROAD scores, (least relevant first - most relevant first) / 2, as differences of probability: -1 to 1."""

    images: int
    score: float
    """Mean of the maps."""
    random: float
    """Mean of random maps on the same images."""
    difference: PairedDifference
    """Map against random map, image by image."""
    wins: float
    """Share of the images on which the map's score is the greater."""

    def metrics(self) -> dict[str, float]:
        """By name."""
        return {
            "road": self.score,
            "road_random": self.random,
            "road_gain": self.difference.mean,
            "road_gain_low": self.difference.low,
            "road_gain_high": self.difference.high,
        }


def measure(
    network: VGG,
    views: Tensor,
    digests: Sequence[str],
    method: str = "gradcam",
    layer: str = "",
    advance: Callable[[int], None] = lambda count: None,
) -> Faithfulness:
    """ROAD scores of a method's maps for the predicted classes, against random maps.

    Args:
        network: In float32.
        views: n × 3 × h × w, uint8; n at least 2.
        digests: Of the images' contents: they seed the random maps and the noise.
        method: One of `cam_methods.METHODS`.
        layer: Whose maps; empty: the last convolution.
        advance: Is told of each image that is done.
    """
    layer = layer or cam.default_layer(network)
    size = views.shape[-2:]
    of_maps: list[float] = []
    of_random: list[float] = []
    for view, content in zip(views.split(1), digests, strict=True):
        rows = cam.activations(network, view, layer)
        target = int(cam.probabilities(network, rows, layer).argmax())
        if method == "scorecam":  # of images, not of rows
            found = cam.score_maps(network, view, [target], layer)
        else:
            found = cam.resize_maps(cam.maps(network, rows, [target], layer, method), size)
        with seeded(hashing.derive_seed("random map", content)):
            noise = cam.resize_maps(torch.rand(1, *rows.shape[-2:]).numpy(), size)
        of_maps.append(road(network, view, target, found, content))
        of_random.append(road(network, view, target, noise, content))
        advance(1)
    return Faithfulness(
        len(of_maps),
        float(np.mean(of_maps)),
        float(np.mean(of_random)),
        paired_difference(of_maps, of_random),
        float(np.mean(np.array(of_maps) > np.array(of_random))),
    )


def road(network: VGG, view: Tensor, target: int, found: np.ndarray, content: str) -> float:
    """The ROAD score of one map (1 × h × w) of one view (1 × 3 × h × w, uint8)."""
    from pytorch_grad_cam.metrics.road import ROADLeastRelevantFirst, ROADMostRelevantFirst
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    model = _Normalised(network)
    ranks = _ranked(found, content)
    device = next(network.parameters()).device
    with cam.evaluation_mode(network), torch.no_grad(), torch.autocast(device.type, enabled=False):
        values = network.run(view.to(device), 0, 1)
        scores = []
        for percentile in PERCENTILES:
            for kind, sign in ((ROADLeastRelevantFirst, 1), (ROADMostRelevantFirst, -1)):
                with seeded(hashing.derive_seed("road", content, percentile, sign)):
                    after = kind(percentile)(
                        values, ranks, [ClassifierOutputSoftmaxTarget(target)], model, return_diff=False
                    )
                scores.append(sign * float(after[0]))
    return sum(scores) / len(scores)


def _ranked(found: np.ndarray, content: str) -> np.ndarray:
    """The places of a map's pixels in the order of relevance, 0 to 1: pixels that tie are drawn for.

    Without, a percentile would take away all that tie with it: of a map that is zero outside the object, everything.
    The draw is a smooth map, as the random ones: single pixels are restored better than areas, which would flatter.
    """
    height, width = found.shape[-2:]
    with seeded(hashing.derive_seed("ties", content)):
        coarse = torch.rand(1, max(2, height // 16), max(2, width // 16)).numpy()
    order = np.lexsort((cam.resize_maps(coarse, (height, width)).ravel(), found.ravel()))
    ranks = np.empty(found.size, np.float32)
    ranks[order] = np.linspace(0, 1, found.size, dtype=np.float32)
    return ranks.reshape(found.shape)


def pointing_game(found: np.ndarray, boxes: Sequence[Box]) -> float:
    """Share of maps (n × h × w) whose maximum lies in the object's box: the pointing game (Zhang et al. 2016)."""
    hits = 0
    for each, (left, top, right, bottom) in zip(found, boxes, strict=True):
        row, column = np.unravel_index(each.argmax(), each.shape)
        hits += left <= column < right and top <= row < bottom
    return hits / len(found)


def energy_in_boxes(found: np.ndarray, boxes: Sequence[Box]) -> float:
    """Mean share of a map's sum that lies in the object's box (Wang et al. 2020, Score-CAM, sec. 4.3)."""
    shares = []
    for each, (left, top, right, bottom) in zip(found, boxes, strict=True):
        inside = each[max(0, round(top)) : max(0, round(bottom)), max(0, round(left)) : max(0, round(right))]
        total = float(each.sum())
        shares.append(float(inside.sum()) / total if total else 0.0)
    return float(np.mean(shares))


def box_in_crop(box: Box, width: int, height: int, resize: int, crop: int) -> Box | None:
    """An image's box in its evaluation view: the shorter side brought to `resize`, the centre `crop` cut out.

    None where nothing of it is left.
    """
    scale = resize / min(width, height)
    # as torchvision has them: the longer side is cut off to whole pixels, the margin is rounded
    wide, high = (
        resize if side == min(width, height) else int(resize * side / min(width, height))
        for side in (width, height)
    )
    across, down = round((wide - crop) / 2.0), round((high - crop) / 2.0)
    left, right = (min(max(x * scale - across, 0), crop) for x in (box[0], box[2]))
    top, bottom = (min(max(y * scale - down, 0), crop) for y in (box[1], box[3]))
    return (left, top, right, bottom) if left < right and top < bottom else None


class _Normalised(nn.Module):
    """A network from normalised images on: what is imputed are those."""

    def __init__(self, network: VGG) -> None:
        super().__init__()
        self.network = [network]

    def forward(self, values: Tensor) -> Tensor:
        return self.network[0].run(values, 1, self.network[0].depth)
