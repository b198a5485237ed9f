"""Inference on a split: the result for an image does not depend on the other images of its batch."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from fits import TensorFeatures, separable_features
from helpers import QUIET, InBfloat16, Make, small_model
from torch import Tensor

from runner.evaluation.inference import Inference
from runner.evaluation.metrics import Scores, compute_scores, scores_from_logits
from runner.training import setup


@pytest.mark.parametrize("batch_size", [3, 8])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("trainable", ["head", "all"])
def test_logits_are_the_same_alone_and_in_any_batch(
    make: Make, accelerator: Accelerator, precision: str, batch_size: int, trainable: str
) -> None:
    used = InBfloat16(accelerator) if precision == "bf16" else accelerator
    words = [
        *("--features.batch_size", str(batch_size), "--features.store", "false"),
        *("--model.trainable", trainable, "--augment.crop", "48", "--augment.resize", "48"),
    ]
    ready = setup.prepare(make(*words), used, QUIET)  # type: ignore[arg-type]
    inference = Inference(ready.model, used, batch_size)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 48, 48), dtype=torch.uint8, generator=generator)

    def logits(indices: list[int]) -> Tensor:
        return inference.batch(ready.features.extractor(images[indices]))

    alone = torch.cat([logits([index]) for index in range(8)])
    assert len(alone.unique(dim=0)) == 8
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 3, 5, 1, 0, 2, 6, 4], [2, 2, 6], [5, 4]):
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            assert torch.equal(logits(indices), alone[indices])


def test_scores_are_the_same_for_one_image_at_a_time(accelerator: Accelerator) -> None:
    network = small_model()
    inference = Inference(network, accelerator, 8)

    def scores(values: Tensor, labels: list[int]) -> Scores:
        results = inference.sample_results(TensorFeatures(values), labels)
        return compute_scores(results, labels, len(network.spec.classes))

    values, labels = separable_features()
    whole = scores(values, labels)
    single = [scores(values[i : i + 1], labels[i : i + 1]) for i in range(20)]
    assert whole.hits1 == sum(each.hits1 for each in single)
    assert whole["loss"] == pytest.approx(sum(each["loss"] for each in single) / 20, rel=1e-14)
    assert scores(values.flip(0), labels[::-1])["loss"] == pytest.approx(whole["loss"], rel=1e-14)
    assert scores_from_logits(inference.logits(TensorFeatures(values), 20), labels) == whole
    assert not network.training
