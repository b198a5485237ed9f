"""Grad-CAM's default layer shows where the planted object is, in networks that were trained to tell objects apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import small_model
from objects import OBJECTS, SIDE, Corners, draw_object
from PIL.Image import Resampling
from torch import Tensor, nn

from runner.explain import cam
from runner.models.dropout import set_dropout_batch

PIXELS = 128
"""Height and width of the images, so that the maps have several places."""


def draw(numbers: range) -> tuple[Tensor, Tensor, list[Corners]]:
    """These pictures of each class, larger than they are drawn: images, labels, and the boxes of the objects."""
    images, labels, boxes = [], [], []
    for label, name in enumerate(sorted(OBJECTS)):
        for number in numbers:
            picture, box = draw_object(name, number)
            larger = np.array(picture.resize((PIXELS, PIXELS), Resampling.BILINEAR))
            images.append(torch.from_numpy(larger).permute(2, 0, 1))
            labels.append(label)
            left, top, right, bottom = (each * PIXELS // SIDE for each in box)
            boxes.append((left, top, right, bottom))
    return torch.stack(images), torch.tensor(labels), boxes


def peaks_inside(maps: np.ndarray, boxes: list[Corners]) -> int:
    """How many maps have their peak in the box of their image's object."""
    places = (np.unravel_index(values.argmax(), values.shape) for values in maps)
    found = zip(places, boxes, strict=True)
    return sum(left <= x < right and top <= y < bottom for (y, x), (left, top, right, bottom) in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "epochs", "rate", "least"),
    [("timm/resnet10t", 6, 1e-3, 0.7), ("timm/vit_wee_patch16_reg1_gap_256", 5, 5e-4, 0.55)],
)
def test_the_map_of_a_trained_network_peaks_in_the_object(
    arch: str, epochs: int, rate: float, least: float
) -> None:
    images, labels, _ = draw(range(24))
    model = small_model(
        arch=arch, input_size=PIXELS, trainable="all", dropout=0.0, classes=tuple(sorted(OBJECTS))
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(16):
            set_dropout_batch(model.modules(), epoch, slice(0, len(batch)), len(batch))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()
    others, classes, boxes = draw(range(24, 34))
    with torch.no_grad():
        assert (model(others).argmax(1) == classes).float().mean() >= 0.9
    inside = peaks_inside(cam.explain(model, others, classes.tolist()), boxes)
    assert inside >= least * len(boxes)
