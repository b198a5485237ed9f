"""Judging a network on rows: the same logits and counts on any number of processes, next to whatever else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from runner.data.manifest import Manifest
from runner.evaluation import metrics
from runner.evaluation.metrics import Scores
from runner.evaluation.predictions import Outcomes
from runner.features.cache import Rows
from runner.models.network import Network
from runner.utils.tensors import filled


def evaluate(
    network: Network, rows: Rows, labels: Sequence[int], accelerator: Accelerator, chunk: int
) -> Scores:
    """Scores of a network on rows: the same counts on any number of processes.

    Args:
        network: Unwrapped; left in evaluation mode.
        rows: Of the split, in its order.
        labels: The class index of each.
        accelerator: Its processes share the chunks.
        chunk: Rows judged at once; the last ones are filled up, so that none depends on its batch.
    """
    judged = judgements(network, rows, labels, accelerator, chunk)
    return metrics.count(judged, labels, len(network.architecture.classes))


def judgements(
    network: Network, rows: Rows, labels: Sequence[int], accelerator: Accelerator, chunk: int
) -> Tensor:
    """What scores are counted from, n × 3 as `scores.judge` gives it, in the order of the split. Args: `evaluate`'s."""
    truth = torch.tensor(labels)

    def judged(places: Sequence[int], logits: Tensor) -> Tensor:
        return metrics.judge(logits, truth[list(places)].to(logits.device))

    return _everywhere(network, rows, len(labels), accelerator, chunk, judged, 3)


def predict(network: Network, rows: Rows, count: int, accelerator: Accelerator, chunk: int) -> Tensor:
    """Logits of a whole split (count × classes, float64, on the CPU), on every process. Args: `evaluate`'s."""

    def told(_places: Sequence[int], logits: Tensor) -> Tensor:
        return logits.double()

    classes = len(network.architecture.classes)
    return _everywhere(network, rows, count, accelerator, chunk, told, classes)


def outcomes(manifest: Manifest, split: str, logits: Tensor) -> Outcomes:
    """The logits (n × classes) of a split with its images and classes."""
    entries = manifest.select(split)
    return Outcomes(
        tuple(entry.path for entry in entries),
        tuple(entry.digest for entry in entries),
        np.array(manifest.labels(split), dtype=np.int64),
        logits.double().cpu().numpy(),
        manifest.classes,
    )


def _everywhere(
    network: Network,
    rows: Rows,
    count: int,
    accelerator: Accelerator,
    chunk: int,
    of: Callable[[Sequence[int], Tensor], Tensor],
    width: int,
) -> Tensor:
    """`of` the places and logits of each chunk, from all processes: count × width."""
    chunks = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    own = chunks[accelerator.process_index :: accelerator.num_processes]
    found = [torch.zeros(0, width, dtype=torch.float64, device=accelerator.device)]
    network.eval()
    for places, batch in zip(own, rows.batches(own), strict=True):
        found.append(of(places, infer(network, batch, accelerator, chunk)))
    places_of_all = [place for chunk_places in own for place in chunk_places]
    return metrics.gather(places_of_all, torch.cat(found), count, accelerator)


def infer(network: Network, rows: Tensor, accelerator: Accelerator, chunk: int) -> Tensor:
    """Logits (n × classes) of at most `chunk` rows of the prefix, which no other row influences."""
    with torch.no_grad(), accelerator.autocast():
        return network.run(filled(rows, chunk), network.cut, network.depth)[: len(rows)]
