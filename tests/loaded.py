"""A loaded model at random weights, without a run."""

from __future__ import annotations

from helpers import small_model

from runner.serving import packaging
from runner.serving.predictor import LoadedModel

INFERENCE = {
    "name": "small",
    "transform": {"resize": 36, "crop": 32, "interpolation": "bilinear"},
    "precision": "no",
}


def loaded_model() -> LoadedModel:
    """A classifier of blue, green and red images of 32 × 32 pixels that has learned nothing."""
    module = small_model().eval()
    classifier = packaging.to_classifier(
        module, packaging.describe(module, INFERENCE, epoch=1, val={}), "cpu"
    )
    return LoadedModel(classifier, "a test model")
