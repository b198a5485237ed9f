"""Inference on a whole split: the same logits on any number of processes, whatever else is in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from runner.evaluation.metrics import TASK, gather
from runner.features.sources import SplitFeatures
from runner.models.transfer_model import TransferModel
from runner.utils.tensors import float64_device, pad_rows

CONVERTED = 1024
"""Images whose logits are converted at once. Each row is computed by itself."""


@dataclass(frozen=True)
class Inference:
    """Runs the head of a model on features, in batches that the processes share.

    Batches have a fixed size; the last one is padded. So the result for an image depends on no other image, and not on
    the number of processes. Every process calls the same methods and gets the results of all.
    """

    network: TransferModel
    """Not wrapped by Accelerate; left in evaluation mode."""
    accelerator: Accelerator
    batch_size: int
    """Images per batch."""

    def logits(self, features: SplitFeatures, count: int) -> Tensor:
        """Logits of the `count` images of a split: count × classes, float64, on the CPU."""
        classes = len(self.network.spec.classes)
        return self._run(features, count, classes, self._to_float64)

    def sample_results(self, features: SplitFeatures, labels: np.ndarray) -> Tensor:
        """Results of single images, as `metrics.sample_results` returns them: n × 3, float64, on the CPU.

        Args:
            features: Of the split.
            labels: Its n class indices.
        """
        true = torch.tensor(labels)

        def results(indices: Sequence[int], logits: Tensor) -> Tensor:
            return TASK.results(logits, true[list(indices)])

        return self._run(features, len(labels), 3, results)

    def batch(self, features: Tensor) -> Tensor:
        """Logits of at most `batch_size` images: n × classes."""
        network = self.network
        with torch.no_grad(), self.accelerator.autocast():
            padded = pad_rows(features, self.batch_size)
            return network.run(padded, network.split_index, network.depth)[: len(features)]

    @staticmethod
    def _to_float64(_: Sequence[int], logits: Tensor) -> Tensor:
        return logits.to(float64_device(logits.device)).double()

    def _run(
        self,
        features: SplitFeatures,
        count: int,
        columns: int,
        convert: Callable[[Sequence[int], Tensor], Tensor],
    ) -> Tensor:
        """`convert` indices and logits; the rows of all processes: count × columns."""
        size, accelerator = self.batch_size, self.accelerator
        batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
        own = batches[accelerator.process_index :: accelerator.num_processes]
        rows = [torch.zeros(0, columns, dtype=torch.float64, device=float64_device(accelerator.device))]
        self.network.eval()
        group: list[int] = []
        logits: list[Tensor] = []
        for indices, batch in zip(own, features.batches(own), strict=True):
            group += indices
            logits.append(self.batch(batch))
            if len(group) >= CONVERTED or indices is own[-1]:
                rows.append(convert(group, torch.cat(logits)))
                group, logits = [], []
        return gather([index for indices in own for index in indices], torch.cat(rows), count, accelerator)
