"""Do the maps show what the model looks at? Two measures.

ROAD (Rong et al. 2022, A Consistent and Efficient Evaluation Strategy for Attribution Methods) removes the most or the
least relevant pixels of a map, replaces them by a noisy linear interpolation of their surroundings, and runs the model
again. With a faithful map the probability of the class falls in the first case and stays in the second. Random maps of
the same resolution score about zero and are the reference.

Pointing scores compare maps with the bounding boxes of the objects, where these are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runner.explain import cam
from runner.portable.model import LayeredModel
from runner.utils import hashing
from runner.utils.intervals import PairedDifference, paired_difference
from runner.utils.rng import seeded

PERCENTILES = (70, 90)
"""The pixels above these percentiles of relevance are removed; in the second case, of irrelevance."""

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels; the right and bottom edges are exclusive."""


@dataclass(frozen=True)
class Faithfulness:
    """ROAD scores: (least relevant first - most relevant first) / 2, differences of probability from -1 to 1."""

    images: int
    score: float
    """Mean score of the maps."""
    random: float
    """Mean score of random maps on the same images."""
    difference: PairedDifference
    """Map minus random map, image by image."""
    win_rate: float
    """Share of the images where the map scores higher than the random map."""

    def metrics(self) -> dict[str, float]:
        """The scores by metric name."""
        return {
            "road": self.score,
            "road_random": self.random,
            "road_gain": self.difference.mean,
            "road_gain_low": self.difference.low,
            "road_gain_high": self.difference.high,
        }


def measure(
    model: LayeredModel,
    images: Tensor,
    digests: Sequence[str],
    method: str = "gradcam",
    layer: str = "",
    advance: Callable[[int], None] = lambda count: None,
) -> Faithfulness:
    """ROAD scores of the maps for the predicted classes, compared with random maps.

    Args:
        model: In float32.
        images: n × 3 × h × w, uint8, with n of at least 2.
        digests: Digests of the images' contents. They seed the random maps and the noise.
        method: One of `runner.explain.methods.METHODS`.
        layer: Name of the layer; empty means the model's `cam_layer`.
        advance: Called with 1 after each image.
    """
    layer = layer or model.cam_layer
    scores: list[float] = []
    random_scores: list[float] = []
    for image, digest in zip(images.split(1), digests, strict=True):
        outputs = cam.activations(model, image, layer)
        target = int(cam.probabilities(model, outputs, layer).argmax())
        heatmap = cam.explain(model, image, [target], layer, method, outputs)
        with seeded(hashing.derive_seed("random map", digest)):
            noise = cam.resize_maps(
                torch.rand(1, *cam.map_size(model, outputs, layer)).numpy(), image.shape[-2:]
            )
        scores.append(road(model, image, target, heatmap, digest))
        random_scores.append(road(model, image, target, noise, digest))
        advance(1)
    return Faithfulness(
        len(scores),
        float(np.mean(scores)),
        float(np.mean(random_scores)),
        paired_difference(scores, random_scores),
        float(np.mean(np.array(scores) > np.array(random_scores))),
    )


def road(model: LayeredModel, image: Tensor, target: int, heatmap: np.ndarray, digest: str) -> float:
    """The ROAD score of one map (1 × h × w) for a class index.

    Args:
        model: In float32.
        image: 1 × 3 × h × w, uint8.
        target: Index of the class that the map explains.
        heatmap: The map.
        digest: Digest of the image's content, which seeds the noise.
    """
    from pytorch_grad_cam.metrics.road import ROADLeastRelevantFirst, ROADMostRelevantFirst
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    def from_normalized(values: Tensor) -> Tensor:
        return model.run(values, 1, model.depth)

    ranks, targets = _ranks(heatmap, digest), [ClassifierOutputSoftmaxTarget(target)]
    with cam.evaluation_mode(model), torch.no_grad():
        normalized = model.run(image.to(next(model.parameters()).device), 0, 1)
        scores = []
        for percentile in PERCENTILES:
            for remove, sign in ((ROADLeastRelevantFirst, 1), (ROADMostRelevantFirst, -1)):
                with seeded(hashing.derive_seed("road", digest, percentile, sign)):
                    probability = remove(percentile)(
                        normalized, ranks, targets, from_normalized, return_diff=False
                    )
                scores.append(sign * float(probability[0]))
    return sum(scores) / len(scores)


def _ranks(heatmap: np.ndarray, digest: str) -> np.ndarray:
    """The rank of each pixel of a map by relevance, scaled to 0 … 1, with ties broken at random.

    With ties, a percentile would remove all tied pixels: for a map that is zero outside the object, the whole image.
    The random order of ties is smooth, like the random maps, because removed areas are harder to restore than single
    removed pixels, which would flatter the map.
    """
    height, width = heatmap.shape[-2:]
    with seeded(hashing.derive_seed("ties", digest)):
        coarse = torch.rand(1, max(2, height // 16), max(2, width // 16)).numpy()
    order = np.lexsort((cam.resize_maps(coarse, (height, width)).ravel(), heatmap.ravel()))
    ranks = np.empty(heatmap.size, np.float32)
    ranks[order] = np.linspace(0, 1, heatmap.size, dtype=np.float32)
    return ranks.reshape(heatmap.shape)


def pointing_game(heatmaps: np.ndarray, boxes: Sequence[Box]) -> float:
    """Share of maps (n × h × w) whose maximum lies in the object's box (Zhang et al. 2016)."""
    hits = 0
    for heatmap, (left, top, right, bottom) in zip(heatmaps, boxes, strict=True):
        row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
        hits += left <= column < right and top <= row < bottom
    return hits / len(heatmaps)


def energy_in_boxes(heatmaps: np.ndarray, boxes: Sequence[Box]) -> float:
    """Mean share of a map's sum that lies in the object's box (Wang et al. 2020, Score-CAM, section 4.3)."""
    shares = []
    for heatmap, (left, top, right, bottom) in zip(heatmaps, boxes, strict=True):
        inside = heatmap[
            max(0, round(top)) : max(0, round(bottom)), max(0, round(left)) : max(0, round(right))
        ]
        total = float(heatmap.sum())
        shares.append(float(inside.sum()) / total if total else 0.0)
    return float(np.mean(shares))


def box_in_squashed(box: Box, width: int, height: int, crop: int) -> Box:
    """A box of a width × height image after squashing it to crop × crop."""
    left, top, right, bottom = box
    return (left * crop / width, top * crop / height, right * crop / width, bottom * crop / height)


def box_in_crop(box: Box, width: int, height: int, resize: int, crop: int) -> Box | None:
    """A box of a width × height image after resizing the shorter side to `resize` and cutting out the center `crop`.

    None if the crop contains no part of it.
    """
    scale = resize / min(width, height)
    # Like torchvision: the longer side is truncated to whole pixels, the margin is rounded.
    new_width, new_height = (
        resize if side == min(width, height) else int(resize * side / min(width, height))
        for side in (width, height)
    )
    margin_x, margin_y = round((new_width - crop) / 2.0), round((new_height - crop) / 2.0)
    left, right = (min(max(x * scale - margin_x, 0), crop) for x in (box[0], box[2]))
    top, bottom = (min(max(y * scale - margin_y, 0), crop) for y in (box[1], box[3]))
    return (left, top, right, bottom) if left < right and top < bottom else None
